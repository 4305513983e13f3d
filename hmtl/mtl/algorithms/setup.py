"""What is exchanged before the first round: facts of each user, and what it has to know that follows from all facts."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from hmtl.mtl.algorithms.base import NOBODY, Aggregator, Ids, Users


class SetupUsers(Users):
    """User side of a set-up: all users tell facts [K, f], and are told e numbers each."""

    numbers = 0

    def __init__(self, facts: Tensor, learn: Callable[[Ids, Tensor], None]) -> None:
        self.facts, self.learn = facts.double(), learn

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        users = np.setdiff1d(np.arange(len(self.facts)), idle)
        return users, self.facts[users]

    def receive(self, users: Ids, models: Tensor) -> None:
        self.learn(users, models)

    def measure(self) -> dict[str, Tensor]:
        return {}

    def local_work(self, round: int, user: int) -> None:
        pass

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


class SetupAggregator(Aggregator):
    """Aggregator side of a set-up.

    Args:
        learn: takes the facts [K, f] of all users and gives the e numbers that each of them needs, [K, e].
        K: number of users.
    """

    def __init__(self, learn: Callable[[Tensor], Tensor], K: int) -> None:
        self.learn, self.K = learn, K

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        if len(users) < self.K:
            raise ValueError(f"Facts of {len(users)} of K={self.K} users: a set-up needs those of all of them.")
        return self.learn(ivs)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass
