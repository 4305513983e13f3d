"""The training rows of many users as one padded batch, on which local solvers compute.

K users, n_k training rows of user k, n rows after padding, d features.
"""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Training rows, padded with rows of zeros.

    Attributes:
        X: features [K, n, d].
        y: labels [K, n], 1 in the padding.
        square_norms: ‖x_kj‖² [K, n].
        counts: n_k of each user.
        s: weight of a user's row in the objective [K], 1 or 1/n_k.
        computed: matrices computed from X, shared by all that share X.
    """

    X: Tensor
    y: Tensor
    square_norms: Tensor
    counts: tuple[int, ...]
    s: Tensor
    computed: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def gram(self) -> Tensor:
        """Return the Gram matrices XXᵀ [K, n, n], computed once."""
        if "gram" not in self.computed:
            self.computed["gram"] = self.X @ self.X.mT
        return self.computed["gram"]

    def of(self, user: int) -> "Rows":
        """Return the rows of one user without padding, K = 1, as views."""
        n, one = self.counts[user], slice(user, user + 1)
        computed = {name: gram[one, :n, :n] for name, gram in self.computed.items()}
        return Rows(self.X[one, :n], self.y[one, :n], self.square_norms[one, :n], (n,), self.s[one], computed)
