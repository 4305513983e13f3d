"""What is done to features and targets before learning: fitted to training rows, and kept with the models.

K tasks, n rows and d features each; D = d, or d + 1 with an intercept.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from hmtl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hmtl.data.tasks import Task

Scope = Literal["task", "all", "none"]


Wanted = Callable[[int], Collection[int]]
"""Of K users, those whose rows are to be held in this process; of others, no more than their number."""


def everybody(K: int) -> Collection[int]:
    """All K users."""
    return range(K)


@dataclass(frozen=True, eq=False)
class Scaling:
    """What was fitted for one task.

    Args:
        mean, scale: [d] float64; 0 and 1 for a feature that is left as it is.
        intercept: whether a column of ones is appended.
        target_mean: what was subtracted from y; a prediction is in y's own units once it is added.
    """

    mean: Tensor
    scale: Tensor
    intercept: bool = False
    target_mean: float = 0.0

    def features(self, x: Tensor) -> Tensor:
        """Raw rows [n, d] to what a model takes, [n, D], of the same type."""
        scaled = ((x.double() - self.mean) / self.scale).to(x.dtype)
        return torch.cat([scaled, scaled.new_ones(len(x), 1)], dim=1) if self.intercept else scaled


@dataclass(frozen=True)
class Prepared:
    """Where a task came from: itself before, what was done to it, and what was fitted."""

    raw: "Task"
    by: "Preprocessing"
    scaling: Scaling


@dataclass(frozen=True)
class Preprocessing:
    """Centres, scales and extends the tasks' rows; called with tasks, gives new ones, which remember the old.

    With `task`, every user fits to its own training rows, and nothing travels. With `all`, every user tells the moments
    of its rows and is told those of all rows, once before the first round: 1 + 2d numbers for the features and 3 for y
    either way, which `hmtl.train` counts as part of the set-up.

    Args:
        intercept: append a column of ones, after scaling; its weight is regularised like the others.
        standardize: bring each feature to mean 0, variance 1 on the training rows of each task, or of all tasks
            together. A feature that is constant there stays as it is.
        center: subtract from y, a number, its mean over the training rows of each task, or of all tasks together.

    Raises:
        ConfigError: an unknown word; or y to be centred is the number of a class.
        DataError: tasks whose numbers of columns differ, or whose rows have a shape, as images do.
    """

    intercept: bool = False
    standardize: Scope = "none"
    center: Scope = "none"

    def __post_init__(self) -> None:
        for name in ("standardize", "center"):
            if getattr(self, name) not in ("task", "all", "none"):
                raise ConfigError(f"{name}={getattr(self, name)} is neither task, all nor none. Choose one of them.")

    def needs(self, wanted: Wanted) -> Wanted:
        """Whose rows are needed to prepare those that are wanted: all, if there is anything to do."""
        return wanted if self == Preprocessing() else everybody

    def __call__(self, tasks: Sequence["Task"]) -> tuple["Task", ...]:
        """Fitted anew to these tasks, which are taken as they were before any earlier preprocessing."""
        raws = [task.raw for task in tasks]
        if self == Preprocessing():
            return tuple(raws)
        if raws[0].x_train.ndim > 2 and (self.intercept or self.standardize != "none"):
            raise DataError(
                f"Rows have the shape {list(raws[0].x_train.shape[1:])}, and only columns get an intercept or are "
                "standardized. Set intercept=false and standardize=none."
            )
        if len(found := sorted({raw.x_train.shape[1] for raw in raws})) > 1:
            raise DataError(f"Tasks have {found[0]} to {found[-1]} columns. Give all tasks the same columns.")
        if self.center != "none" and raws[0].classes is not None:
            raise ConfigError(f"center={self.center}, but y is the number of a class. Set center=none.")
        x, y = moments([raw.x_train for raw in raws]), moments([raw.y_train[:, None] for raw in raws])
        x, y = common(x) if self.standardize == "all" else x, common(y) if self.center == "all" else y
        eps = torch.finfo(raws[0].x_train.dtype).eps
        return tuple(self._prepared(raw, of_x, of_y, eps) for raw, of_x, of_y in zip(raws, x, y, strict=True))

    def told(self, tasks: Sequence["Task"]) -> list[Tensor]:
        """What users have to tell of themselves for the scopes `all`: `moments`, [K, 1 + 2d] and [K, 3]."""
        raws = [task.raw for task in tasks]
        parts = {"standardize": [raw.x_train for raw in raws], "center": [raw.y_train[:, None] for raw in raws]}
        return [moments(rows) for scope, rows in parts.items() if getattr(self, scope) == "all"]

    def _prepared(self, raw: "Task", x: Tensor, y: Tensor, eps: float) -> "Task":
        mean, variance = x[1:].chunk(2)
        scale = variance.sqrt()
        # constant, but for what rounding made of it
        left = torch.full_like(mean, self.standardize == "none").bool() | (scale <= 10 * eps * mean.abs())
        target_mean = 0.0 if self.center == "none" else float(y[1])
        scaling = Scaling(mean.masked_fill(left, 0), scale.masked_fill(left, 1), self.intercept, target_mean)
        return replace(
            raw,
            x_train=scaling.features(raw.x_train),
            y_train=raw.y_train - target_mean,
            x_test=scaling.features(raw.x_test),
            y_test=raw.y_test - target_mean,
            prepared=Prepared(raw, self, scaling),
        )


def moments(parts: Sequence[Tensor]) -> Tensor:
    """Of rows [n_k, d]: n_k, means, variances, [K, 1 + 2d] float64."""
    rows = [part.double() for part in parts]
    return torch.stack([torch.cat([r.new_tensor([len(r)]), r.mean(0), r.var(0, correction=0)]) for r in rows])


def common(moments: Tensor) -> Tensor:
    """Those of all rows together, for each user the same [K, 1 + 2d]."""
    n, mean, variance = torch.split(moments, [1, *[moments.shape[1] // 2] * 2], dim=1)
    weight, total = n / n.sum(), n.sum(0)
    center = (weight * mean).sum(0)
    spread = (weight * (variance + (mean - center).square())).sum(0)  # within the users, and between them
    return torch.cat([total, center, spread]).expand_as(moments)
