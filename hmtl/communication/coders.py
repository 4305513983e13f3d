"""Coders: how hosts and aggregators turn IVs and models into bytes and back.

They remember what this takes. Floats need no memory. Numbers of few bits are differences to what the receiver is known
to hold, so that a rounding error is part of the next difference, and none is lost for good.

Up: to IVs that are changes, which aggregators add up, what rounding left over of the last one is added first. Other
IVs, such as models, travel as differences to what the aggregators made of the user's last one that counted. What is
left over, or what the aggregators hold, stays pending at the user until it learns whether its IV counted.

Down: the aggregators send differences to base_k, a model that user k is known to hold. An IV of user k proves that it
holds the model sent last, since a user without it takes no part; the receipt that comes with each model tells the user
whether that IV was heard. So a lost model needs no repair, and no message has to name its base.

K users, m numbers per IV or model, e further numbers.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.attendance import bytes_to_numbers, numbers_to_bytes
from hmtl.communication.encoding import joined, pack, replaced, take, unpack
from hmtl.communication.sides import UserSide
from hmtl.communication.wires import NUMBERS, Quantiser, format_of

Ids = NDArray[np.int64]
State = dict[str, Tensor]
Further = Callable[[Tensor], Tensor]
"""Returns the further numbers [n, e] that belong to the numbers that aggregators will read, [n, m]."""


class Remembering:
    """What remembers some of its attributes, tensors named in STATE, from round to round."""

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
        extras: further numbers, as they travelled, uint8 [rows, bytes].
    """

    users: Ids
    last: Ids
    extras: Tensor


class UserCoder(Remembering):
    """A host's coder for floats.

    Args:
        users: the user side.
        wire: the type in which numbers travel; None: their own.

    Attributes:
        whole: whether rows have to be encoded whole, not some columns at a time.
    """

    whole = False

    def __init__(self, users: UserSide, wire: torch.dtype | None) -> None:
        self.users = users
        self.wire = wire

    def encode(self, users: Ids, ivs: Tensor, first: int, further: Further | None = None) -> tuple[Tensor, Tensor]:
        """Return payload and overhead, uint8 [n, bytes] each, of the IVs [n, m + e] of these users.

        Args:
            users: the users.
            ivs: their IVs; if rows need not be whole, their columns first, first + 1, ..
            first: the first of these columns.
            further: returns the further numbers of what is sent, if they depend on it.
        """
        return pack(ivs, max(0, self.users.numbers - first), self.wire or ivs.dtype)

    def format(self, dtype: torch.dtype) -> str:
        """Return the format of the rows that it encodes from numbers of a type, one of `wires.FORMATS`."""
        return format_of(self.wire or dtype)

    def requesting(self, idle: Ids) -> Ids:
        """Return those of these idle users who need a whole row, since they miss the row that a change is added to."""
        return idle[:0]

    def commit(self, users: Ids) -> None:
        """Record that the IVs that these users encoded last counted."""

    def rescale(self, users: Ids, factors: Tensor) -> None:
        """Multiply what is owed to these users' next changes by factors [n]."""

    def read(self, users: Ids, overhead: Tensor, round: int) -> Read:
        """Return what came with the models of these users in a round, given overhead as `AggregatorCoder` made it."""
        return Read(users, bytes_to_numbers(overhead[:, -4:].numpy().ravel()), overhead[:, :-4])

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the models [n, m + e′] of these users, as `dtype`."""
        return unpack(payload, extras, self.wire or dtype, dtype)


class AggregatorCoder(Remembering):
    """An aggregator's coder for floats.

    Args:
        numbers: m.
        wire: the type in which numbers travel; None: their own.

    Attributes:
        adds: whether rows are sums of terms, so that nobody knows of whom a number is.
    """

    adds = False

    def __init__(self, numbers: int, wire: torch.dtype | None) -> None:
        self.numbers = numbers
        self.wire = wire

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype, row_format: str) -> Tensor:
        """Return the IVs [n, m + e] of these users, which arrived in a format, as `dtype`."""
        return unpack(payload, extras, NUMBERS[row_format], dtype)

    def hear(self, counted: Ids, round: int, requested: bool) -> None:
        """Note who took part, before models are encoded.

        Args:
            counted: the round in which each user's IV counted last [K], this round included.
            round: the round.
            requested: whether a user needs more than the round's change, see `UserCoder.requesting`.
        """

    def receipts(self, counted: Ids) -> Tensor:
        """Return the round in which the user's IV counted last, for each row of models, uint8 [rows, bytes]."""
        return torch.from_numpy(numbers_to_bytes(counted).reshape(-1, 4))

    def encode(self, heard: Ids, models: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return payload and overhead, uint8 [rows, bytes] each, of models [rows, m + e′].

        Args:
            heard: the users whose IVs counted in this round.
            models: the models.
            dtype: the type of the users' numbers.
        """
        return pack(models, self.numbers, self.wire or dtype)


class QuantisedUserCoder(UserCoder):
    """A host's coder for numbers of few bits.

    Args:
        users: the user side.
        quantiser: rounds numbers.
        members: the numbers of these users in the network [n], ascending.

    Attributes:
        held: each user's last IV that counted, as aggregators hold it [n, m]; if IVs are changes, what rounding left
            over, with the opposite sign, which is what aggregators hold beyond the sum of all changes.
        pending: the same, if the IV that was sent last counts [n, m].
        base: the model that aggregators know each user to hold [n, m].
        newest: the model that each user received last [n, m].
    """

    STATE = ("held", "pending", "base", "newest")
    whole = True

    def __init__(self, users: UserSide, quantiser: Quantiser, members: Ids) -> None:
        super().__init__(users, None)
        self.quantiser = quantiser
        self.members = members
        origin = users.origin.cpu()
        self.newest = self.base = origin.expand(len(members), -1)
        self.pending = self.held = (torch.zeros_like(origin) if users.deltas else origin).expand_as(self.base)

    def encode(self, users: Ids, ivs: Tensor, first: int, further: Further | None = None) -> tuple[Tensor, Tensor]:
        at, m = self._rows(users), self.users.numbers
        held, numbers = take(self.held, at), ivs[:, :m].cpu()
        wanted = numbers - held
        payload, sent = self.quantiser.encode(wanted), torch.empty_like(wanted)
        self.quantiser.decode(payload, sent)
        self.pending = replaced(self.pending, at, sent - wanted if self.users.deltas else sent + held)
        extras = further(sent.to(ivs.device)) if further else ivs[:, m:]
        return payload, pack(extras, 0, ivs.dtype)[1]

    def format(self, dtype: torch.dtype) -> str:
        return format_of(self.quantiser)

    def commit(self, users: Ids) -> None:
        at = self._rows(users)
        self.base = replaced(self.base, at, take(self.newest, at))
        self.held = replaced(self.held, at, take(self.pending, at))

    def rescale(self, users: Ids, factors: Tensor) -> None:
        at = self._rows(users)
        self.held = replaced(self.held, at, factors[:, None].to(self.held) * take(self.held, at))

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype) -> Tensor:
        at, m = self._rows(users), self.users.numbers
        models = torch.empty(len(users), m, dtype=dtype)
        self.quantiser.decode(payload, models)
        models += take(self.base, at)
        self.newest = replaced(self.newest, at, models)
        return joined(models, extras)

    def _rows(self, users: Ids) -> Tensor:
        return torch.from_numpy(np.searchsorted(self.members, users))


class QuantisedAggregatorCoder(AggregatorCoder):
    """An aggregator's coder for numbers of few bits.

    Args:
        users: the user side, of which only what all nodes know before the first round is read.
        quantiser: rounds numbers.
        K: number of users.

    Attributes:
        held: each user's last IV that counted [K, m]; empty if IVs are changes.
        base: the model that each user is known to hold [K, m].
        sent: the difference to it that was sent to each user last, as it travelled, uint8 [K, bytes].
    """

    STATE = ("held", "base", "sent")

    def __init__(self, users: UserSide, quantiser: Quantiser, K: int) -> None:
        super().__init__(users.numbers, None)
        self.deltas = users.deltas
        self.quantiser = quantiser
        origin = users.origin.cpu()
        self.held = origin.expand(0 if self.deltas else K, -1)
        self.base = origin.expand(K, -1)
        self.sent = quantiser.encode(torch.zeros_like(origin)[None]).expand(K, -1)

    @property
    def newest(self) -> Tensor:
        """The model that was sent to each user last [K, m]."""
        change = torch.empty_like(self.base, memory_format=torch.contiguous_format)
        self.quantiser.decode(self.sent, change)
        return change.add_(self.base)

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype, row_format: str) -> Tensor:
        numbers = torch.empty(len(users), self.numbers, dtype=dtype)
        self.quantiser.decode(payload, numbers)
        if not self.deltas:
            at = torch.from_numpy(users)
            numbers += take(self.held, at)
            self.held = replaced(self.held, at, numbers.clone())
        return joined(numbers, extras)

    def encode(self, heard: Ids, models: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        known = torch.from_numpy(heard)
        self.base = replaced(self.base, known, take(self.newest, known))
        self.sent = self.quantiser.encode(models[:, : self.numbers].to(self.base) - self.base)
        return self.sent, pack(models[:, self.numbers :], 0, dtype)[1]
