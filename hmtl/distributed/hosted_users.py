"""Users of one host among those of all."""

import numpy as np
from torch import Tensor

from hmtl.mtl.algorithms.base import NOBODY, Ids, Users
from hmtl.mtl.sums import Terms


class HostedUsers:
    """A user side that numbers users as the whole network does; `inner` numbers those of this host from 0.

    Args:
        inner: the user side of this host.
        hosted: numbers of its users in the network [n].
    """

    def __init__(self, inner: Users, hosted: Ids) -> None:
        self.inner, self.hosted = inner, hosted
        self.numbers, self.row_bits = inner.numbers, inner.row_bits
        self.deltas, self.origin, self.averages = inner.deltas, inner.origin, inner.averages
        self.further, self.answers = inner.further, inner.answers

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor | Terms]:
        users, ivs = self.inner.local_update(round, np.flatnonzero(np.isin(self.hosted, idle)))
        return self.hosted[users], ivs

    def take_sent(self, users: Ids, sent: Tensor, further: Tensor) -> Tensor:
        return self.inner.take_sent(self._places(users), sent, further)

    def commit(self, users: Ids) -> None:
        self.inner.commit(self._places(users))

    def roll_back(self, users: Ids) -> None:
        self.inner.roll_back(self._places(users))

    def receive(self, users: Ids, models: Tensor) -> None:
        self.inner.receive(self._places(users), models)

    def _places(self, users: Ids) -> Ids:
        return np.searchsorted(self.hosted, users)
