"""What a communicator knows of a learner: what users send and receive, what the aggregator does, and what rows mean.

K users; m numbers in a row and e further ones, e′ in a model; L words in a row of terms.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hmtl.io.arrays import Ids
from hmtl.io.row_layout import RowLayout


class HandedRows(Protocol):
    """Rows [n, m + e] of users, sent slice by slice: a tensor, or rows that are computed as they are sent."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def __getitem__(self, block: tuple[slice, slice], /) -> Tensor: ...


@runtime_checkable
class SentRows(HandedRows, Protocol):
    """Rows whose further numbers depend on what aggregators read of the others, after rounding."""

    def further(self, users: slice, /) -> Callable[[Tensor], Tensor]:
        """Return a function from the numbers [n, m] that aggregators read of rows to their further numbers [n, e]."""


class RowMeaning(Protocol):
    """How terms are made of users' rows, and models of sums of terms, if sums are all that a server needs of the rows.

    The users of a process hold one if terms travel; otherwise the aggregator does, and makes terms on behalf of all
    users. So models have the same bits whatever travels. `hmtl.mtl.algorithms.meaning` documents the members.
    """

    @property
    def words(self) -> int: ...

    @property
    def further(self) -> int: ...

    @property
    def answers(self) -> int: ...

    @property
    def common(self) -> torch.dtype | None: ...

    def terms(self, round: int, users: Ids, rows: Any) -> HandedRows: ...

    def commit(self, users: Ids) -> None: ...

    def models(self, users: Ids, row: Tensor) -> Tensor: ...


class MeaningForAll(RowMeaning, Protocol):
    """What an aggregator needs beyond that to make terms on behalf of all users."""

    @property
    def private(self) -> bool: ...

    def total_of(self, users: Ids, rows: Tensor) -> Tensor: ...


class PlayedUsers(Protocol):
    """The users that a host plays: the learner's own, or `hmtl.communication.terms.TermsAtUsers` around them."""

    def local_update(self, round: int, idle: Ids = ...) -> tuple[Ids, HandedRows]: ...

    def commit(self, users: Ids) -> None: ...

    def roll_back(self, users: Ids) -> None: ...

    def receive(self, users: Ids, models: Tensor) -> Tensor | None: ...


class UserSide(PlayedUsers, Protocol):
    """The part of an algorithm that runs at the users, as one batch. `hmtl.mtl.Users` documents its members."""

    @property
    def row_layout(self) -> RowLayout: ...

    def hold_meaning(self) -> RowMeaning | None: ...


class PlayedAggregator(Protocol):
    """The aggregator that nodes play: the learner's own, or one of `hmtl.communication.terms` around it."""

    def update(self, users: Ids, ivs: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class AggregatorSide(PlayedAggregator, Protocol):
    """The part of an algorithm that turns rows, or their sum, into models. `hmtl.mtl.Aggregator` documents its members.

    It may overwrite sums. It has to leave rows as they are: in one process, they may be the users' own memory.
    """

    def hold_meaning(self) -> MeaningForAll | None: ...
