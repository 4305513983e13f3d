"""Scaling of features and centering of targets, fitted to training rows.

Shapes: K tasks, n rows and d features each; D = d, or d + 1 with an intercept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.sparse import csr_array, hstack, issparse
from torch import Tensor

from hmtl.data.sparse import Features
from hmtl.errors import ConfigError, DataError

TRANSFORM_CHUNK_ROWS = 1024  # rows of which intermediate results are in memory
Scope = Literal["task", "all", "none"]
"""The training rows that a statistic is computed from: each task's own, those of all tasks, or none."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """The scaling that was fitted for one task.

    Args:
        mean: mean of each feature, [d] float64; 0 for a feature that stays unchanged.
        scale: standard deviation of each feature, [d] float64; 1 for a feature that stays unchanged.
        intercept: whether a column of ones is appended.
        target_mean: the number that was subtracted from y; add it to a prediction to get back to the original y.
    """

    mean: Tensor
    scale: Tensor
    intercept: bool = False
    target_mean: float = 0.0

    def targets(self, y: Tensor) -> Tensor:
        """Return raw targets as the problem has them; class numbers are never shifted."""
        return y - self.target_mean if self.target_mean else y

    def features(self, x: Features, in_place: bool = False) -> Features:
        """Return the model's input [n, D] for raw rows [n, d], in the same dtype; sparse rows are not scaled.

        `in_place` writes dense input over raw rows, behind each of which there has to be room for an intercept.
        """
        if issparse(x):
            return hstack([x, csr_array(np.ones((x.shape[0], 1)))], format="csr") if self.intercept else x
        n, d, *rest = x.shape
        shape = (n, d + self.intercept, *rest)
        rows = x.as_strided(shape, x.stride()) if in_place else x.new_empty(shape)
        for raw, own in zip(torch.split(x, TRANSFORM_CHUNK_ROWS), torch.split(rows, TRANSFORM_CHUNK_ROWS), strict=True):
            own[:, :d] = (raw.double() - self.mean) / self.scale
        rows[:, d:] = 1
        return rows


@dataclass(frozen=True)
class Preprocessing:
    """Settings of the preprocessing: `prepare(tasks, preprocessing)` applies it.

    With scope "task", each user fits to its own training rows and sends nothing. With scope "all", each user sends the
    moments of its rows before the first round and receives those of all rows, 1 + 2d numbers for the features and 3 for
    y in each direction; `hmtl.train` counts them as set-up.

    Args:
        intercept: append a column of ones after scaling. Its weight is regularized like the other weights.
        standardize: the scope on whose training rows each feature is scaled to mean 0 and variance 1. A feature that is
            constant there stays unchanged.
        center: the scope over whose training rows the mean of y, a number to predict, is taken and subtracted.

    Raises:
        ConfigError: if a scope is not "task", "all" or "none".
    """

    intercept: bool = False
    standardize: Scope = "none"
    center: Scope = "none"

    def __post_init__(self) -> None:
        for name in ("standardize", "center"):
            if getattr(self, name) not in get_args(Scope):
                raise ConfigError(f"{name}={getattr(self, name)} is not one of task, all and none. Choose one of them.")

    @property
    def is_shared(self) -> bool:
        """Whether all tasks get the same scaling."""
        return "task" not in (self.standardize, self.center)

    def fit(self, x: Sequence[Features], y: Sequence[Tensor]) -> list[Scaling]:
        """Return the scaling of each task.

        Args:
            x: training rows of each task, [n_k, d].
            y: training targets of each task, [n_k].

        Raises:
            DataError: if tasks have different numbers of columns, if sparse rows are to be standardized, or if rows
                with a shape, such as images, are to be standardized or get an intercept.
        """
        if self.standardize != "none" and any(map(issparse, x)):
            raise DataError(
                f"Rows are sparse, and standardize={self.standardize} would center them, so that no number would be "
                "zero. Set standardize=none, and scale the columns without centering if they need it."
            )
        if x[0].ndim > 2 and (self.intercept or self.standardize != "none"):
            raise DataError(
                f"Rows have the shape {list(x[0].shape[1:])}, and only vectors can get an intercept or be "
                "standardized. Set intercept=false and standardize=none."
            )
        if len(widths := sorted({rows.shape[1] for rows in x})) > 1:
            raise DataError(f"Tasks have {widths[0]} to {widths[-1]} columns. Give all tasks the same columns.")
        K, shape = len(x), x[0].shape[1:]
        zeros = torch.zeros(shape, dtype=torch.float64)
        mean, scale = [zeros] * K, [torch.ones_like(zeros)] * K
        if self.standardize != "none":
            means, variances = _moments_in(self.standardize, x)[:, 1:].chunk(2, dim=1)
            scales = variances.sqrt()
            constant = scales <= 10 * torch.finfo(x[0].dtype).eps * means.abs()  # up to rounding
            # clones, since a view is sent and saved with the rows of all users behind it
            mean = [each.clone() for each in means.masked_fill(constant, 0)]
            scale = [each.clone() for each in scales.masked_fill(constant, 1)]
        target_means = [0.0] * K
        if self.center != "none":
            target_means = _moments_in(self.center, [each[:, None] for each in y])[:, 1].tolist()
        fitted = zip(mean, scale, target_means, strict=True)
        return [Scaling(mean, scale, self.intercept, target_mean) for mean, scale, target_mean in fitted]

    def shared_moments(self, x: Sequence[Features], y: Sequence[Tensor]) -> list[Tensor]:
        """Return the moments that users send for the scopes "all": [K, 1 + 2d] of x, [K, 3] of y, or neither."""
        scopes = [(self.standardize, x), (self.center, [each[:, None] for each in y])]
        return [moments(rows) for scope, rows in scopes if scope == "all"]


RAW = Preprocessing()
"""No preprocessing."""


def moments(rows: Sequence[Tensor]) -> Tensor:
    """Return n_k, the means and the variances of each task's rows [n_k, d], as [K, 1 + 2d] float64."""
    parts = (each.double() for each in rows)
    return torch.stack([torch.cat([x.new_tensor([len(x)]), x.mean(0), x.var(0, correction=0)]) for x in parts])


def pooled(moments: Tensor) -> Tensor:
    """Return the moments of all tasks' rows together, from those of each task: [K, 1 + 2d] with equal rows."""
    d = moments.shape[1] // 2
    n, mean, variance = torch.split(moments, [1, d, d], dim=1)
    weight, total = n / n.sum(), n.sum(0)
    center = (weight * mean).sum(0)
    spread = (weight * (variance + (mean - center).square())).sum(0)  # within the tasks, and between them
    return torch.cat([total, center, spread]).expand_as(moments)


def _moments_in(scope: Scope, rows: Sequence[Tensor]) -> Tensor:
    return pooled(moments(rows)) if scope == "all" else moments(rows)
