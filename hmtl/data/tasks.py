"""Task: one user's training and test rows, checked once when they are created.

Shapes: n rows, d features, C classes.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from torch import Tensor
from torch.utils.data import Dataset, Subset

from hmtl.data.items import Items
from hmtl.data.preprocessing import RAW, Preprocessing, Scaling
from hmtl.data.sparse import Features, checked, finite, stored
from hmtl.data.table_features import FittedTable
from hmtl.errors import ConfigError, DataError
from hmtl.io.described import Described

ClassWeight = Literal["balanced"] | None
SPLITS = ("train", "test", "validation")
ROW_FIELDS = tuple(f"{name}_{split}" for split in SPLITS for name in "xy")
MAX_ABS_VALUE = 1e150
"""The largest size of a number in x or y: sums of squares stay below the largest float64."""


@dataclass(frozen=True, eq=False, repr=False)
class Task(Described):
    """The data of one user as tensors: x stays float32 if it is, and becomes float64 otherwise.

    Sparse rows, of any format of SciPy, become float64 in CSR.

    Args:
        name: name of the task in messages and reports.
        x_train, y_train: [n, d], or [n, ...] for rows with a shape such as images, and [n]. x may
            be sparse. y is float64, ±1 for two classes or a number to predict, unless `classes` is given.
        x_test, y_test: [n_test, d] (or [n_test, ...]) and [n_test]; n_test may be 0.
        x_validation, y_validation: the same for validation rows, see `with_validation`; None: there are none.
        classes: C if y holds class numbers 0..C−1, which become int64; None otherwise.
        labels: names of the classes in the order of y; None: the values of y are their names.
        columns: names of the features, or of the raw columns of a `table`; None: they have no names.
        class_weight: "balanced": the weights of training rows in the objective, see `weights`; None: all are 1.
        sample_weight: relative weights of the training rows, [n] numbers above 0; None: all are equal.
        prepared: origin of a preprocessed task, see `prepare`.
        dataset: the training rows as a torch Dataset, with whose transforms networks are trained (see `LocalTrainer`);
            None: networks are trained on x_train. All else uses x_train, which holds the same rows in the same order.
        table: the features of raw tables with categories or missing numbers; None: the features are the columns.
        items: the rows as networks read them; x then holds their numbers [n, 1], int64. None: x holds the rows.
        example: inputs and targets of two `items`, tensors without content, which also processes know that do not hold
            the rows; None: there are no items.

    Attributes:
        has_integers: whether y was given as integers or booleans, see `classified`.

    Raises:
        DataError: if shapes do not match, there are no training rows, a value is NaN, infinite or above 1e150, or a
            class number is not in 0..C−1. A user may have rows of one class only.
    """

    _shown = ("name", "classes", "labels")
    name: str
    x_train: Features
    y_train: Tensor
    x_test: Features
    y_test: Tensor
    classes: int | None = None
    labels: tuple[Any, ...] | None = None
    columns: tuple[str, ...] | None = None
    class_weight: ClassWeight = None
    sample_weight: NDArray[np.float64] | None = None
    prepared: "Prepared | None" = None
    dataset: Dataset[Any] | None = None
    table: FittedTable | None = None
    items: Items | None = None
    example: Any = None
    x_validation: Features = None
    y_validation: Tensor = None  # type: ignore[assignment]  # becomes a tensor without rows
    has_integers: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for name in ROW_FIELDS:
            if name.endswith("validation") and getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self, name.replace("validation", "test"))[:0])
            values = getattr(self, name)
            if issparse(values):
                try:
                    object.__setattr__(self, name, checked(values))
                except ValueError as error:
                    raise DataError(f"Task {self.name!r}: {name} is not a valid sparse array ({error}).") from error
                continue
            values = torch.as_tensor(values)
            if name == "y_train":
                object.__setattr__(self, "has_integers", not values.is_floating_point())
            narrow = name.startswith("x") and (values.dtype == torch.float32 or self.example is not None)
            object.__setattr__(self, name, values if narrow else values.to(torch.float64))
        self._check()
        if self.classes is not None:
            for name in ("y_train", "y_test", "y_validation"):
                object.__setattr__(self, name, getattr(self, name).long())

    def _check(self) -> None:
        if self.is_local and (fault := next(self._faults(), None)):
            raise DataError(f"Task {self.name!r}: {fault}")

    @property
    def is_local(self) -> bool:
        """Whether this process holds the rows. If not, x and y are tensors without content on the meta device."""
        return self.is_sparse or not self.x_train.is_meta

    @property
    def is_sparse(self) -> bool:
        """Whether this process holds the rows, as CSR arrays."""
        return bool(issparse(self.x_train))

    def renamed(self, name: str) -> "Task":
        """Return this task with another name."""
        return self._with(name=name)

    def _with(self, **values: Any) -> "Task":
        """Return this task with other values, which need no checks."""
        task = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(task, name, value)
        return task

    def without_rows(self, targets: bool = True) -> "Task":
        """Return this task without its rows and its scaling, as processes know it that do not hold them.

        Without `targets`, these stay.
        """
        rows = {name: getattr(self, name) for name in ROW_FIELDS if targets or name.startswith("x")}
        empty: dict[str, Any] = {
            name: _without_content(tuple(each.shape), stored(each).dtype) for name, each in rows.items()
        }
        prepared, table = self.prepared, self.table
        if table:
            table = FittedTable(table.features, tuple(facts.to("meta") for facts in table.told))
        if prepared:
            mean, scale = (fitted.to("meta") for fitted in (self.scaling.mean, self.scaling.scale))
            scaling = Scaling(mean, scale, self.scaling.intercept)
            prepared = Prepared(prepared.raw.without_rows(), prepared.preprocessing, scaling)
        return self._with(**empty, prepared=prepared, sample_weight=None, dataset=None, items=None, table=table)

    def held_out(self, rows: NDArray[np.int64], split: Literal["test", "validation"]) -> "Task":
        """Return this raw task with the training rows of these numbers as those of a split; rows keep their order."""
        train = np.delete(np.arange(len(self.y_train)), rows)
        x, y, weight, dataset = self.x_train, self.y_train, self.sample_weight, self.dataset
        parts: dict[str, Any] = {"x_train": x[train], "y_train": y[train]}
        parts |= {f"x_{split}": x[rows], f"y_{split}": y[rows]}
        return replace(
            self,
            **parts,
            sample_weight=None if weight is None else weight[train],
            dataset=None if dataset is None else Subset(dataset, train.tolist()),
        )

    @property
    def weights(self) -> Tensor:
        """Weights of the training rows [n], whose mean is 1.

        They are 1, `sample_weight`, or n_k/(C_k·n_kc) for n_kc rows of this class and C_k classes. With both, rows
        count in n_k and n_kc by their `sample_weight`.
        """
        n = len(self.y_train)
        weights = np.ones(n) if self.sample_weight is None else self.sample_weight * (n / self.sample_weight.sum())
        if self.class_weight is not None:
            _, number = np.unique(self.y_train.numpy(), return_inverse=True)
            totals = np.bincount(number, weights)
            weights = weights * n / (len(totals) * totals[number])
        return torch.from_numpy(weights)

    @property
    def raw(self) -> "Task":
        """This task before preprocessing."""
        return self.prepared.raw if self.prepared else self

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that was applied."""
        return self.prepared.preprocessing if self.prepared else RAW

    @property
    def scaling(self) -> Scaling:
        """The scaling that was fitted; the identity if the task was not preprocessed."""
        if self.prepared:
            return self.prepared.scaling
        return _identity(tuple(self.x_train.shape[1:]))

    @property
    def flat(self) -> "Task":
        """The same data with rows as vectors, x [n, d], as views."""
        if self.x_train.ndim == 2:
            return self
        return self._with(**{f"x_{split}": getattr(self, f"x_{split}").flatten(1) for split in SPLITS})

    @property
    def has_numbers(self) -> bool:
        """Whether y holds the targets: class numbers, ±1 or numbers; otherwise only `items` have them."""
        return self.example is None or _are_numbers(self.example[1])

    def numbered(self, classes: int | None) -> "Task":
        """Return this task with targets that are class numbers 0..C−1, or with None numbers to predict."""
        kind = torch.float64 if classes is None else torch.int64
        return self._with(classes=classes, **{f"y_{split}": getattr(self, f"y_{split}").to(kind) for split in SPLITS})

    def targets_of(self, y: Any, n: int) -> Tensor | None:
        """Return the targets of n items as y of this task has them [n]; None if an item has no number as its target.

        Raises:
            DataError: one of them is not among the task's labels.
        """
        if not isinstance(y, Tensor) or y.numel() != n:
            return None
        targets: Tensor = y.detach().flatten().cpu().double()
        if self.labels:
            labels = torch.tensor(self.labels, dtype=targets.dtype)
            number = torch.searchsorted(labels, targets).clamp_max(len(labels) - 1)
            if (other := labels[number] != targets).any():
                raise DataError(
                    f"An item of {self.name!r} returned the target {float(targets[other][0]):g}, which did not occur "
                    "in the first reading. Make every reading draw targets from the same values."
                )
            targets = number if self.classes else number * 2.0 - 1
        return targets.to(torch.float64 if self.classes is None else torch.int64)

    def _faults(self) -> Iterator[str]:
        """Yield what is wrong and how to fix it; each check relies on the ones before it."""
        for part in SPLITS:
            x, y = (getattr(self, f"{name}_{part}") for name in "xy")
            fault = ""
            if x.ndim < 2 or y.ndim != 1 or x.shape[0] != len(y):
                fault = ". Give x as [rows, columns], or [rows, ...] for images, and one y per row."
            elif not (math.prod(x.shape) if part == "train" else x.shape[1]):
                fault = ", which is empty. Give at least one row and one column."
            if fault:
                yield f"x_{part} has shape {list(x.shape)}, y_{part} {list(y.shape)}{fault}"
            if not len(y):
                continue
            for name, rows in ((f"x_{part}", x), (f"y_{part}", y[:, None])):
                values = stored(rows)
                low, high = torch.aminmax(values) if values.numel() else (0.0, 0.0)
                largest = max(-float(low), float(high))
                if not largest < math.inf:  # or NaN, which both ends then are
                    bad = ~finite(rows)
                    first, n = int(bad.nonzero()[0]), int(bad.sum())
                    more = f"; {n - 1} more" if n > 1 else ""
                    yield f"{name} is NaN or infinite in row {first} (from 0{more}). Fix or drop such rows."
                if largest > MAX_ABS_VALUE:
                    yield f"{name} has a number of size {largest:.2g}, whose square may overflow. Scale the data down."
        n = len(self.y_train)
        if self.dataset is not None and len(self.dataset) != n:  # type: ignore[arg-type]  # not all Datasets have one
            yield "its dataset and x_train have different numbers of rows. Give the same rows."
        if (weights := self.sample_weight) is not None and (
            len(weights) != len(self.y_train) or not (weights > 0).all()
        ):
            yield "sample_weight has to be a number above 0 for each training row. Leave out rows of weight 0."
        for part in SPLITS[1:]:
            if (shape := getattr(self, f"x_{part}").shape[1:]) != self.x_train.shape[1:]:
                d, other = (" × ".join(map(str, each)) for each in (self.x_train.shape[1:], shape))
                yield f"x_train has {d} columns, x_{part} {other}. Give both the same columns."
        for part in SPLITS:
            y = getattr(self, f"y_{part}")
            if self.classes is not None and len(y) and (bad := (y < 0) | (y >= self.classes) | (y != y.floor())).any():
                first = int(bad.nonzero()[0])
                yield (
                    f"y_{part} is {y[first]:g} in row {first} (from 0), which is not one of {self.classes} classes. "
                    f"Number them 0..{self.classes - 1}."
                )


def _are_numbers(targets: Any) -> bool:
    """Return whether the targets of two rows are two numbers."""
    return isinstance(targets, Tensor) and targets.ndim > 0 and targets.numel() == len(targets) == 2


@cache
def _identity(shape: tuple[int, ...]) -> Scaling:
    """Return the scaling that changes nothing; tasks share it."""
    zeros = torch.zeros(shape, dtype=torch.float64)
    return Scaling(zeros, torch.ones_like(zeros))


@cache
def _without_content(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor without content; many tasks have some of the same shape, which then are one."""
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Prepared:
    """The origin of a preprocessed task: the raw task, the settings that were applied, and the scaling they gave."""

    raw: Task
    preprocessing: Preprocessing
    scaling: Scaling


def class_targets(number: NDArray[np.int64], C: int) -> tuple[NDArray[Any], int | None]:
    """Return `y` and `classes` of a `Task` for class numbers 0..C−1: ±1 and None for two classes."""
    return (number * 2.0 - 1.0, None) if C <= 2 else (number, C)


def classified(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Return tasks whose targets are integers or booleans, and not ±1, with these values as labels of classes.

    Other tasks, and those whose rows another process holds, stay unchanged.

    Raises:
        DataError: if all rows have one label.
    """
    raws = [task.raw for task in tasks]
    unnamed = all(raw.is_local and raw.has_integers and (raw.classes, raw.labels) == (None, None) for raw in raws)
    if not raws or not unnamed:
        return tuple(tasks)
    ys = [getattr(raw, f"y_{split}") for raw in raws for split in SPLITS]
    values, number = np.unique(torch.cat(ys), return_inverse=True)
    if set(values.tolist()) <= {-1, 1}:
        return tuple(tasks)
    if len(values) == 1:
        raise DataError(f"The target is {values[0]:g} in all rows, so there is nothing to learn. Set another target.")
    targets, classes = class_targets(number, len(values))
    parts = iter(torch.split(torch.from_numpy(targets), [*map(len, ys)]))
    about: dict[str, Any] = {"classes": classes, "labels": tuple(values.astype(int).tolist())}
    numbered = [replace(raw, **about | {f"y_{split}": next(parts) for split in SPLITS}) for raw in raws]
    return prepare(numbered, tasks[0].preprocessing)


def numbered(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Return tasks with classes 0 and 1 in place of −1 and 1, if all tasks have these two."""
    for task in tasks:
        signs = len(task.labels) == 2 if task.labels else task.is_local and set(task.y_train.tolist()) <= {-1.0, 1.0}
        if task.classes or not signs:
            return tuple(tasks)
    ys = [{f"y_{split}": (getattr(task, f"y_{split}") > 0).long() for split in SPLITS} for task in tasks]
    return tuple(t._with(classes=2, labels=t.labels or (-1, 1), **y) for t, y in zip(tasks, ys, strict=True))


def prepare(tasks: Sequence[Task], preprocessing: Preprocessing, in_place: bool = False) -> tuple[Task, ...]:
    """Return the tasks with preprocessing fitted to their training rows.

    If a task has been preprocessed already, this starts again from its raw rows. `in_place` overwrites the dense raw
    training rows, see `Scaling.features`, so that the tasks know only the raw targets.

    Raises:
        ConfigError: if y is to be centered but holds class numbers.
        DataError: if the rows do not allow it, see `Preprocessing.fit`.
    """
    raws = [task.raw for task in tasks]
    if preprocessing == RAW:
        return tuple(raws)
    if preprocessing.center != "none" and raws[0].classes is not None:
        raise ConfigError(f"center={preprocessing.center}, but y holds class numbers. Set center=none.")
    scalings = preprocessing.fit([raw.x_train for raw in raws], [raw.y_train for raw in raws])
    prepared = tuple(
        raw._with(
            x_train=scaling.features(raw.x_train, in_place),
            y_train=scaling.targets(raw.y_train),
            x_test=scaling.features(raw.x_test),
            y_test=scaling.targets(raw.y_test),
            x_validation=scaling.features(raw.x_validation),
            y_validation=scaling.targets(raw.y_validation),
            prepared=Prepared(raw.without_rows(targets=False) if in_place else raw, preprocessing, scaling),
            dataset=None,  # it has the raw rows
        )
        for raw, scaling in zip(raws, scalings, strict=True)
    )
    for task in prepared:
        task._check()  # rows that are far from the training rows may now be too large
    return prepared
