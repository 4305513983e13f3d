"""The learning problem of all users, its dual, and the gap between them.

Some users' rows may be elsewhere: then a process computes for its own users alone, and K stands for these wherever
there are rows, duals or models.

K users, n_k training rows of user k, n = max n_k, d features. W, V [d, K] hold one user per column; a [K, n] are the
duals, zero in the padding beyond n_k. Where there are C classes, a model has a score for each of them, one after the
other: W, V are [C·d, K], a is [K, C·n].
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hmtl.data import Task
from hmtl.errors import ConfigError, DataError
from hmtl.mtl.losses import Loss, OneVsRest
from hmtl.mtl.regularizers import Regularizer
from hmtl.mtl.sums import Grid
from hmtl.rng import generator


@dataclass(frozen=True)
class Rows:
    """Training rows of all users, padded with rows of zeros: what the user side computes on.

    Attributes:
        X: [K, n, d].
        y: [K, n].
        square_norms: [K, n], ‖x_kj‖².
        counts: n_k, K numbers.
        s: [K], weight of a row in the objective: 1 or 1/n_k.
        made: what was computed of X, kept for all that share it.
    """

    X: Tensor
    y: Tensor
    square_norms: Tensor
    counts: tuple[int, ...]
    s: Tensor
    made: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def gram(self) -> Tensor:
        """XXᵀ of each user, [K, n, n]."""
        if "gram" not in self.made:
            self.made["gram"] = self.X @ self.X.mT
        return self.made["gram"]

    def of(self, user: int) -> "Rows":
        """The rows of one user, without padding, as K = 1; a view, no copy."""
        n, one = self.counts[user], slice(user, user + 1)
        made = {name: gram[one, :n, :n] for name, gram in self.made.items()}
        return Rows(self.X[one, :n], self.y[one, :n], self.square_norms[one, :n], (n,), self.s[one], made)


class Problem:
    """P(W) = Σ_k s_k Σ_j ℓ(w_k·x_kj, y_kj) + R(W, Ω), with s_k = 1/n_k (mean) or 1 (sum, the paper's).

    Of a margin loss and C classes, Σ_c ℓ(w_kc·x_kj, ±1) takes the place of ℓ: see `OneVsRest`. All scores of a user are
    one model, coupled with those of others by one Ω.

    Args:
        tasks: one per user, those elsewhere included, see `Task.here`. Rows that have a shape are vectors here, `shape`
            says of what.
        loss, regularizer: ℓ and R; the problem keeps copies of its own, `regularizer` prepared for these tasks.
        reduction: "mean" or "sum" over a user's rows.
        device: where the training rows live and everything is computed.
        fraction_bits: p of the grid 2^-p to which terms of sums over users are rounded, see `Grid`.

    Raises:
        DataError: no task, one with other columns than the first, or a label that the loss does not take. (Empty
            tasks and values that are not finite are refused by Task itself.)

    Ref: Hu et al. 2022, eq. (1).
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        loss: Loss,
        regularizer: Regularizer,
        reduction: Literal["mean", "sum"] = "mean",
        device: str | torch.device = "cpu",
        fraction_bits: int = 40,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ConfigError(f'reduction={reduction!r} is neither "mean" nor "sum".')
        if not tasks:
            raise DataError("There are no tasks: a problem has at least one user. Check the data set's K.")
        if tasks[0].classes and loss.labels == (-1.0, 1.0):
            loss = OneVsRest(loss)
        self.shape = tuple(tasks[0].x_train.shape[1:])
        for task in tasks:
            if task.x_train.shape[1:] != self.shape:
                own, first = (" × ".join(map(str, shape)) for shape in (task.x_train.shape[1:], self.shape))
                raise DataError(
                    f"Task {task.name!r} has {own} columns, task {tasks[0].name!r} has {first}: coupled "
                    "models have the same features. Give all tasks the same columns."
                )
            if task.classes != tasks[0].classes:
                raise DataError(
                    f"Task {task.name!r} has classes={task.classes}, task {tasks[0].name!r} has {tasks[0].classes}: "
                    "number the classes alike in all tasks."
                )
            if bool(task.classes) != loss.classes:
                raise DataError(f"Task {task.name!r} has {_mismatch(task, loss)}")
            found = set(task.y_train.tolist()) | set(task.y_test.tolist()) if task.here else set()
            if loss.labels is not None and not found <= set(loss.labels):
                raise DataError(
                    f"Task {task.name!r} has the label {min(found - set(loss.labels)):g}, {type(loss).__name__} takes "
                    f"{loss.labels} only: choose loss=squared for numbers to predict, dataset.kind=classification for "
                    "classes."
                )
        self.grid = Grid(fraction_bits, len(tasks))
        self.users = np.array([k for k, task in enumerate(tasks) if task.here], dtype=np.int64)
        self.everybody = tuple(task.flat for task in tasks)
        self.tasks, self.loss = tuple(self.everybody[k] for k in self.users), copy.deepcopy(loss).to(device)
        self.counts = tuple(len(task.y_train) for task in tasks)
        self.K, self.d = len(tasks), self.everybody[0].x_train.shape[1]
        self.here = tuple(self.counts[k] for k in self.users)
        counts = torch.tensor(self.here, dtype=torch.float64, device=device)
        self.s = 1 / counts if reduction == "mean" else torch.ones_like(counts)
        self.there = torch.arange(max(self.counts), device=device) < counts[:, None]
        self._padded: dict[torch.dtype, Rows] = {}  # which copies of the problem share
        self.outputs = tasks[0].classes or 1  # numbers in a prediction
        self.size = self.outputs * self.d  # numbers in a linear model
        self.binary = self.loss.binary if isinstance(self.loss, OneVsRest) else self.loss  # of one score
        self.regularizer = self._prepared(regularizer)

    def padded(self, dtype: torch.dtype) -> Rows:
        """The training rows as numbers of a type.

        If it is their own, tasks share their memory from then on.
        """
        if dtype in self._padded:
            return self._padded[dtype]
        # as many rows as the user with most has, wherever it is: numbers shall not depend on who shares a process
        X = torch.zeros(len(self.tasks), max(self.counts), self.d, dtype=dtype, device=self.s.device)
        y = X.new_ones(X.shape[:2])
        for k, task in enumerate(self.tasks):
            X[k, : len(task.x_train)], y[k, : len(task.y_train)] = task.x_train, task.y_train
        if X.is_cpu and all(task.x_train.dtype == dtype for task in self.tasks):
            self.tasks = tuple(_with_rows(task, x[: len(task.x_train)]) for task, x in zip(self.tasks, X, strict=True))
            mine = dict(zip(self.users.tolist(), self.tasks, strict=True))
            self.everybody = tuple(mine.get(k, task) for k, task in enumerate(self.everybody))
        square_norms = torch.zeros_like(y)
        for norms, x in zip(square_norms, X, strict=True):  # at once they would take as much memory as X
            norms.copy_(torch.linalg.vecdot(x, x))
        self._padded[dtype] = Rows(X, y, square_norms, self.here, self.s.to(dtype))
        return self._padded[dtype]

    @property
    def rows(self) -> Rows:
        """The training rows in double precision, which certificates need."""
        return self.padded(torch.float64)

    @cached_property
    def scores(self) -> tuple[Rows, ...]:
        """For each score of a prediction, the rows with its own y."""
        if not isinstance(self.loss, OneVsRest):
            return (self.rows,)
        signs = OneVsRest.signs(self.rows.y.new_empty(self.outputs), self.rows.y).unbind(-1)
        return tuple(replace(self.rows, y=sign.contiguous()) for sign in signs)

    @property
    def _weights(self) -> Tensor:
        """[K, n], s_k, and zero in the padding."""
        return self.s[:, None] * self.there

    def regularized(self, regularizer: Regularizer) -> "Problem":
        """The same tasks and loss under another regularizer."""
        other = copy.copy(self)  # shares the rows
        other.regularizer = self._prepared(regularizer)
        return other

    def facts(self) -> Tensor:
        """What the users tell of themselves before the first round, [K, f]; see `Regularizer.facts`."""
        return self._facts(self.regularizer)

    def _facts(self, regularizer: Regularizer) -> Tensor:
        if self.tasks:
            return torch.stack([regularizer.facts(task) for task in self.tasks])
        return regularizer.facts(_any_task(self.everybody[0]))[None][:0]

    def _prepared(self, regularizer: Regularizer) -> Regularizer:
        facts = self._facts(regularizer)
        if len(facts) < self.K:  # users elsewhere tell theirs in the set-up; until then, any will do
            facts = torch.from_numpy(generator(0, "stand-in").normal(size=(self.K, facts.shape[1])))
        return regularizer.prepared(facts).to(self.s.device)

    @torch.no_grad()
    def losses(self, W: Tensor) -> Tensor:
        """s_k ℓ(w_k·x_kj, y_kj), [K, n]; zero in the padding."""
        prediction = torch.bmm(self.rows.X, self._by_score(W.T).transpose(1, 2))
        losses: Tensor = self._weights * self.loss(self._predicted(prediction), self.rows.y)
        return losses

    def _by_score(self, flat: Tensor) -> Tensor:
        """Models or duals [K, C·m] as [K, C, m]."""
        return flat.reshape(len(flat), self.outputs, -1)

    def _predicted(self, scores: Tensor) -> Tensor:
        """Scores [..., C] as losses take them, [...] where C = 1."""
        return scores if self.loss.classes else scores[..., 0]

    @torch.no_grad()
    def conjugates(self, a: Tensor) -> Tensor:
        """s_k ℓ*(−a_kj), [K, n]; zero in the padding."""
        duals = self._predicted(self._by_score(a).transpose(1, 2))
        return self._weights * self.loss.conjugate(duals, self.rows.y)

    def combined(self, a: Tensor) -> Tensor:
        """V [d, K], v_k = s_k Σ_j a_kj x_kj, as the duals have it."""
        V: Tensor = torch.bmm(self._by_score(self.rows.s[:, None] * a), self.rows.X).flatten(1).T
        return V

    @torch.no_grad()
    def primal(self, W: Tensor, Omega: Tensor) -> float:
        """P(W), an upper bound on the optimum."""
        return float(self.losses(W).sum() + self.regularizer(W, Omega))

    @torch.no_grad()
    def dual(self, a: Tensor, Omega: Tensor) -> float:
        """D(a) = −Σ_k s_k Σ_j ℓ*(−a_kj) − ½ tr(V A⁻¹ Vᵀ), v_k = s_k Σ_j a_kj x_kj, a lower bound on the optimum."""
        return -float(self.conjugates(a).sum() + self.regularizer.conjugate(self.combined(a), Omega))

    def errors(self, W: Tensor, split: str) -> Tensor:
        """Mean error of each user's model on its own `train` or `test` rows, [K]: misclassified, or squared."""
        W = W.cpu()
        parts = [(t.x_train, t.y_train) if split == "train" else (t.x_test, t.y_test) for t in self.tasks]
        models = self._by_score(W.T).transpose(1, 2)  # [K, d, C]
        errors = [
            self.loss.error(self._predicted(x.to(w.dtype) @ w), y).mean()
            for (x, y), w in zip(parts, models, strict=True)
        ]
        return torch.stack(errors)

    def figures(self, split: str, errors: Tensor) -> dict[str, float]:
        """Of each user's mean error [K] on its `train` or `test` rows: the users' mean, the worst user's, and R².

        R² is in regression only, 1 − Σ(p − y)² / Σ(y − ȳ)² over the rows of all users together, ȳ their common mean
        before any centring: the "explained variance" of the multi-task literature. Users without such rows do not
        count, and where nobody has any, there are no figures.

        Ref: Bakker and Heskes 2003.
        """
        counts = torch.tensor([len(getattr(task, f"y_{split}")) for task in self.everybody])
        errors, counts = errors.cpu()[counts > 0], counts[counts > 0]
        if not len(errors):
            return {}
        figures = {f"{split}_error": float(errors.mean()), f"{split}_error_worst": float(errors.max())}
        if self.loss.measure != "mean squared error":
            return figures
        y = torch.cat([getattr(task.raw, f"y_{split}") for task in self.everybody])
        if y.min() < y.max():  # of one number throughout, there is no R²
            total = float((y - y.mean()).square().sum())
            figures[f"{split}_r2"] = 1 - float(counts.to(errors) @ errors) / total
        return figures


def _with_rows(task: Task, x_train: Tensor) -> Task:
    """The task with its training rows in that place."""
    other = copy.copy(task)
    object.__setattr__(other, "x_train", x_train)
    return other


def _any_task(like: Task) -> Task:
    """Two rows of the same shape as that task's."""
    x, y = torch.zeros(2, *like.x_train.shape[1:]), torch.tensor([0.0, 1.0] if like.classes else [-1.0, 1.0])
    return Task("any", x, y, x[:0], y[:0], like.classes)


def _mismatch(task: Task, loss: Loss) -> str:
    """What labels a task has that a loss does not take, and all that has to be chosen."""
    name, choices = type(loss).__name__, "hinge, smooth_hinge or logistic"
    if task.classes:
        return (
            f"{task.classes} classes, {name} takes numbers: choose loss={choices}; with algorithm=fedu, fedavg, "
            "fedprox, ditto or pfedme also cross_entropy; if y are numbers to predict, dataset.kind=regression."
        )
    if task.here and set(task.y_train.tolist()) <= {-1.0, 1.0}:
        return f"two classes as y = ±1, {name} needs them numbered 0..C−1: choose loss={choices}."
    return f"numbers to predict, {name} needs classes: choose loss=squared."


def sigma_prime(B: Tensor) -> float:
    """`σ′ = max_k Σ_l |B_kl| / B_kk`, which makes it safe to add all users' updates.  Ref: Smith et al. 2017."""
    return float((B.abs().sum(1) / B.diagonal()).max())
