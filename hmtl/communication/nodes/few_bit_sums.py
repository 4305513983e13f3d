"""Nodes of a round of sums in few bits, see `hmtl.communication.few_bits`.

m numbers in a row of terms, K users. S, the row of absolute sums, changes by s·Σq in a round. Users get the sum of the
rows, Σq and the votes on scales, and add s·Σq to the last S. A user who lacks the last S stays idle and requests it; in
that round, everybody gets the whole S, with the scales. The server announces requests with the attendance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.attendance import bytes_to_numbers, numbers_to_bytes
from hmtl.communication.coders import AggregatorCoder, State, UserCoder
from hmtl.communication.encoding import from_bytes, to_bytes
from hmtl.communication.few_bits import FewBits, longest_absence
from hmtl.communication.messages import Message, Users, nothing
from hmtl.communication.nodes.adding import AddingHost, AddingRelay, AddingServer, split_receipts
from hmtl.communication.nodes.base import Server
from hmtl.communication.nodes.host import UserSide
from hmtl.communication.nodes.summing import SummingRelay, SummingServer
from hmtl.communication.planning.planner import Planner
from hmtl.communication.row_formats import portions

STAMP = 4  # bytes before a row's other overhead: its number n, if it is to be added to row n − 1; −n, if it is S itself


class FewBitHost(AddingHost):
    """A host whose users round their terms to few bits, with leftovers.

    What rounding leaves over is added to a user's next terms.

    Args: as in `UserHost`, and
        formats: the formats of rows.

    Attributes:
        owed: what rounding has left over, for each user: its terms that counted minus what it sent [users, m].
        owed_if_counted: the same if the user's pending update has counted [users, m].
        row: S, as the users received it last [1, m].
        scales: of the next terms, which follow from this row; all zero if none are known [2, B].
        held: the number of the last row that each user received [K]; 0 before the first one.
    """

    STATE = (*AddingHost.STATE, "owed", "owed_if_counted", "row", "scales", "held")

    formats: FewBits

    def __init__(
        self,
        K: int,
        users: UserSide,
        coder: UserCoder,
        number: int,
        members: Users,
        planner: Planner,
        formats: FewBits,
    ) -> None:
        super().__init__(K, users, coder, number, members, planner, formats)
        self.owed, self.owed_if_counted = np.zeros((2, len(members), formats.numbers), np.int64)
        self.row = np.zeros((1, formats.numbers), np.int64)
        self.scales = np.zeros((2, formats.blocks), np.int64)
        self.held = np.zeros(K, np.int64)
        self._tell_users(members)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._tell_users(self.members)

    def send(self, round: int, relays: Sequence[str]) -> list[Message]:
        """Return the terms of the users who take part, and requests for S of those who lack it."""
        (message,) = super().send(round, relays)
        terms, places = from_bytes(message.payload, torch.int64), self._places(message.of_users())
        row_format = self.formats.terms if self.scales.any() else self.formats.whole
        payload = torch.empty(len(terms), row_format.nbytes, dtype=torch.uint8)
        for at in portions(torch.arange(len(terms)), self.formats.L):
            who = places[at.numpy()]
            x = terms[at] + torch.from_numpy(self.owed[who])
            rows, rest = self.formats.rounded(x, torch.from_numpy(self.scales))
            payload[at], self.owed_if_counted[who] = row_format.pack(rows), rest
        self.nbytes = payload.shape[1]
        lacking = self.members[self._idle[self.members]]
        flags = torch.ones(len(lacking), 1, dtype=torch.uint8)
        request = replace(message, links=lacking, payload=nothing(len(lacking)), overhead=flags, users=lacking)
        return [replace(message, payload=payload), *([request] if len(lacking) else [])]

    def _take(self, message: Message, ids: Users) -> None:
        """Take S, or add the round's sum to the last S; users who lack that one stay idle."""
        number = int(bytes_to_numbers(message.overhead[0, :STAMP].numpy())[0])
        if number < 0:
            row, *scales_of = self.formats.split(self.formats.whole.unpack(message.payload[:1]))
            scales = torch.cat(scales_of)
        else:
            ids, last = ids[self.held[ids] == number - 1], torch.from_numpy(self.scales)
            total = self.formats.sums.unpack(message.payload[:1])
            row = torch.from_numpy(self.row) + self.formats.values(total, last)
            _, receipts = split_receipts(message.overhead[0].numpy())
            scales = self.formats.next_scales(total, last, longest_absence(receipts, message.round))
        if len(ids):
            self.row, self.scales = row.numpy().copy(), scales.numpy().copy()
            self.held[ids] = abs(number)
            super()._take(replace(message, payload=to_bytes(row), overhead=message.overhead[:, STAMP:]), ids)

    def _settle(self, users: Users, last: Users) -> None:
        ids = users[self.pending[users] & (last == self.sent[users])]
        counted = self._places(ids)
        self.owed[counted] = self.owed_if_counted[counted]
        super()._settle(users, last)
        self._tell_users(ids)

    def _tell_users(self, users: Users) -> None:
        """Tell these users what rounding has left over so far."""
        self.users.take_leftover(users, torch.from_numpy(self.owed[self._places(users)]))

    def _places(self, users: Users) -> Users:
        """Return the places of these users among the members."""
        return np.searchsorted(self.members, users)


class FewBitRelay(AddingRelay):
    """A relay that adds terms of few bits, and passes on whether a user within range requests S."""

    def report(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """Take the terms and requests of users within range, and report to the server."""
        requests = [message for message in messages if not message.payload.shape[1]]
        terms = [message for message in messages if message.payload.shape[1]]
        heard = [message for message in terms if len(message)]  # a host all of whose users wait may not know the format
        reports = super().report(round, heard or terms[:1])
        requested = any(self.topology.G[self.i][message.of_users()].any() for message in requests)
        return [_with_flag(report, _flag(requested)) for report in reports]

    def attend(self, messages: Sequence[Message]) -> None:
        super().attend([replace(message, overhead=message.overhead[:, :-1]) for message in messages])
        self.note = messages[0].overhead[:, -1:] if messages else _flag(False)


class FewBitSummingRelay(FewBitRelay, SummingRelay):
    """A relay that adds terms of few bits and, if it aggregates, learns their sums."""


class RequestedServer(Server):
    """A server that announces whether a user requests S.

    Attributes:
        note: 1 if so, otherwise 0, uint8 [1, 1].
    """

    note: Tensor

    def attend(self, round: int, messages: Sequence[Message]) -> list[Message]:
        self.note = _flag(any(bool(message.overhead[0, -1]) for message in messages))
        return super().attend(round, [replace(message, overhead=message.overhead[:, :-1]) for message in messages])

    def _announce(self) -> list[Message]:
        return [_with_flag(message, self.note) for message in super()._announce()]


class FewBitServer(RequestedServer, AddingServer):
    """A server that learns sums of few bits."""


class FewBitSummingServer(RequestedServer, SummingServer):
    """A server that adds terms of few bits for relays that learn the sums."""


class FewBitCoder(AggregatorCoder):
    """A coder that turns a round's sum of few bits into the change of S, and S into the row for the users.

    Args:
        formats: the formats of rows.

    Attributes:
        row: S, as it was sent last [1, m].
        number: the number of this row, counted from 1.
        scales: of the next terms; all zero if none are known [2, B].
    """

    STATE = ("row", "number", "scales")

    def __init__(self, formats: FewBits) -> None:
        super().__init__(formats.numbers, None)
        self.formats = formats
        self.row = torch.zeros(1, formats.numbers, dtype=torch.int64)
        self.number = torch.tensor(0)
        self.scales = torch.zeros(2, formats.blocks, dtype=torch.int64)
        self._total, self._change, self._next, self._requested = self.row, self.row, self.scales, True

    def decode(self, users: Users, payload: Tensor, extras: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the change of S, given the packed sum; `extras` end with whether a user requests S."""
        row_format = self.formats.sums if payload.shape[1] == self.formats.sums.nbytes else self.formats.whole
        self._total = row_format.unpack(payload)
        self._change = self.formats.values(self._total, self.scales)
        if not self._few:
            self._next = self.formats.first_scales(self._change, len(users))
        self._requested = bool(extras[0, -1])
        return super().decode(users, to_bytes(self._change), extras[:, :-1], dtype)

    def hear(self, counted: Users, round: int) -> None:
        if self._few:
            self._next = self.formats.next_scales(self._total, self.scales, longest_absence(counted, round))

    def encode(self, heard: Users, models: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the round's sum, or S if users need it, with its stamp before the further numbers."""
        payload, extras = super().encode(heard, models, dtype)
        row = from_bytes(payload, torch.int64)
        voted = self._few and len(heard) > 0
        as_sum = voted and not self._requested and torch.equal(row - self.row, self._change)
        if len(heard):
            self.scales = self._next
        self.row, self.number = row.clone(), self.number + 1
        stamp = torch.from_numpy(numbers_to_bytes([int(self.number if as_sum else -self.number)]))[None]
        if as_sum:
            packed = self.formats.sums.pack(self._total)
        else:
            packed = self.formats.whole.pack(torch.cat([row, self.scales.view(1, -1)], dim=1))
        return packed, torch.cat([stamp, extras], dim=1)

    def state_dict(self) -> State:
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self.STATE:
            setattr(self, name, state[name])

    @property
    def _few(self) -> bool:
        """Whether users know the scales, so that terms of this round have few bits."""
        return bool(self.scales.any())


def _flag(value: bool) -> Tensor:
    return torch.tensor([[value]], dtype=torch.uint8)


def _with_flag(message: Message, flag: Tensor) -> Message:
    return replace(message, overhead=torch.cat([message.overhead, flag], dim=1))
