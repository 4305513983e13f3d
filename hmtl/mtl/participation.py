"""Who takes part in a round, and how much of the usual local work each user does.

K users and H relays, numbered from 0, as rounds are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.io.npz import open_file
from hmtl.rng import generator

Pairs = Sequence[Sequence[int]] | str | Path
"""Pairs of a round and who is absent in it, or the path of a CSV file with such a pair per line."""


@dataclass(frozen=True)
class Participation:
    """Stragglers, who do a part of their work, and users and relays that drop out of a round.

    In a round, a user does the share U(low, high) of its usual work, drawn anew, times its speed; of its usual work
    because a round lasts as long as a user of full speed needs. A user that drops out sends nothing, but gets its
    model; a relay that drops out neither hears nor sends anything.

    Args:
        low, high: bounds of the share that is drawn, 0 < low ≤ high ≤ 1.
        speeds: K numbers in (0, 1], or None where all users are equally fast.
        dropout: probability in [0, 1) that a user drops out of a round.
        schedule: pairs (round, user) that drop out besides.
        relays: probability in [0, 1) that a relay drops out of a round, or pairs (round, relay) that do.

    Raises:
        ConfigError: a number is out of its range, or pairs cannot be read.

    Ref: Smith et al. 2017, section 3.3.
    """

    low: float = 1.0
    high: float = 1.0
    speeds: Sequence[float] | None = None
    dropout: float = 0.0
    schedule: Pairs = ()
    relays: float | Pairs = 0.0
    _users: frozenset[tuple[int, int]] = field(init=False, repr=False)
    _relays: frozenset[tuple[int, int]] | float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ConfigError(f"low={self.low}, high={self.high}: shares of work need 0 < low ≤ high ≤ 1.")
        for k, speed in enumerate(self.speeds or ()):
            if not 0 < speed <= 1:
                raise ConfigError(f"speeds: user {k} has {speed}, not in (0, 1], 1 being full speed.")
        for name, given in (("dropout", self.dropout), ("relays", self.relays)):
            if isinstance(given, int | float) and not 0 <= given < 1:
                raise ConfigError(f"{name}={given} is not in [0, 1): nobody may stay away for ever.")
        users = _read("schedule", "user", self.schedule)
        relays = self.relays if isinstance(self.relays, int | float) else _read("relays", "relay", self.relays)
        object.__setattr__(self, "_users", users)
        object.__setattr__(self, "_relays", relays)

    @property
    def complete(self) -> bool:
        """Whether all users and relays take part in each round, if not all as fast as others."""
        return not (self.dropout or self._users or self._relays)

    def check(self, K: int) -> None:
        """Refuse a number of users that speeds or schedule do not fit.

        Raises:
            ConfigError: another number of speeds than of users, or a user who is not there.
        """
        if self.speeds is not None and len(self.speeds) != K:
            raise ConfigError(f"speeds has {len(self.speeds)} numbers for K={K} users. Give one per user.")
        _check("schedule", "user", self._users, K)

    def check_relays(self, H: int) -> None:
        """Refuse a number of relays that the pairs of `relays` do not fit.

        Raises:
            ConfigError: a relay that is not there.
        """
        if not isinstance(self._relays, int | float):
            _check("relays", "relay", self._relays, H)

    def shares(self, seed: int, round: int, K: int) -> Tensor:
        """Share of its usual work that each user does in a round, [K]; 0 for those who drop out."""
        rng = generator(seed, "participation", round)
        shares = rng.uniform(self.low, self.high, K) * (1.0 if self.speeds is None else np.asarray(self.speeds))
        shares[rng.random(K) < self.dropout] = 0
        shares[[user for when, user in self._users if when == round]] = 0
        return torch.from_numpy(shares)

    def budgets(
        self, usual: Tensor, seed: int, round: int, users: NDArray[np.int64] | None = None, K: int | None = None
    ) -> Tensor:
        """Steps of each user, [K], out of the `usual` ones: at least one, or none for those who drop out.

        With `users`, of these alone, [n], out of K.
        """
        shares = self.shares(seed, round, len(usual) if K is None else K)
        shares = (shares if users is None else shares[torch.from_numpy(users)]).to(usual.device)
        return torch.where(shares > 0, (shares * usual).long().clamp_min(1), 0)

    def absent_relays(self, seed: int, round: int, H: int) -> tuple[int, ...]:
        """The relays that drop out of a round, ascending.

        Raises:
            ConfigError: see `check_relays`.
        """
        self.check_relays(H)
        if isinstance(self._relays, int | float):
            absent = generator(seed, "relays", round).random(H) < self._relays
            return tuple(absent.nonzero()[0].tolist())
        return tuple(sorted(relay for when, relay in self._relays if when == round))


def _read(name: str, who: str, pairs: Pairs) -> frozenset[tuple[int, int]]:
    try:
        read: Iterable[Sequence[int]] = pairs if not isinstance(pairs, str | Path) else ()
        if isinstance(pairs, str | Path):
            with open_file(pairs) as file:
                read = np.loadtxt(file, delimiter=",", dtype=np.int64, ndmin=2).tolist()
        if any(number % 1 or number < 0 for pair in read for number in pair):
            raise ValueError("rounds and numbers are whole, and count from 0")
        return frozenset((int(round), int(number)) for round, number in read)
    except (OSError, ValueError, TypeError) as error:
        why = ((isinstance(error, OSError) and error.strerror) or str(error)).rstrip(".")
        raise ConfigError(
            f"{name}={pairs} is not made of pairs (round, {who}): {why}. Give pairs, as in [[3, 0], [4, 0]], or a CSV "
            "file of them."
        ) from error


def _check(name: str, who: str, pairs: frozenset[tuple[int, int]], count: int) -> None:
    for _, number in sorted(pairs):
        if not 0 <= number < count:
            raise ConfigError(f"{name}: there is no {who} {number}, {who}s are numbered 0 to {count - 1}.")
