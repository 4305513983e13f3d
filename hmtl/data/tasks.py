"""One user's data, checked once and for all, and the split into train and test.

Shapes: n rows (samples), d columns (features), C classes.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.data.preprocessing import Prepared, Preprocessing, Scaling
from hmtl.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Task:
    """The data of one user, kept as tensors: x as float32 if it comes so, as float64 otherwise.

    Args:
        name: what messages call this task.
        x_train, y_train: [n, d], or [n, ...] of rows with a shape, such as images; and [n]. y is float64, ±1 for two
            classes or a number to predict, unless `classes` is given.
        x_test, y_test: [n_test, d] (or [n_test, ...]) and [n_test]; n_test may be 0.
        classes: C, if y is the number of a class, 0..C−1, kept as int64.
        labels: what the classes are called, in the order of y; None: by their values of y.
        columns: what the features are called; None: they have no names.
        prepared: where this comes from, if it was preprocessed, see `Preprocessing`.

    Raises:
        DataError: a shape does not fit, there are no rows to train on, a value is NaN or infinite, or a class has no
            such number. (A user may have rows of one class alone.)
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int | None = None
    labels: tuple[Any, ...] | None = None
    columns: tuple[str, ...] | None = None
    prepared: Prepared | None = None

    def __post_init__(self) -> None:
        for field in ("x_train", "y_train", "x_test", "y_test"):
            values = torch.as_tensor(getattr(self, field))
            narrow = field.startswith("x") and values.dtype == torch.float32
            object.__setattr__(self, field, values if narrow else values.to(torch.float64))
        if self.here and (fault := next(self._faults(), None)):
            raise DataError(f"Task {self.name!r}: {fault}")
        if self.classes is not None:
            for field in ("y_train", "y_test"):
                object.__setattr__(self, field, getattr(self, field).long())

    @property
    def here(self) -> bool:
        """Whether its rows are in this process; else x and y are tensors on torch's meta device, without content."""
        return not self.x_train.is_meta

    def elsewhere(self) -> "Task":
        """This task as a process knows it that does not hold its rows."""
        x_train, y_train, x_test, y_test = (
            rows.to("meta") for rows in (self.x_train, self.y_train, self.x_test, self.y_test)
        )
        prepared = self.prepared and replace(self.prepared, raw=self.prepared.raw.elsewhere())
        return replace(self, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, prepared=prepared)

    @property
    def raw(self) -> "Task":
        """This task before it was preprocessed."""
        return self.prepared.raw if self.prepared else self

    @property
    def preprocessing(self) -> Preprocessing:
        """What was done to it."""
        return self.prepared.by if self.prepared else Preprocessing()

    @property
    def scaling(self) -> Scaling:
        """What was fitted when it was preprocessed; of a task that was not, a scaling that does nothing."""
        if self.prepared:
            return self.prepared.scaling
        one = torch.zeros(self.x_train.shape[1:], dtype=torch.float64)
        return Scaling(one, torch.ones_like(one))

    def _faults(self) -> Iterator[str]:
        """What is wrong and what to do; what comes later supposes that what came before is right."""
        for part, x, y in (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            shapes = f"x_{part} has shape {list(x.shape)}, y_{part} {list(y.shape)}"
            if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
                yield f"{shapes}. Give x as [rows, columns], or [rows, ...] of images, and one y per row."
            if not (x.numel() if part == "train" else x.shape[1]):
                yield f"{shapes}: that is empty. Give at least one row and one column."
            for name, bad in ((f"x_{part}", ~x.isfinite().flatten(1).all(dim=1)), (f"y_{part}", ~y.isfinite())):
                if bad.any():
                    first, more = int(bad.nonzero()[0]), int(bad.sum()) - 1
                    yield f"{name} is NaN or infinite in row {first} (from 0; {more} more). Fix or drop such rows."
        d, d_test = (" × ".join(map(str, x.shape[1:])) for x in (self.x_train, self.x_test))
        if d != d_test:
            yield f"x_train has {d} columns, x_test {d_test}. Give both the same columns."
        for part, y in (("train", self.y_train), ("test", self.y_test)):
            if self.classes is not None and (bad := (y < 0) | (y >= self.classes) | (y != y.floor())).any():
                first = int(bad.nonzero()[0])
                yield (
                    f"y_{part} is {y[first]:g} in row {first} (from 0), which is not one of {self.classes} classes. "
                    f"Number them 0..{self.classes - 1}."
                )

    @property
    def flat(self) -> "Task":
        """The same data with rows as vectors, x [n, d]; views."""
        if self.x_train.ndim == 2:
            return self
        other = copy.copy(self)
        for field in ("x_train", "x_test"):
            object.__setattr__(other, field, getattr(self, field).flatten(1))
        return other


def split(
    name: str,
    x: NDArray[Any],
    y: NDArray[Any],
    test_fraction: float,
    rng: np.random.Generator,
    classes: int | None = None,
    labels: tuple[Any, ...] | None = None,
    here: bool = True,
) -> Task:
    """The task of all rows, split into train and test at random; both parts get their share of each class.

    Args:
        name, classes, labels: see Task. A class too rare to be shared falls where it falls.
        x, y: [n, d] or [n, ...], and [n].
        test_fraction: share of the rows kept for testing, rounded up to whole rows (250 rows: 187 + 63). 0: none.
        rng: draws which rows.
        here: whether rows are to be held; if not, of x no more than shape and type is looked at.

    Raises:
        ConfigError: test_fraction is not in [0, 1).
        DataError: too few rows for both parts; or see Task.
    """
    if not 0 <= test_fraction < 1:
        raise ConfigError(
            f"test_fraction={test_fraction} leaves no rows to train on. Choose a value from 0 (no test) to below 1."
        )
    if not here:
        n_test = math.ceil(test_fraction * len(y))
        parts = [torch.empty(n, *x.shape[1:], device="meta") for n in (len(y) - n_test, n_test)]
        x_train, x_test = (part.to(torch.float32 if x.dtype == np.float32 else torch.float64) for part in parts)
        return Task(name, x_train, x_train.flatten(1)[:, 0], x_test, x_test.flatten(1)[:, 0], classes, labels)
    if test_fraction == 0:
        return Task(name, x, y, x[:0], y[:0], classes, labels)  # type: ignore[arg-type]  # Task makes tensors of arrays
    from sklearn.model_selection import train_test_split  # takes half a second to import

    random_state = int(rng.integers(2**31))
    cause = None
    for stratify in [y, None] if classes or set(y.tolist()) <= {-1, 1} else [None]:
        try:
            parts = train_test_split(x, y, test_size=test_fraction, stratify=stratify, random_state=random_state)
            break
        except ValueError as error:
            cause = error
    else:
        raise DataError(
            f"Task {name!r}: {len(y)} rows cannot be split with test_fraction={test_fraction}: no row would be left to "
            "train on. Give more rows, or lower the fraction."
        ) from cause
    x_train, x_test, y_train, y_test = parts
    return Task(name, x_train, y_train, x_test, y_test, classes, labels)
