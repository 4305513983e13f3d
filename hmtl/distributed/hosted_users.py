"""The users of one host among all users of the network."""

import numpy as np
from torch import Tensor

from hmtl.mtl.algorithms.base import NOBODY, Ids, Users


class HostedUsers(Users):
    """A user side addressed by numbers in the whole network; `inner` numbers only the users of this host, from 0.

    Args:
        inner: the user side of this host.
        hosted: numbers of its users in the network [n].
    """

    def __init__(self, inner: Users, hosted: Ids) -> None:
        super().__init__()
        self.inner, self.hosted = inner, hosted
        self.numbers, self.row_bits = inner.numbers, inner.row_bits

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        users, ivs = self.inner.local_update(round, np.flatnonzero(np.isin(self.hosted, idle)))
        return self.hosted[users], ivs

    def commit(self, users: Ids) -> None:
        self.inner.commit(self._places(users))

    def roll_back(self, users: Ids) -> None:
        self.inner.roll_back(self._places(users))

    def receive(self, users: Ids, models: Tensor) -> None:
        self.inner.receive(self._places(users), models)

    def _places(self, users: Ids) -> Ids:
        return np.searchsorted(self.hosted, users)

    def measure(self) -> dict[str, Tensor]:
        return self.inner.measure()

    def local_work(self, round: int, user: int) -> None:
        self.inner.local_work(round, int(self._places(np.array([user]))[0]))
