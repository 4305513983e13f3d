"""Which users take part in a round, and how much of the usual local work each of them does.

K users, numbered from 0, as rounds are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.rng import generator


@dataclass(frozen=True)
class Participation:
    """Stragglers, who do a part of their work, and users who drop out of a round.

    In a round, a user does the share U(low, high) of its usual work, drawn anew, times its speed; of its usual work
    because a round lasts as long as a user of full speed needs. A user that drops out sends nothing.

    Args:
        low, high: bounds of the share that is drawn, 0 < low ≤ high ≤ 1.
        speeds: K numbers in (0, 1], or None where all users are equally fast.
        dropout: probability in [0, 1) that a user drops out of a round.
        schedule: pairs (round, user) that drop out besides, or the path of a CSV file with such a pair per line.

    Raises:
        ConfigError: a number is out of its range, or the schedule cannot be read.

    Ref: Smith et al. 2017, section 3.3.
    """

    low: float = 1.0
    high: float = 1.0
    speeds: Sequence[float] | None = None
    dropout: float = 0.0
    schedule: Sequence[Sequence[int]] | str | Path = ()
    absent: frozenset[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ConfigError(f"low={self.low}, high={self.high}: shares of work need 0 < low ≤ high ≤ 1.")
        for k, speed in enumerate(self.speeds or ()):
            if not 0 < speed <= 1:
                raise ConfigError(f"speeds: user {k} has {speed}, not in (0, 1], 1 being full speed.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} is not in [0, 1): nobody may stay away for ever.")
        try:
            pairs = self.schedule
            if isinstance(pairs, str | Path):
                pairs = np.loadtxt(pairs, delimiter=",", dtype=np.int64, ndmin=2).tolist()
            object.__setattr__(self, "absent", frozenset((int(round), int(user)) for round, user in pairs))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"schedule={self.schedule} is not made of pairs (round, user): {error}.") from error

    def check(self, K: int) -> None:
        """Refuse a number of users that speeds or schedule do not fit.

        Raises:
            ConfigError: another number of speeds than of users, or a user who is not there.
        """
        if self.speeds is not None and len(self.speeds) != K:
            raise ConfigError(f"speeds has {len(self.speeds)} numbers for K={K} users. Give one per user.")
        for _, user in self.absent:
            if not 0 <= user < K:
                raise ConfigError(f"schedule: there is no user {user}, users are numbered 0 to {K - 1}.")

    def shares(self, seed: int, round: int, K: int) -> Tensor:
        """Share of its usual work that each user does in a round, [K]; 0 for those who drop out."""
        rng = generator(seed, "participation", round)
        shares = rng.uniform(self.low, self.high, K) * (1.0 if self.speeds is None else np.asarray(self.speeds))
        shares[rng.random(K) < self.dropout] = 0
        shares[[user for when, user in self.absent if when == round]] = 0
        return torch.from_numpy(shares)

    def budgets(self, usual: Tensor, seed: int, round: int) -> Tensor:
        """Steps of each user, [K], out of the `usual` ones: at least one, or none for those who drop out."""
        shares = self.shares(seed, round, len(usual)).to(usual.device)
        return torch.where(shares > 0, (shares * usual).long().clamp_min(1), 0)
