"""Tasks from a labelled data set whose rows a partition deals to the users."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.data.partitions import Partition
from hmtl.data.splitting import Ints, Share, Splitting
from hmtl.data.tasks import Task
from hmtl.errors import ConfigError
from hmtl.rng import generator


def deal(
    x: Callable[[Ints], NDArray[Any]],
    labels: NDArray[Any],
    K: int | None,
    partition: Partition,
    splitting: Splitting,
    names: Sequence[Any] | None = None,
) -> tuple[Task, ...]:
    """Return a task for each user; y is ±1 for two classes, and the class number 0..C−1 for more.

    Args:
        x: returns the rows with the given numbers.
        labels: the class of each row, [n]. Classes are numbered in sorted order.
        K: number of users.
        partition: deals the rows.
        splitting: splits each user's rows; its seed also draws the partition.
        names: names of the classes, [C]; None: the values of y.

    Raises:
        ConfigError: if K is not set, or see the partition.
        DataError: if there are too few rows, see the partition and `split`.
    """
    if K is None:
        raise ConfigError("K is not set, but a partition needs the number of users. Set K.")
    classes, number = np.unique(labels, return_inverse=True)
    C = len(classes) if len(classes) > 2 else None
    y = number * 2.0 - 1.0 if C is None else number
    dealt = partition(labels, K, generator(splitting.seed, "data", "partition"))
    shares = [Share(f"user {k}", rows, y[rows]) for k, rows in enumerate(dealt)]
    return splitting.tasks(x, shares, C, None if names is None else tuple(names))
