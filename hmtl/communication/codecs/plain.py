"""Plain numbers: floats as they are, or as a narrower type; nothing is kept of what this conversion rounds.

Coders turn IVs and models into bytes and back, at hosts and at aggregators; those of other modules extend these.

K users, m numbers per IV or model, e further numbers.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hmtl.communication.codecs.formats import NAMES, NUMBERS
from hmtl.communication.codecs.rows import bytes_to_numbers, numbers_to_bytes, pack, unpack
from hmtl.io.arrays import Ids
from hmtl.io.row_layout import RowLayout

State = dict[str, Tensor]
Further = Callable[[Tensor], Tensor]
"""Returns the further numbers [n, e] that belong to the numbers that aggregators will read, [n, m]."""


class Remembering:
    """A coder whose state is the tensors that STATE names."""

    STATE: tuple[str, ...] = ()

    def state_dict(self) -> State:
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        for name in self.STATE:
            setattr(self, name, state[name])


class Read(NamedTuple):
    """What comes with models.

    Attributes:
        users: the users whose models follow from what arrived [n].
        last: the round in which the IV of each of them counted last [n].
        extras: further numbers, as they traveled, uint8 [rows, bytes].
    """

    users: Ids
    last: Ids
    extras: Tensor


class HeardUsers(NamedTuple):
    """The users whose IVs counted in a round.

    Attributes:
        users: their numbers [n].
        last: the round in which each user's IV counted last [K], this round included.
        round: the round.
        requested: whether a user needs more than the round's change, see `UserCoder.requesting`.
    """

    users: Ids
    last: Ids
    round: int
    requested: bool


class UserCoder(Remembering):
    """A host's coder for floats.

    Args:
        layout: of the rows.
        wire: the type in which numbers travel; None: their own.

    Attributes:
        whole: whether rows have to be encoded whole, not some columns at a time.
    """

    whole = False

    def __init__(self, layout: RowLayout, wire: torch.dtype | None) -> None:
        self.row_layout = layout
        self.wire = wire

    def encode(self, users: Ids, ivs: Tensor, first: int, further: Further | None = None) -> tuple[Tensor, Tensor]:
        """Return payload and overhead, uint8 [n, bytes] each, of the IVs [n, m + e] of these users.

        Args:
            users: the users.
            ivs: their IVs; if rows need not be whole, their columns first, first + 1, ..
            first: the first of these columns.
            further: returns the further numbers of what is sent, if they depend on it.
        """
        return pack(ivs, max(0, self.row_layout.numbers - first), self.wire or ivs.dtype)

    def format(self, dtype: torch.dtype) -> str:
        """Return the format of the rows that it encodes from numbers of a type, one of FORMATS."""
        return NAMES[self.wire or dtype]

    def requesting(self, idle: Ids) -> Ids:
        """Return those of these idle users who need a whole row, since they miss the row that a change is added to."""
        return idle[:0]

    def commit(self, users: Ids) -> None:
        """Record that the IVs that these users encoded last counted."""

    def rescale(self, users: Ids, factors: Tensor) -> None:
        """Multiply what is owed to these users' next changes by factors [n]."""

    def read(self, users: Ids, overhead: Tensor, round: int, row_format: str) -> Read:
        """Return what came with the models of these users in a round, given overhead as `AggregatorCoder` made it."""
        return Read(users, bytes_to_numbers(overhead[:, -4:].numpy().ravel()), overhead[:, :-4])

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype, row_format: str) -> Tensor:
        """Return the models [n, m + e′] of these users, which arrived in a format, as `dtype`."""
        return unpack(payload, extras, NUMBERS[row_format], dtype)


class AggregatorCoder(Remembering):
    """An aggregator's coder for floats.

    Args:
        numbers: m.
        wire: the type in which numbers travel; None: their own.

    Attributes:
        adds: whether rows are sums of terms, so that no number belongs to one user.
    """

    adds = False

    def __init__(self, numbers: int, wire: torch.dtype | None) -> None:
        self.numbers = numbers
        self.wire = wire

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype, row_format: str) -> Tensor:
        """Return the IVs [n, m + e] of these users, which arrived in a format, as `dtype`."""
        return unpack(payload, extras, NUMBERS[row_format], dtype)

    def encode(self, models: Tensor, dtype: torch.dtype, heard: HeardUsers) -> tuple[Tensor, Tensor, str]:
        """Return payload and overhead, uint8 [rows, bytes] each, of models [rows, m + e′], and their format.

        The overhead ends with the round in which the user's IV counted last, for each row.

        Args:
            models: the models.
            dtype: the type of the users' numbers.
            heard: whose IVs they follow from.
        """
        wire = self.wire or dtype
        payload, extras = pack(models, self.numbers, wire)
        return payload, torch.cat([extras, self._receipts(heard.last)], dim=1), NAMES[wire]

    def _receipts(self, last: Ids) -> Tensor:
        """Return the round in which the user's IV counted last, for each row of models, uint8 [rows, bytes]."""
        return torch.from_numpy(numbers_to_bytes(last).reshape(-1, 4))
