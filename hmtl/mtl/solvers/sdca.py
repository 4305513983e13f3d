"""Local solvers: one user's share of a round, for all users at once.

K users, n rows each (padded), d features, S rows to visit. User k maximises over a′, from its duals a, with w_k fixed,
    −s_k Σ_j ℓ*(−a′_j) − w_k·Δv_k − ½ c_k ‖Δv_k‖²,    Δv_k = s_k Σ_j (a′_j − a_j) x_kj,
where the curvature c_k pays for what the others do meanwhile.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.losses import Loss
from hmtl.mtl.problem import Rows
from hmtl.mtl.solvers.compiled import applies, compiled_pass
from hmtl.rng import generator

MOST_PASSES = 1e9
GRAM_SIZE = 4  # times the memory of the rows, at most


class LocalSolver(ABC):
    """Improves the users' duals, each on its own rows."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Methods of Loss, beyond `forward`, that a loss must define for this solver."""

    def check(self, loss: Loss) -> None:
        """Refuse a loss that this solver cannot work with.

        Raises:
            ConfigError: the loss lacks one of `needs`.
        """
        missing = [need for need in self.needs if getattr(type(loss), need) is getattr(Loss, need)]
        if missing:
            raise ConfigError(
                f"{type(self).__name__} needs {' and '.join(missing)}, which {type(loss).__name__} does not define. "
                "Choose loss=hinge, smooth_hinge or logistic, or algorithm=fedu, fedavg, fedprox, ditto or "
                "pfedme, or define it there."
            )

    @abstractmethod
    def draw(
        self, seed: int, round: int, users: Sequence[int] | NDArray[np.int64], counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The work of a round: order [K, S] of rows to visit, and budgets [K], how many visits each user makes.

        A user that makes more visits than it has rows begins again with the first.
        """

    @abstractmethod
    def solve(
        self, loss: Loss, rows: Rows, a: Tensor, W: Tensor, curvature: Tensor, order: Tensor, budgets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Do the work.

        Args:
            a: duals [K, n], left as they are.
            W: models as rows [K, d].
            curvature: c [K].
            order, budgets: as from `draw`; a budget may be anything from 0 (absent) to S, or beyond where the order
                has all rows of the user.

        Returns:
            new duals a′ [K, n] and Δv [K, d].
        """


class SDCA(LocalSolver):
    """Stochastic dual coordinate ascent: exact steps on one row after another, in random order.

    On a CPU the package's own losses take compiled code, for several passes by the rows' Gram matrix where that is of
    the size of the rows; everything else takes torch. The numbers are the same to rounding.

    Args:
        passes: how often a user goes over its rows in a round, in an order drawn anew for each round; a fraction
            visits that part of them, at least one row.

    Ref: Shalev-Shwartz and Zhang 2013; Smith et al. 2017.
    """

    needs = ("conjugate", "coordinate_step")

    def __init__(self, passes: float = 10.0) -> None:
        if not 0 < passes <= MOST_PASSES:
            raise ConfigError(
                f"passes={passes} must be above 0, up to {MOST_PASSES:.0e}: passes over the local rows per round."
            )
        self.passes = passes

    def draw(
        self, seed: int, round: int, users: Sequence[int] | NDArray[np.int64], counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        budgets = [max(1, math.floor(self.passes * n)) for n in counts]
        # SplitMix64: user k's rows are ordered by the numbers k·2³² + j of the round's stream, whoever else draws
        place = np.asarray(users, dtype=np.uint64)[:, None] << np.uint64(32) | np.arange(max(counts), dtype=np.uint64)
        with np.errstate(over="ignore"):
            z = generator(seed, "order", round).integers(2**64, dtype=np.uint64) + place * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
        z[np.arange(max(counts)) >= np.asarray(counts)[:, None]] = 2**64 - 1  # the padding comes last
        return torch.from_numpy(z.argsort(axis=1)[:, : max(budgets)]), torch.tensor(budgets)

    def solve(
        self, loss: Loss, rows: Rows, a: Tensor, W: Tensor, curvature: Tensor, order: Tensor, budgets: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not applies(loss, rows.X):
            return batched_pass(loss, rows, a, W, curvature, order, budgets)
        by_gram = self.passes >= 2 and rows.X.shape[1] <= GRAM_SIZE * rows.X.shape[2]
        return compiled_pass(loss, rows, a, W, curvature, order, budgets, by_gram)


def batched_pass(
    loss: Loss, rows: Rows, a: Tensor, W: Tensor, curvature: Tensor, order: Tensor, budgets: Tensor
) -> tuple[Tensor, Tensor]:
    """What `SDCA.solve` promises, on any device and for any loss with a coordinate step: all users step together."""
    K, n, d = rows.X.shape
    X, a = rows.X.reshape(K * n, d), a.flatten().clone()
    order, budgets = order.to(X.device), budgets.to(X.device)
    kappa = curvature * rows.s
    visit = torch.arange(int(budgets.max()), device=X.device)[:, None]
    place = (visit % torch.tensor(rows.counts, device=X.device)).clamp_max(order.shape[1] - 1)
    at = order.gather(1, place.T).T + n * torch.arange(K, device=X.device)  # into the users' rows laid end to end
    working = visit < budgets
    y, q = rows.y.flatten()[at], kappa * rows.square_norms.flatten()[at]
    Z, x, product = W.clone(), torch.empty_like(W), torch.empty_like(W)  # Z = W + κu: what local models would be
    # one pass of few, preallocated calls per step: they, not the arithmetic, are what a step costs
    for at_t, y_t, q_t, working_t in zip(at.unbind(), y.unbind(), q.unbind(), working.unbind(), strict=True):
        torch.index_select(X, 0, at_t, out=x)
        prediction = torch.mul(x, Z, out=product).sum(1)
        old = a.index_select(0, at_t)
        new = torch.where(working_t, loss.coordinate_step(old, prediction, y_t, q_t), old)
        a.index_copy_(0, at_t, new)
        Z.addcmul_(x, (kappa * (new - old))[:, None])
    return a.view(K, n), (Z - W) / curvature[:, None]
