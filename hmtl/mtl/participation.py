"""Who takes part in a round, and how much of the usual local work each user does.

K users and H relays, numbered from 0; rounds are numbered from 0, too.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.io.described import Described
from hmtl.io.npz import open_file
from hmtl.rng import generator

Sampler = Literal["uniform", "rows"] | Callable[[np.random.Generator, NDArray[np.int64], int], NDArray[np.int64]]
"""How users are sampled: alike, more often the more rows they have, or by a function.

The function gets a generator, the numbers of rows of all users, and how many users to draw without replacement.
"""
Pairs = Sequence[Sequence[int]] | str | Path
"""Pairs of a round and the node that is absent in it, or the path of a CSV file with one pair per line."""


@dataclass(frozen=True, repr=False)
class Participation(Described):
    """Client sampling, stragglers, which do part of their work, and users and relays that drop out of rounds.

    A round lasts as long as a user at full speed needs. In each round, a user does a share of its usual work: a new
    draw from U(low, high), times the user's speed. A user that drops out, or is not sampled, sends nothing but receives
    its model; a relay that drops out neither receives nor sends anything.

    Args:
        low, high: bounds of the share, 0 < low ≤ high ≤ 1.
        speeds: one number in (0, 1] per user; None: all users have full speed.
        fraction: share of the users that is sampled for each round, in (0, 1]: round(fraction·K) of them, at least one,
            without replacement.
        sampler: how they are drawn.
        dropout: probability in [0, 1) that a user drops out of a round.
        schedule: further pairs (round, user): the user drops out of the round.
        relays: probability in [0, 1) that a relay drops out of a round, or pairs (round, relay) as in `schedule`.

    Raises:
        ConfigError: a number is out of its range, or pairs cannot be read.

    Ref: Smith et al. 2017, section 3.3; McMahan et al. 2017, algorithm 1 (`fraction`).
    """

    low: float = 1.0
    high: float = 1.0
    speeds: Sequence[float] | None = None
    dropout: float = 0.0
    schedule: Pairs = ()
    relays: float | Pairs = 0.0
    fraction: float = 1.0
    sampler: Sampler = "uniform"
    _users: frozenset[tuple[int, int]] = field(init=False, repr=False)
    _relays: frozenset[tuple[int, int]] | float = field(init=False, repr=False)
    _counts: tuple[int, ...] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ConfigError(f"low={self.low}, high={self.high}: shares of work need 0 < low ≤ high ≤ 1.")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction={self.fraction} is not in (0, 1]. Give the share of users in each round.")
        if not callable(self.sampler) and self.sampler not in ("uniform", "rows"):
            raise ConfigError(f"sampler={self.sampler!r}: choose uniform or rows, or give a function.")
        for k, speed in enumerate(self.speeds or ()):
            if not 0 < speed <= 1:
                raise ConfigError(f"speeds: user {k} has {speed}, not in (0, 1]. Full speed is 1.")
        for name, value in (("dropout", self.dropout), ("relays", self.relays)):
            if isinstance(value, int | float) and not 0 <= value < 1:
                raise ConfigError(f"{name}={value} is not in [0, 1). Give a probability below 1.")
        users = _read("schedule", "user", self.schedule)
        relays = self.relays if isinstance(self.relays, int | float) else _read("relays", "relay", self.relays)
        object.__setattr__(self, "_users", users)
        object.__setattr__(self, "_relays", relays)

    def among(self, counts: Sequence[int]) -> "Participation":
        """Return the participation of users with these numbers of rows, or raise ConfigError as `check` does."""
        self.check(len(counts))
        new = copy.copy(self)
        object.__setattr__(new, "_counts", tuple(counts))
        return new

    def check(self, K: int) -> None:
        """Raise ConfigError if `speeds` or `schedule` do not fit K users."""
        if self.speeds is not None and len(self.speeds) != K:
            raise ConfigError(f"speeds has {len(self.speeds)} numbers for K={K} users. Give one per user.")
        _check_numbers("schedule", "user", self._users, K)

    def check_relays(self, H: int) -> None:
        """Raise ConfigError if the pairs of `relays` name a relay beyond H."""
        if not isinstance(self._relays, int | float):
            _check_numbers("relays", "relay", self._relays, H)

    def sampled(self, K: int) -> int:
        """Return how many of K users are sampled for each round."""
        return max(1, int(np.rint(self.fraction * K)))

    def sample(self, seed: int, round: int, K: int) -> NDArray[np.int64]:
        """Return the users who are sampled for a round, some of whom may drop out."""
        rng, n = generator(seed, "sampled users", round), self.sampled(K)
        if self.sampler == "uniform":
            return rng.permutation(K)[:n]
        if self._counts is None:
            raise ConfigError(
                f"participation.sampler={self.sampler}, but this algorithm draws users alike. Leave it out."
            )
        counts = np.array(self._counts)
        if callable(self.sampler):
            return np.unique(self.sampler(rng, counts, n))
        return rng.choice(K, n, replace=False, p=counts / counts.sum())

    def secret_sample(self, K: int) -> NDArray[np.int64]:
        """Return as many users, drawn from the operating system's entropy, so that nobody can compute them."""
        return np.array(SystemRandom().sample(range(K), self.sampled(K)), dtype=np.int64)

    def shares(self, seed: int, round: int, K: int, sample: NDArray[np.int64] | None = None) -> Tensor:
        """Return each user's share of its usual work in a round [K], 0 for those who drop out; see `budgets`."""
        rng = generator(seed, "participation", round)
        shares = rng.uniform(self.low, self.high, K) * (1.0 if self.speeds is None else np.asarray(self.speeds))
        shares[rng.random(K) < self.dropout] = 0
        sample = self.sample(seed, round, K) if sample is None else sample
        shares[~np.isin(np.arange(K), sample)] = 0
        shares[[user for when, user in self._users if when == round]] = 0
        return torch.from_numpy(shares)

    def budgets(
        self,
        usual: Tensor,
        seed: int,
        round: int,
        users: NDArray[np.int64] | None = None,
        K: int | None = None,
        sample: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """Return the number of steps of each user in a round: 0 for those who drop out, at least 1 for the others.

        Args:
            usual: usual numbers of steps [n].
            seed, round: name the random draw.
            users: the numbers of these n users; None: all users, in order.
            K: number of all users; None: n.
            sample: the users who are sampled, as far as they are among `users`; None: those that the seed gives.
        """
        shares = self.shares(seed, round, len(usual) if K is None else K, sample)
        shares = (shares if users is None else shares[torch.from_numpy(users)]).to(usual.device)
        return torch.where(shares > 0, (shares * usual).long().clamp_min(1), 0)

    def absent_relays(self, seed: int, round: int, H: int) -> tuple[int, ...]:
        """Return the relays that drop out of a round, ascending."""
        if isinstance(self._relays, int | float):
            absent = generator(seed, "relays", round).random(H) < self._relays
            return tuple(absent.nonzero()[0].tolist())
        return tuple(sorted(relay for when, relay in self._relays if when == round))


def _read(name: str, node: str, pairs: Pairs) -> frozenset[tuple[int, int]]:
    """Return the pairs of a setting, from a file if it is a path."""
    try:
        rows = _load(pairs) if isinstance(pairs, str | Path) else pairs
        if any(number % 1 or number < 0 for row in rows for number in row):
            raise ValueError("rounds and nodes are whole numbers, counted from 0")
        return frozenset((int(round), int(number)) for round, number in rows)
    except (OSError, ValueError, TypeError) as error:
        reason = ((isinstance(error, OSError) and error.strerror) or str(error)).rstrip(".")
        raise ConfigError(
            f"{name}={pairs} does not consist of pairs (round, {node}): {reason}. Give pairs such as [[3, 0], [4, 0]], "
            "or a CSV file of them."
        ) from error


def _load(path: str | Path) -> Sequence[Sequence[int]]:
    with open_file(path) as file:
        rows: list[list[int]] = np.loadtxt(file, delimiter=",", dtype=np.int64, ndmin=2).tolist()
    return rows


def _check_numbers(name: str, node: str, pairs: frozenset[tuple[int, int]], count: int) -> None:
    """Raise ConfigError if a pair names a node beyond `count`."""
    for _, number in sorted(pairs):
        if number >= count:
            raise ConfigError(f"{name}: there is no {node} {number}. Number {node}s from 0 to {count - 1}.")
