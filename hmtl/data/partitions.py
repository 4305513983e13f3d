"""Partitions of any labelled data set, as federated benchmarks draw them. No two users share a row.

K users, C classes, n rows. A partition is called with the labels [n], K and a generator, and gives each user's rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.data.preprocessing import Wanted, everybody
from hmtl.data.tasks import Task, split
from hmtl.errors import ConfigError, DataError
from hmtl.rng import generator

Ints = NDArray[np.int64]
Partition = Callable[[NDArray[Any], int, np.random.Generator], list[Ints]]
DRAWS = 1000  # before a partition is given up


@dataclass(frozen=True)
class Dirichlet:
    """Of each class, the users get shares that are drawn from Dir(α, ..., α): another mix and number for each user.

    All rows are dealt; the partition is drawn again until every user has `min_rows`.

    Args:
        alpha: α > 0: 0.1 leaves most users a few classes, 100 gives all users nearly the same.
        min_rows: that every user has at least.

    Raises:
        ConfigError: a number is out of its range.
        DataError: when called: the rows do not reach for all users, or no draw gave everybody enough.

    Ref: Hsu et al. 2019, *Measuring the effects of non-identical data distribution*; class by class and with a least
    number of rows as in Li et al. 2022, *Federated learning on non-IID data silos*.
    """

    alpha: float = 0.5
    min_rows: int = 10

    def __post_init__(self) -> None:
        _check(self.alpha, self.min_rows)

    def __call__(self, labels: NDArray[Any], K: int, rng: np.random.Generator) -> list[Ints]:
        _reach(len(labels), K, self.min_rows)
        _, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
        most = 0
        for _ in range(DRAWS):
            shares = rng.dirichlet(np.full(K, self.alpha), len(counts))
            ends = np.rint(shares.cumsum(axis=1) * counts[:, None]).astype(np.int64)
            least = int(np.diff(ends.sum(axis=0), prepend=0).min())
            if least >= self.min_rows:
                parts = [np.split(rng.permutation(np.flatnonzero(number == c)), end[:-1]) for c, end in enumerate(ends)]
                return [np.concatenate(user) for user in zip(*parts, strict=True)]
            most = max(most, least)
        raise DataError(
            f"In {DRAWS} draws with alpha={self.alpha:g}, the user with fewest rows had {most} at most, of K={K} users "
            f"and {len(labels)} rows. Raise alpha, or lower K or min_rows={self.min_rows}."
        )


@dataclass(frozen=True)
class Pathological:
    """Every user has rows of so many classes only; those who have a class share its rows evenly.

    Each class falls to as many users as any other, to within one; where K · classes_per_user < C, some to nobody.
    (`Shards` is the original; here no shard holds rows of two classes, and no user has two of one class.)

    Args:
        classes_per_user: 1..C.

    Raises:
        ConfigError: not so many classes. DataError: fewer rows of a class than users who need some; both when called.

    Ref: McMahan et al. 2017, section 3.
    """

    classes_per_user: int = 2

    def __post_init__(self) -> None:
        if self.classes_per_user < 1:
            raise ConfigError(f"classes_per_user={self.classes_per_user} is not at least 1.")

    def __call__(self, labels: NDArray[Any], K: int, rng: np.random.Generator) -> list[Ints]:
        _reach(len(labels), K, 1)
        classes, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
        C, each = len(classes), self.classes_per_user
        if each > C:
            raise ConfigError(f"classes_per_user={each}, but the data have {C}. Choose at most so many.")
        rarest = int(counts.argmin())
        if -(-K * each // C) > counts[rarest]:
            raise DataError(
                f"The data do not reach for K={K} users of {each} classes: class {classes[rarest]} has "
                f"{counts[rarest]} rows for {-(-K * each // C)} users. At most K={counts[rarest] * C // each}."
            )
        held = np.zeros((K, C), dtype=bool)
        for k in range(K):  # those that fewest users have so far, drawn among equals
            held[k, np.lexsort((rng.random(C), held.sum(axis=0)))[:each]] = True
        rows: list[list[Ints]] = [[] for _ in range(K)]
        for c in range(C):
            users = rng.permutation(np.flatnonzero(held[:, c]))
            mine = rng.permutation(np.flatnonzero(number == c))
            for user, part in zip(users, np.array_split(mine, max(len(users), 1)), strict=False):
                rows[user].append(part)
        return [np.concatenate(parts) for parts in rows]


@dataclass(frozen=True)
class Shards:
    """All rows, sorted by class, are cut into K · shards_per_user shards of one size, and each user is dealt some.

    Most users have rows of two classes, as of two shards; some of one alone, some of more, where a shard holds the end
    of one class and the start of the next. Rows beyond the last whole shard fall to nobody.

    Args:
        shards_per_user: at least 1.

    Raises:
        ConfigError: it is below 1. DataError: when called: fewer rows than shards.

    Ref: McMahan et al. 2017, section 3.
    """

    shards_per_user: int = 2

    def __post_init__(self) -> None:
        if self.shards_per_user < 1:
            raise ConfigError(f"shards_per_user={self.shards_per_user} is not at least 1.")

    def __call__(self, labels: NDArray[Any], K: int, rng: np.random.Generator) -> list[Ints]:
        _reach(len(labels), K, self.shards_per_user)
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]  # within a class at random
        shards = K * self.shards_per_user
        cut = order[: len(labels) // shards * shards].reshape(shards, -1)
        return list(cut[rng.permutation(shards)].reshape(K, -1))


@dataclass(frozen=True)
class Quantity:
    """Users have the same mix of classes, to within chance, and unequal numbers of rows.

    `min_rows` for everybody, and of the others shares that are drawn from Dir(α, ..., α). All rows are dealt.

    Args:
        alpha: α > 0: 0.1 gives most rows to a few users, 100 nearly the same number to all.
        min_rows: that every user has at least.

    Raises:
        ConfigError: a number is out of its range. DataError: when called: the rows do not reach for all users.

    Ref: Li et al. 2022, *Federated learning on non-IID data silos* (quantity skew).
    """

    alpha: float = 0.5
    min_rows: int = 10

    def __post_init__(self) -> None:
        _check(self.alpha, self.min_rows)

    def __call__(self, labels: NDArray[Any], K: int, rng: np.random.Generator) -> list[Ints]:
        n = len(labels)
        _reach(n, K, self.min_rows)
        more = rng.dirichlet(np.full(K, self.alpha)).cumsum() * (n - K * self.min_rows)
        ends = np.rint(more).astype(np.int64) + self.min_rows * np.arange(1, K + 1)
        return np.split(rng.permutation(n), ends[:-1])


def share_out(
    x: Callable[[Ints], NDArray[Any]],
    labels: NDArray[Any],
    K: int | None,
    partition: Partition,
    test_fraction: float,
    seed: int,
    called: Sequence[Any] | None = None,
    wanted: Wanted = everybody,
) -> tuple[Task, ...]:
    """A task for each user, of all classes: ±1 where there are two, the numbers 0..C−1 in their order where more.

    Args:
        x: gives rows by number.
        labels: [n], the class of each row.
        K, partition: who gets which rows.
        test_fraction: share of each user's rows kept for testing.
        seed: draws partition and splits.
        called: [C], what the classes are called; None: by their values of y.
        wanted: whose rows to hold.

    Raises:
        DataError: see the partition, and `split`.
        ConfigError: see there.
    """
    if K is None:
        raise ConfigError("K is not set, and a partition needs to know for how many users it is: set K.")
    classes, number = np.unique(labels, return_inverse=True)
    C, names, here = len(classes), None if called is None else tuple(called), wanted(K)
    y, tasks = number if C > 2 else number * 2.0 - 1.0, []
    for k, rows in enumerate(partition(labels, K, generator(seed, "data", "partition"))):
        rng = generator(seed, "data", "split", k)
        held = x(rows if k in here else rows[:0])
        tasks.append(split(f"user {k}", held, y[rows], test_fraction, rng, C if C > 2 else None, names, k in here))
    return tuple(tasks)


def _check(alpha: float, min_rows: int) -> None:
    if not 0 < alpha < math.inf or min_rows < 1:
        raise ConfigError(f"alpha={alpha}, min_rows={min_rows}: give a finite alpha > 0, and min_rows ≥ 1.")


def _reach(n: int, K: int, min_rows: int) -> None:
    if not K or K < 1:  # None: where a configuration leaves K to the data
        raise ConfigError(f"K={K}: there is nobody to learn. Choose K ≥ 1.")
    if K * min_rows > n:
        remedy = f"At most min_rows={n // K}, or lower K." if n >= K and min_rows > 1 else f"At most K={n // min_rows}."
        raise DataError(
            f"The data do not reach for K={K} users × {min_rows} rows: {K * min_rows} are needed, they hold {n}. "
            f"{remedy}"
        )
