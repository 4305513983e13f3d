"""The learning problem of all users, its dual, and the gap between them.

K users, n_k training rows of user k, n = max n_k, d features. W, V [d, K] hold one user per column; a [K, n] are the
duals, zero in the padding beyond n_k.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hmtl.data import Task
from hmtl.errors import ConfigError, DataError
from hmtl.mtl.losses import Loss
from hmtl.mtl.regularizers import Regularizer


@dataclass(frozen=True)
class Rows:
    """Training rows of all users, padded with rows of zeros: what the user side computes on.

    Attributes:
        X: [K, n, d].
        y: [K, n].
        square_norms: [K, n], ‖x_kj‖².
        counts: n_k, K numbers.
        s: [K], weight of a row in the objective: 1 or 1/n_k.
    """

    X: Tensor
    y: Tensor
    square_norms: Tensor
    counts: tuple[int, ...]
    s: Tensor

    def of(self, user: int) -> "Rows":
        """The rows of one user, without padding, as K = 1; a view, no copy."""
        n, one = self.counts[user], slice(user, user + 1)
        return Rows(self.X[one, :n], self.y[one, :n], self.square_norms[one, :n], (n,), self.s[one])


class Problem:
    """P(W) = Σ_k s_k Σ_j ℓ(w_k·x_kj, y_kj) + R(W, Ω), with s_k = 1/n_k (mean) or 1 (sum, the paper's).

    Args:
        tasks: one per user. Rows that have a shape are vectors here, `shape` says of what.
        loss, regularizer: ℓ and R; the problem keeps copies of its own, `regularizer` prepared for these tasks.
        reduction: "mean" or "sum" over a user's rows.
        device: where the training rows live and everything is computed.

    Raises:
        DataError: no task, one with other columns than the first, or a label that the loss does not take. (Empty
            tasks, values that are not finite, and tasks of one class are refused by Task itself.)

    Ref: Hu et al. 2022, eq. (1).
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        loss: Loss,
        regularizer: Regularizer,
        reduction: Literal["mean", "sum"] = "mean",
        device: str | torch.device = "cpu",
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ConfigError(f'reduction={reduction!r} is neither "mean" nor "sum".')
        if not tasks:
            raise DataError("There are no tasks: a problem has at least one user. Check the data set's K.")
        self.shape = tuple(tasks[0].x_train.shape[1:])
        for task in tasks:
            if task.x_train.shape[1:] != self.shape:
                own, first = (" × ".join(map(str, shape)) for shape in (task.x_train.shape[1:], self.shape))
                raise DataError(
                    f"Task {task.name!r} has {own} columns, task {tasks[0].name!r} has {first}: coupled "
                    "models have the same features. Give all tasks the same columns."
                )
            if loss.classes != bool(task.classes) or task.classes != tasks[0].classes:
                raise DataError(
                    f"Task {task.name!r} has classes={task.classes}: {type(loss).__name__} "
                    f"{'needs' if loss.classes else 'takes no'} numbered classes, the same in all tasks. "
                    "Choose loss=cross_entropy for several classes, another for two or for numbers."
                )
            found = set(task.y_train.tolist()) | set(task.y_test.tolist())
            if loss.labels is not None and not found <= set(loss.labels):
                raise DataError(
                    f"Task {task.name!r} has the label {min(found - set(loss.labels)):g}, {type(loss).__name__} takes "
                    f"{loss.labels} only. Recode y, or choose a loss for regression."
                )
        tasks = [task.flat for task in tasks]
        self.tasks, self.loss = tuple(tasks), copy.deepcopy(loss).to(device)
        X = pad_sequence([t.x_train.to(device, torch.float64) for t in tasks], batch_first=True)
        y = pad_sequence([t.y_train.to(device, torch.float64) for t in tasks], batch_first=True, padding_value=1.0)
        counts = torch.tensor([len(t.y_train) for t in tasks], dtype=torch.float64, device=device)
        s = 1 / counts if reduction == "mean" else torch.ones_like(counts)
        self.rows = Rows(X, y, torch.linalg.vecdot(X, X), tuple(len(t.y_train) for t in tasks), s)
        self._weights = s[:, None] * (torch.arange(X.shape[1], device=device) < counts[:, None])
        self.K, self.d = X.shape[0], X.shape[2]
        self.outputs = (loss.classes and tasks[0].classes) or 1  # numbers in a prediction
        self.regularizer = self._prepared(regularizer)

    def regularized(self, regularizer: Regularizer) -> "Problem":
        """The same tasks and loss under another regularizer."""
        other = copy.copy(self)  # shares the rows
        other.regularizer = self._prepared(regularizer)
        return other

    def facts(self) -> Tensor:
        """What the users tell of themselves before the first round, [K, f]; see `Regularizer.facts`."""
        return self._facts(self.regularizer)

    def _facts(self, regularizer: Regularizer) -> Tensor:
        return torch.stack([regularizer.facts(task) for task in self.tasks])

    def _prepared(self, regularizer: Regularizer) -> Regularizer:
        return regularizer.prepared(self._facts(regularizer)).to(self.rows.X.device)

    @torch.no_grad()
    def losses(self, W: Tensor) -> Tensor:
        """Σ_k s_k Σ_j ℓ(w_k·x_kj, y_kj), a scalar."""
        prediction = torch.bmm(self.rows.X, W.T[:, :, None])[:, :, 0]
        total: Tensor = (self._weights * self.loss(prediction, self.rows.y)).sum()
        return total

    @torch.no_grad()
    def conjugates(self, a: Tensor) -> Tensor:
        """Σ_k s_k Σ_j ℓ*(−a_kj), a scalar."""
        return (self._weights * self.loss.conjugate(a, self.rows.y)).sum()

    def combined(self, a: Tensor) -> Tensor:
        """V [d, K], v_k = s_k Σ_j a_kj x_kj, as the duals have it."""
        V: Tensor = torch.bmm((self.rows.s[:, None] * a)[:, None], self.rows.X)[:, 0].T
        return V

    @torch.no_grad()
    def primal(self, W: Tensor, Omega: Tensor) -> float:
        """P(W), an upper bound on the optimum."""
        return float(self.losses(W) + self.regularizer(W, Omega))

    @torch.no_grad()
    def dual(self, a: Tensor, Omega: Tensor) -> float:
        """D(a) = −Σ_k s_k Σ_j ℓ*(−a_kj) − ½ tr(V A⁻¹ Vᵀ), v_k = s_k Σ_j a_kj x_kj, a lower bound on the optimum."""
        return -float(self.conjugates(a) + self.regularizer.conjugate(self.combined(a), Omega))

    def errors(self, W: Tensor, split: str) -> Tensor:
        """Mean error of each user's model on its own `train` or `test` rows, [K]: misclassified, or squared."""
        W = W.to(self.tasks[0].x_train.device)
        parts = [(t.x_train, t.y_train) if split == "train" else (t.x_test, t.y_test) for t in self.tasks]
        return torch.stack([self.loss.error(x.to(w.dtype) @ w, y).mean() for (x, y), w in zip(parts, W.T, strict=True)])


def sigma_prime(B: Tensor) -> float:
    """σ′ = max_k Σ_l |B_kl| / B_kk, which makes it safe to add all users' updates.  Ref: Smith et al. 2017."""
    return float((B.abs().sum(1) / B.diagonal()).max())
