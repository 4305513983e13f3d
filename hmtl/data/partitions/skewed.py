"""Partitions with skewed classes or numbers of rows, as federated benchmarks draw them.

Shapes: K users, C classes, n rows. A partition is called with the labels [n], K and a generator, and returns the
numbers of each user's rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.errors import ConfigError, DataError
from hmtl.io.arrays import Ints

Partition = Callable[[NDArray[Any], int, np.random.Generator], list[Ints]]
DRAWS = 1000  # attempts at a partition in which every user has enough rows


@dataclass(frozen=True)
class DirichletSettings:
    """Settings of the partitions that draw shares from Dir(α, ..., α)."""

    alpha: float = 0.5
    min_rows: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf or self.min_rows < 1:
            raise ConfigError(
                f"alpha={self.alpha}, min_rows={self.min_rows} are out of range. Give a finite alpha > 0 and "
                "min_rows ≥ 1."
            )


class Dirichlet(DirichletSettings):
    """Label skew: the users' shares of each class are drawn from Dir(α, ..., α).

    All rows are dealt. The partition is drawn again until every user has `min_rows`.

    Args:
        alpha: α > 0; 0.1 leaves most users few classes, 100 gives all users nearly the same mix.
        min_rows: smallest number of rows of a user.

    Raises:
        ConfigError: if an argument is out of range.
        DataError: when called, if there are too few rows or no draw gave every user enough.

    Ref: Hsu et al. 2019, *Measuring the effects of non-identical data distribution*; by class and with a smallest
    number of rows as in Li et al. 2022, *Federated learning on non-IID data silos*.
    """

    def __call__(self, labels: NDArray[Any], K: int, rng: np.random.Generator) -> list[Ints]:
        _check_number_of_rows(len(labels), K, self.min_rows)
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
            f"In {DRAWS} draws with alpha={self.alpha:g} for K={K} users and {len(labels)} rows, the user with the "
            f"fewest rows had at most {most}. Raise alpha, or lower K or min_rows={self.min_rows}."
        )


@dataclass(frozen=True)
class Pathological:
    """Label skew: every user has rows of a few classes only, and the users of a class share its rows evenly.

    The numbers of users of any two classes differ by at most one. If K · classes_per_user < C, some classes go to no
    user. (`Shards` is the original. Here, no part has rows of two classes, and no user has two parts of one class.)

    Args:
        classes_per_user: number of classes of each user, 1..C.

    Raises:
        ConfigError: if there are fewer classes.
        DataError: when called, if a class has fewer rows than users.

    Ref: McMahan et al. 2017, section 3.
    """

    classes_per_user: int = 2

    def __post_init__(self) -> None:
        if self.classes_per_user < 1:
            raise ConfigError(f"classes_per_user={self.classes_per_user} must be at least 1. Raise it.")

    def __call__(self, labels: NDArray[Any], K: int, rng: np.random.Generator) -> list[Ints]:
        _check_number_of_rows(len(labels), K, 1)
        classes, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
        C, each = len(classes), self.classes_per_user
        if each > C:
            raise ConfigError(f"classes_per_user={each}, but there are {C} classes. Choose at most {C}.")
        rarest = int(counts.argmin())
        if -(-K * each // C) > counts[rarest]:
            raise DataError(
                f"Too few rows for K={K} users of {each} classes: class {classes[rarest]} has {counts[rarest]} rows, "
                f"but {-(-K * each // C)} users. Choose at most K={counts[rarest] * C // each}."
            )
        held = np.zeros((K, C), dtype=bool)
        for k in range(K):  # takes the classes with the fewest users so far, and breaks ties at random
            held[k, np.lexsort((rng.random(C), held.sum(axis=0)))[:each]] = True
        rows: list[list[Ints]] = [[] for _ in range(K)]
        for c in range(C):
            users = rng.permutation(np.flatnonzero(held[:, c]))
            of_class = rng.permutation(np.flatnonzero(number == c))
            for user, part in zip(users, np.array_split(of_class, max(len(users), 1)), strict=False):
                rows[user].append(part)
        return [np.concatenate(parts) for parts in rows]


@dataclass(frozen=True)
class Shards:
    """Label skew: the rows, sorted by class, are cut into K · shards_per_user equal shards, dealt at random.

    Most users have rows of two classes, one per shard. Some have a single class, and some have more, where a shard
    holds the end of one class and the start of the next. Rows beyond the last whole shard go to no user.

    Args:
        shards_per_user: number of shards of each user, at least 1.

    Raises:
        ConfigError: if it is below 1.
        DataError: when called, if there are fewer rows than shards.

    Ref: McMahan et al. 2017, section 3.
    """

    shards_per_user: int = 2

    def __post_init__(self) -> None:
        if self.shards_per_user < 1:
            raise ConfigError(f"shards_per_user={self.shards_per_user} must be at least 1. Raise it.")

    def __call__(self, labels: NDArray[Any], K: int, rng: np.random.Generator) -> list[Ints]:
        _check_number_of_rows(len(labels), K, self.shards_per_user)
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]  # random order within a class
        shards = K * self.shards_per_user
        cut = order[: len(labels) // shards * shards].reshape(shards, -1)
        return list(cut[rng.permutation(shards)].reshape(K, -1))


class Quantity(DirichletSettings):
    """Quantity skew: users have unequal numbers of rows with the same mix of classes, up to chance.

    Every user gets `min_rows`; the shares of the remaining rows are drawn from Dir(α, ..., α). All rows are dealt.

    Args:
        alpha: α > 0; 0.1 gives most rows to a few users, 100 nearly the same number to all.
        min_rows: smallest number of rows of a user.

    Raises:
        ConfigError, DataError: see `Dirichlet`.

    Ref: Li et al. 2022, *Federated learning on non-IID data silos* (quantity skew).
    """

    def __call__(self, labels: NDArray[Any], K: int, rng: np.random.Generator) -> list[Ints]:
        n = len(labels)
        _check_number_of_rows(n, K, self.min_rows)
        more = rng.dirichlet(np.full(K, self.alpha)).cumsum() * (n - K * self.min_rows)
        ends = np.rint(more).astype(np.int64) + self.min_rows * np.arange(1, K + 1)
        return np.split(rng.permutation(n), ends[:-1])


def _check_number_of_rows(n: int, K: int, least: int) -> None:
    """Raise ConfigError or DataError unless n rows suffice for K users with `least` rows each."""
    if K < 1:
        raise ConfigError(f"K={K}: there must be at least one user. Choose K ≥ 1.")
    if K * least > n:
        remedy = f"at most min_rows={n // K}, or lower K" if n >= K and least > 1 else f"at most K={n // least}"
        raise DataError(
            f"K={K} users with {least} rows each need {K * least} rows, but there are {n}. Choose {remedy}."
        )
