"""Each user's rows, split at random into training and test rows.

Shapes: n rows, d features.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hmtl.data.preprocessing import Preprocessing
from hmtl.data.tasks import Task
from hmtl.errors import ConfigError, DataError
from hmtl.rng import generator

Ints = NDArray[np.int64]
Wanted = Callable[[int], Collection[int]]
"""Maps K to the users whose rows this process holds; of the other users it knows only the numbers of rows."""


def everybody(K: int) -> Collection[int]:
    """Return all K users."""
    return range(K)


def needed_for(preprocessing: Preprocessing, wanted: Wanted) -> Wanted:
    """Return the users whose rows are needed to prepare the wanted ones: all, if there is anything to fit or add."""
    return wanted if preprocessing == Preprocessing() else everybody


class Share(NamedTuple):
    """One user's rows of a data set: its name, the numbers of the rows [n], and their targets y [n]."""

    name: str
    rows: Ints
    y: NDArray[Any]


@dataclass(frozen=True)
class Splitting:
    """How users' rows become tasks.

    Args:
        test_fraction: share of each user's rows that is kept for testing, rounded up to whole rows (of 250 rows, 187
            train and 63 test); 0: none.
        seed: seed of the random splits.
        wanted: the users whose rows are held.

    Raises:
        ConfigError: if test_fraction is not in [0, 1).
    """

    test_fraction: float
    seed: int
    wanted: Wanted = everybody

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise ConfigError(
                f"test_fraction={self.test_fraction} leaves no rows to train on. Choose a value from 0 (no test) to "
                "below 1."
            )

    def tasks(
        self,
        x: Callable[[Ints], NDArray[Any]],
        shares: Sequence[Share],
        classes: int | None = None,
        labels: tuple[Any, ...] | None = None,
    ) -> tuple[Task, ...]:
        """Return the task of each share.

        Args:
            x: returns the rows [n, ...] with the given numbers.
            shares: the rows and targets of each user.
            classes, labels: see `Task`.

        Raises:
            DataError: see `split`.
        """
        local = self.wanted(len(shares))
        tasks = []
        for k, (name, rows, y) in enumerate(shares):
            if k in local:
                rng = generator(self.seed, "data", "split", k)
                tasks.append(split(name, x(rows), y, self.test_fraction, rng, classes, labels))
            else:
                tasks.append(self._task_without_rows(name, x(rows[:0]), len(y), classes, labels))
        return tuple(tasks)

    def _task_without_rows(
        self, name: str, like: NDArray[Any], n: int, classes: int | None, labels: tuple[Any, ...] | None
    ) -> Task:
        """Return a task of n rows of which only shape and dtype are known, those of `like`."""
        n_test = math.ceil(self.test_fraction * n)
        dtype = torch.float32 if like.dtype == np.float32 else torch.float64
        x_train, x_test = (
            torch.empty(rows, *like.shape[1:], dtype=dtype, device="meta") for rows in (n - n_test, n_test)
        )
        y_train, y_test = (torch.empty(rows, device="meta") for rows in (n - n_test, n_test))
        return Task(name, x_train, y_train, x_test, y_test, classes, labels)


def split(
    name: str,
    x: NDArray[Any],
    y: NDArray[Any],
    test_fraction: float,
    rng: np.random.Generator,
    classes: int | None = None,
    labels: tuple[Any, ...] | None = None,
) -> Task:
    """Return the task of all rows, split at random so that both parts get their share of each class.

    A class with too few rows for that is split without regard to classes.

    Args:
        name, classes, labels: see `Task`.
        x, y: rows [n, d] or [n, ...], and their targets [n].
        test_fraction: see `Splitting`.
        rng: generator of the split.

    Raises:
        DataError: if there are too few rows for both parts, or see `Task`.
    """
    if test_fraction == 0:
        return Task(name, x, y, x[:0], y[:0], classes, labels)  # type: ignore[arg-type]  # Task converts arrays
    from sklearn.model_selection import train_test_split  # late, as it takes more than a second to load

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
            f"Task {name!r}: {len(y)} rows cannot be split with test_fraction={test_fraction}, as no row would be left "
            "to train on. Give more rows, or lower the fraction."
        ) from cause
    x_train, x_test, y_train, y_test = parts
    return Task(name, x_train, y_train, x_test, y_test, classes, labels)
