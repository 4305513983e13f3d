"""Tasks from the rows of a data set, which are dealt to users, split into training and test rows, and preprocessed.

Shapes: n rows, d features, C classes.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hmtl.data.partitions import Partition
from hmtl.data.preprocessing import RAW, Preprocessing
from hmtl.data.table_features import FittedTable
from hmtl.data.tasks import ClassWeight, Task, class_targets, prepare
from hmtl.errors import ConfigError, DataError
from hmtl.io.arrays import Ints
from hmtl.rng import generator

RowsOf = Callable[[Ints], Any]
"""Returns the rows [n, ...] with the given numbers, as an array or CSR."""
Fit = Callable[[Sequence[Ints]], tuple[RowsOf, Sequence[FittedTable]]]
"""Returns fitted rows and what each user told, for the numbers of the training rows of each user."""
Wanted = Callable[[int], Collection[int]]
"""Maps K to the users whose rows this process holds; for other users, it knows only the numbers of rows."""


@dataclass(frozen=True)
class Splitting:
    """How users' rows become tasks.

    Args:
        test_fraction: share of each user's rows that is kept for testing, rounded up to whole rows (of 250 rows, 187
            train and 63 test); 0: none.
        seed: seed of the partition and the random splits.
        preprocessing: is fitted to the training rows.
        wanted: the users whose rows are held; all users if there is preprocessing, which needs all rows.
        class_weight: see `Task`.

    Raises:
        ConfigError: if test_fraction is not in [0, 1).
    """

    test_fraction: float
    seed: int
    preprocessing: Preprocessing = RAW
    wanted: Wanted = range
    class_weight: ClassWeight = None

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise ConfigError(
                f"test_fraction={self.test_fraction} leaves no rows to train on. Choose a value from 0 (no test) to "
                "below 1."
            )

    def deal(self, x: RowsOf, y: NDArray[Any], K: int | None, partition: Partition, **about: Any) -> tuple[Task, ...]:
        """Return the tasks of K users to whom a partition deals all rows x by their classes y [n].

        Classes are numbered in sorted order. `about` holds `labels` and `columns`, see `Task`.

        Raises:
            ConfigError: if K is not set, or if the partition raises it.
            DataError: if there are too few rows, see the partition and `split`.
        """
        if K is None:
            raise ConfigError("K is not set, but a partition needs the number of users. Set K.")
        values, number = np.unique(y, return_inverse=True)
        targets, classes = class_targets(number, len(values))
        dealt = partition(y, K, generator(self.seed, "data", "partition"))
        users = {f"user {k}": rows for k, rows in enumerate(dealt)}
        return self.tasks(x, targets, users, classes=classes, **about)

    def tasks(
        self, x: RowsOf, y: NDArray[Any], users: Mapping[str, Ints], fit: Fit | None = None, **about: Any
    ) -> tuple[Task, ...]:
        """Return the task of each user from rows x and targets y [n]; `users` has the numbers of their rows by name.

        `about` holds `classes`, `labels` and `columns`, see `Task`. If `fit` is given, it makes the rows instead of x.

        Raises:
            DataError: see `split`.
        """
        K, tasks, about = len(users), [], {"class_weight": self.class_weight, **about}
        local = self.wanted(K) if self.preprocessing == RAW and fit is None else range(K)
        parts: dict[str, tuple[Ints, Ints]] = {}
        for k, (name, rows) in enumerate(users.items()):
            if k in local:
                rng = generator(self.seed, "data", "split", k)
                train, test = split(name, y[rows], self.test_fraction, rng, about.get("classes"))
                parts[name] = rows[train], rows[test]
        held = {task.name: task for task in tasks_of(x, y, parts, fit, **about)}
        for name, rows in users.items():
            if name in held:
                tasks.append(held[name])
                continue
            n_test = math.ceil(self.test_fraction * len(rows))
            counts, like = (len(rows) - n_test, n_test), torch.as_tensor(x(rows[:0]))
            x_train, x_test = (like.new_empty(n, *like.shape[1:], device="meta") for n in counts)
            y_train, y_test = (torch.empty(n, device="meta") for n in counts)
            tasks.append(Task(name, x_train, y_train, x_test, y_test, **about))
        return prepare(tasks, self.preprocessing)


def tasks_of(
    x: RowsOf, y: NDArray[Any], parts: Mapping[str, tuple[Ints, Ints]], fit: Fit | None = None, **about: Any
) -> list[Task]:
    """Return the tasks of users from the numbers of their training and test rows, without preprocessing."""
    targets: Any = y  # arrays, which a task turns into tensors
    tables: Sequence[FittedTable | None] = [None] * len(parts)
    if fit is not None:
        x, tables = fit([train for train, _ in parts.values()])
    return [
        Task(name, x(train), targets[train], x(test), targets[test], table=table, **about)
        for (name, (train, test)), table in zip(parts.items(), tables, strict=True)
    ]


def split(
    name: str, y: NDArray[Any], test_fraction: float, rng: np.random.Generator, classes: int | None = None
) -> tuple[Ints, Ints]:
    """Return the numbers of the training rows and of the test rows, drawn at random, of a task with targets y [n].

    Of n_c rows of a class, test_fraction · n_c are test rows, rounded up or down. Rows keep their order.

    Args:
        name: name of the task in messages.
        classes: see `Task`.

    Raises:
        DataError: if no row would be left to train on.
    """
    n, n_test = len(y), math.ceil(test_fraction * len(y))
    if n_test == n:
        raise DataError(
            f"Task {name!r}: {n} rows cannot be split, as a share of {test_fraction} leaves no row to train on. Give "
            "more rows, or lower test_fraction or validation_fraction."
        )
    is_test = np.zeros(n, dtype=bool)
    if n_test:
        places = (rng.integers(n) + np.arange(n_test) * n) // n_test  # at equal distances
        is_test[shuffled_by_class(y, classes, rng)[places]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def with_validation(tasks: Sequence[Task], fraction: float, seed: int) -> tuple[Task, ...]:
    """Return the tasks with a share of each user's training rows, rounded up, kept for validation.

    Rows are drawn by class, as test rows are in `split`. Preprocessing is fitted to the rows that remain for training,
    except for the features of a `table`. Tasks that have validation rows already keep these.

    Raises:
        ConfigError: if the fraction is not in [0, 1).
        DataError: if no row would be left to train on.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"validation_fraction={fraction} is not in [0, 1). Give the share of the training rows.")
    parts = []
    for k, raw in enumerate(task.raw for task in tasks):
        rows = np.arange(math.ceil(fraction * len(raw.y_train)))
        if raw.is_local:
            _, rows = split(raw.name, raw.y_train.numpy(), fraction, generator(seed, "validation", k), raw.classes)
        parts.append(raw if len(raw.y_validation) else raw.held_out(rows, "validation"))
    return prepare(parts, tasks[0].preprocessing)


def shuffled_by_class(y: NDArray[Any], classes: int | None, rng: np.random.Generator) -> Ints:
    """Return the numbers of the rows in random order, one class after the other if targets y [n] are classes.

    Rows at equal distances in this order have each class in proportion, to within one row.

    Args:
        classes: see `Task`.
    """
    order = rng.permutation(len(y))
    is_labeled = classes is not None or set(y.tolist()) <= {-1, 1}
    return order[np.argsort(y[order], kind="stable")] if is_labeled else order
