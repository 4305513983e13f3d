"""One user's data, checked once and for all, and the split into train and test.

Shapes: n rows (samples), d columns (features).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor

from hmtl.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Task:
    """The data of one user, kept as float64 tensors.

    Args:
        name: what messages call this task.
        x_train, y_train: [n, d] and [n]; y is ±1 for classification.
        x_test, y_test: [n_test, d] and [n_test].

    Raises:
        DataError: a shape does not fit, a part is empty, a value is NaN or infinite, or y_train has one value only.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    def __post_init__(self) -> None:
        for field in ("x_train", "y_train", "x_test", "y_test"):
            object.__setattr__(self, field, torch.as_tensor(getattr(self, field), dtype=torch.float64))
        if fault := next(self._faults(), None):
            raise DataError(f"Task {self.name!r}: {fault}")

    def _faults(self) -> Iterator[str]:
        """What is wrong and what to do; what comes later supposes that what came before is right."""
        for part, x, y in (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            shapes = f"x_{part} has shape {list(x.shape)}, y_{part} {list(y.shape)}"
            if x.ndim != 2 or y.ndim != 1 or len(x) != len(y):
                yield f"{shapes}. Give x as [rows, columns] and one y per row."
            if not x.numel():
                yield f"{shapes}: that is empty. Give at least one row and one column."
            for name, bad in ((f"x_{part}", ~x.isfinite().all(dim=1)), (f"y_{part}", ~y.isfinite())):
                if bad.any():
                    first, more = int(bad.nonzero()[0]), int(bad.sum()) - 1
                    yield f"{name} is NaN or infinite in row {first} (from 0; {more} more). Mend or drop such rows."
        d, d_test = self.x_train.shape[1], self.x_test.shape[1]
        if d != d_test:
            yield f"x_train has {d} columns, x_test {d_test}. Give both the same columns."
        if (self.y_train == self.y_train[0]).all():
            yield f"y_train is {self.y_train[0]:g} in all rows: one class only. Add rows of another, or drop the task."


def split(
    x: NDArray[Any], y: NDArray[Any], test_fraction: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Deal the rows into train and test at random; with two classes, both parts get their share of each.

    Args:
        x, y: [n, d] and [n].
        test_fraction: share of the rows kept for testing, rounded up to whole rows (250 rows: 187 + 63).
        rng: draws which rows.

    Returns:
        x_train, y_train, x_test, y_test, as Task takes them.

    Raises:
        ConfigError: test_fraction is not between 0 and 1.
        DataError: too few rows for both parts.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction={test_fraction} leaves one part empty. Choose a value between 0 and 1.")
    stratify = y if len(np.unique(y)) == 2 else None
    random_state = int(rng.integers(2**31))
    try:
        train, test = train_test_split(
            np.arange(len(y)), test_size=test_fraction, stratify=stratify, random_state=random_state
        )
    except ValueError as error:
        raise DataError(
            f"{len(y)} rows cannot be split with test_fraction={test_fraction} so that both parts hold every class. "
            f"Give more rows, or bring the fraction nearer to 0.5."
        ) from error
    samples, labels = torch.as_tensor(x), torch.as_tensor(y)
    return samples[train], labels[train], samples[test], labels[test]
