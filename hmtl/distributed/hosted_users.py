"""Users of one host among those of all."""

import numpy as np
from torch import Tensor

from hmtl.io.arrays import NOBODY, Ids
from hmtl.mtl.algorithms.base import Users
from hmtl.mtl.algorithms.meaning import Meaning
from hmtl.mtl.sums import LazyRows


class HostedUsers:
    """A user side that numbers users as the whole network does; `inner` numbers those of this host from 0.

    Args:
        inner: the user side of this host.
        hosted: numbers of its users in the network [n].
    """

    def __init__(self, inner: Users, hosted: Ids) -> None:
        self.inner, self.hosted = inner, hosted
        self.row_layout = inner.row_layout

    def hold_meaning(self) -> "HostedMeaning | None":
        meaning = self.inner.hold_meaning()
        return HostedMeaning(meaning, self.hosted) if meaning else None

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor | LazyRows]:
        users, ivs = self.inner.local_update(round, np.flatnonzero(np.isin(self.hosted, idle)))
        return self.hosted[users], ivs

    def commit(self, users: Ids) -> None:
        self.inner.commit(self._places(users))

    def roll_back(self, users: Ids) -> None:
        self.inner.roll_back(self._places(users))

    def receive(self, users: Ids, models: Tensor) -> Tensor | None:
        return self.inner.receive(self._places(users), models)

    def _places(self, users: Ids) -> Ids:
        return np.searchsorted(self.hosted, users)


class HostedMeaning:
    """A meaning that numbers users as the whole network does; `inner` numbers those of this host from 0.

    Args:
        inner: what the rows of this host's users mean.
        hosted: numbers of its users in the network [n].
    """

    def __init__(self, inner: Meaning, hosted: Ids) -> None:
        self.inner, self.hosted = inner, hosted
        self.words, self.further, self.answers = inner.words, inner.further, inner.answers
        self.common = inner.common

    def terms(self, round: int, users: Ids, rows: Tensor | LazyRows) -> Tensor | LazyRows:
        return self.inner.terms(round, np.searchsorted(self.hosted, users), rows)

    def commit(self, users: Ids) -> None:
        self.inner.commit(np.searchsorted(self.hosted, users))

    def models(self, users: Ids, row: Tensor) -> Tensor:
        return self.inner.models(np.searchsorted(self.hosted, users), row)
