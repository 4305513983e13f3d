"""Nodes of a round of sums in few bits, see `hmtl.communication.few_bits`.

L numbers in a row, K users. S, the row of absolute sums, changes by s·Σq in a round. The server sends Σq, which users
add to the last S. A user who lacks the last S stays idle and requests it; in that round, the server sends the whole S
to everybody.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.attendance import bytes_to_numbers, numbers_to_bytes
from hmtl.communication.coders import UserCoder
from hmtl.communication.encoding import from_bytes, to_bytes
from hmtl.communication.few_bits import FewBits, blocks_of, sizes_of
from hmtl.communication.messages import Message, Users, nothing
from hmtl.communication.nodes.adding import AddingHost, AddingRelay, AddingServer
from hmtl.communication.nodes.aggregation import Aggregation, PackedModels
from hmtl.communication.nodes.host import UserSide
from hmtl.communication.planning.planner import Planner
from hmtl.communication.row_formats import portions

NO_ROW = -1  # in place of the round of a row
STAMP = 4  # bytes before a row's other overhead: the round of the row that it is to be added to


class FewBitHost(AddingHost):
    """A host whose users round their terms to few bits, with leftovers.

    What rounding leaves over is added to a user's next terms.

    Args: as in `UserHost`, and
        formats: the formats of rows.

    Attributes:
        owed: what rounding has left over, for each user: its terms that counted minus what it sent [users, L].
        owed_if_counted: the same if the user's pending update has counted [users, L].
        row: S, as the users received it last [1, L].
        block_sizes: sizes of the blocks, which arrived with this row; all zero if none are known [1, B].
        held: the round of the last row that each user received [K].
    """

    STATE = (*AddingHost.STATE, "owed", "owed_if_counted", "row", "block_sizes", "held")

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
        self.owed, self.owed_if_counted = np.zeros((2, len(members), formats.L), np.int64)
        self.row = np.zeros((1, formats.L), np.int64)
        self.block_sizes = np.zeros((1, blocks_of(formats.L)), np.int64)
        self.held = np.full(K, NO_ROW)
        self._tell_users(members)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._tell_users(self.members)

    def send(self, round: int, relays: Sequence[str]) -> list[Message]:
        """Return the terms of the users who take part, and requests for S of those who lack it."""
        (message,) = super().send(round, relays)
        terms, places = from_bytes(message.payload, torch.int64), self._places(message.of_users())
        sizes, few = torch.from_numpy(self.block_sizes), bool(self.block_sizes.any())
        row_format = self.formats.terms if few else self.formats.whole
        payload = torch.empty(len(terms), row_format.nbytes, dtype=torch.uint8)
        for at in portions(torch.arange(len(terms)), self.formats.L):
            who = places[at.numpy()]
            x = terms[at] + torch.from_numpy(self.owed[who])
            q, rest = self.formats.rounded(x, sizes) if few else (x, torch.zeros_like(x))
            payload[at] = row_format.pack(q, sizes_of(x))
            self.owed_if_counted[who] = rest
        self.nbytes = payload.shape[1]
        lacking = self.members[self._idle[self.members]]
        flags = torch.ones(len(lacking), 1, dtype=torch.uint8)
        request = replace(message, links=lacking, payload=nothing(len(lacking)), overhead=flags, users=lacking)
        return [replace(message, payload=payload), *([request] if len(lacking) else [])]

    def _take(self, message: Message, ids: Users) -> None:
        """Take S, or add the round's sum to the last S; users who lack that one stay idle."""
        base = int(bytes_to_numbers(message.overhead[0, :STAMP].numpy())[0])
        if base == NO_ROW:
            row, sizes = self.formats.whole.unpack(message.payload[:1])
        else:
            ids = ids[self.held[ids] == base]
            total, sizes = self.formats.sums.unpack(message.payload[:1])
            row = torch.from_numpy(self.row) + self.formats.values(total, torch.from_numpy(self.block_sizes))
        if len(ids):
            self.row, self.block_sizes = row.numpy().copy(), sizes.numpy().copy()
            self.held[ids] = message.round
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
        last = torch.tensor([[requested]], dtype=torch.uint8)
        return [replace(report, overhead=torch.cat([report.overhead, last], dim=1)) for report in reports]


class FewBitServer(AddingServer):
    """A server that adds sums of few bits.

    Args: as in `AddingServer`, and
        formats: the formats of rows.

    Attributes:
        row: S, as it was sent last [1, L].
        made: the round of this row.
        block_sizes: sizes of the blocks in the last round that counted; all zero if none are known [1, B].
    """

    formats: FewBits

    def __init__(self, planner: Planner, aggregation: Aggregation, formats: FewBits) -> None:
        super().__init__(planner, aggregation, formats)
        self.row = torch.zeros(1, formats.L, dtype=torch.int64)
        self.made = NO_ROW
        self.block_sizes = torch.zeros(1, blocks_of(formats.L), dtype=torch.int64)
        self._requested = False
        self._total, self._new_block_sizes = self.row, self.block_sizes  # of the round

    def attend(self, round: int, messages: Sequence[Message]) -> list[Message]:
        self._requested = any(bool(message.overhead[0, -1]) for message in messages)
        return super().attend(round, [replace(message, overhead=message.overhead[:, :-1]) for message in messages])

    def state_dict(self) -> dict[str, Tensor]:
        return {
            **super().state_dict(),
            "row": self.row,
            "made": torch.tensor(self.made),
            "block_sizes": self.block_sizes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.row, self.made, self.block_sizes = state["row"].clone(), int(state["made"]), state["block_sizes"].clone()

    def _row(self, total: Tensor, sizes: Tensor) -> Tensor:
        self._total, self._new_block_sizes = total, sizes
        return self._change()

    def _model_messages(self, models: PackedModels) -> list[Message]:
        """Return messages that carry the round's sum, or S, to the relays that deliver it."""
        row = from_bytes(models.payload, torch.int64)
        usable = self._few and not self._requested
        whole = not usable or not torch.equal(row - self.row, self._change())
        row_format, content = (self.formats.whole, row) if whole else (self.formats.sums, self._total)
        if len(self.attendance.users):  # otherwise the last sizes remain the best guess
            self.block_sizes = self._new_block_sizes
        stamp = torch.from_numpy(numbers_to_bytes([NO_ROW if whole else self.made]))[None]
        self.row, self.made = row.clone(), self.round
        overhead = torch.cat([stamp, models.overhead], dim=1)
        return super()._model_messages(PackedModels(row_format.pack(content, self.block_sizes), overhead))

    @property
    def _few(self) -> bool:
        """Whether users know the scales, so that terms of this round have few bits."""
        return bool(self.block_sizes.any())

    def _change(self) -> Tensor:
        """Return by how much the sums of this round change S, [1, L]."""
        return self.formats.values(self._total, self.block_sizes) if self._few else self._total
