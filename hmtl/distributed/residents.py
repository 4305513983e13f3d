"""The users of one process among those of the network. K users in all, n of them here."""

import numpy as np
from torch import Tensor

from hmtl.mtl.algorithms.base import NOBODY, Ids, Users


class Residents(Users):
    """User side for the network: it names users by their numbers in all the network, and `inner` by their place here.

    Args:
        inner: the user side of those who are here.
        numbers: of these users, [n].
    """

    def __init__(self, inner: Users, numbers: Ids) -> None:
        self.inner, self.residents = inner, numbers
        self.numbers, self.sums = inner.numbers, inner.sums

    @property
    def row_bits(self) -> tuple[int, int, int]:
        return self.inner.row_bits

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        users, ivs = self.inner.local_update(round, np.flatnonzero(np.isin(self.residents, idle)))
        return self.residents[users], ivs

    def commit(self, users: Ids) -> None:
        self.inner.commit(self._places(users))

    def roll_back(self, users: Ids) -> None:
        self.inner.roll_back(self._places(users))

    def receive(self, users: Ids, models: Tensor) -> None:
        self.inner.receive(self._places(users), models)

    def _places(self, users: Ids) -> Ids:
        return np.searchsorted(self.residents, users)

    def measure(self) -> dict[str, Tensor]:
        return self.inner.measure()

    def local_work(self, round: int, user: int) -> None:
        self.inner.local_work(round, int(self._places(np.array([user]))[0]))

    def state_dict(self) -> dict[str, Tensor]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.inner.load_state_dict(state)
