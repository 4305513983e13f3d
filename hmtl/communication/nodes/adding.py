"""Nodes of a round of sums: relays and server add, the server learns the sums, and one row goes back to everybody.

K users, H relays, L numbers in a row of terms or sums, int64. Relays send shares of rows, by codes of
`hmtl.coding.sum_codes`; with c = 1, a share is a whole row:
    up: the relays of users who were heard; each sends its shares of the sum of all terms;
    down: the relays of users within range of some relay; each sends its shares of the server's row to its users.
`hmtl.communication.nodes.summing` has the nodes of rounds in which relays learn the sums.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import SumCode
from hmtl.communication.attendance import bytes_to_numbers, numbers_to_bytes
from hmtl.communication.coders import UserCoder
from hmtl.communication.encoding import from_bytes, to_bytes, unpack
from hmtl.communication.messages import IVS, MODELS, Message, Users, nothing, relay_number
from hmtl.communication.nodes.aggregation import Aggregation, PackedModels
from hmtl.communication.nodes.base import Relay, relay_of
from hmtl.communication.nodes.forwarding import ForwardingServer
from hmtl.communication.nodes.host import UserHost, UserSide
from hmtl.communication.planning.planner import Planner
from hmtl.communication.row_formats import Formats, RowFormat, portions
from hmtl.errors import CodingError


class AddingHost(UserHost):
    """A host whose users send terms of sums, and receive one row for all of them.

    Args: as in `UserHost`, and
        planner: plans of the network, which say whose shares a user needs.
        formats: the formats of rows.
    """

    def __init__(
        self,
        K: int,
        users: UserSide,
        coder: UserCoder,
        number: int,
        members: Users,
        planner: Planner,
        formats: Formats,
    ) -> None:
        super().__init__(K, users, coder, number, members)
        self.planner, self.formats = planner, formats

    def follow(self, planner: Planner) -> None:
        self.planner = planner

    def send(self, round: int, relays: Sequence[str]) -> list[Message]:
        messages = super().send(round, relays)
        if self.dtype != torch.int64:
            raise CodingError(
                f"communicator=sums adds terms of type int64, but these users send {self.dtype}. Make the algorithm "
                "with messages='sums'."
            )
        return messages

    def receive(self, models: Sequence[Message]) -> None:
        """Take the row that all users share; a user who lacks one of its shares stays idle."""
        models = [message for message in models if len(message.of_users())]  # others' rows are left out on the way
        row = self._joined(models) if models else None
        if row:
            self._take(row, row.of_users())

    def _take(self, message: Message, ids: Users) -> None:
        """Give these users the row of a message, whose overhead ends with the receipts of all users."""
        extras, receipts = split_receipts(message.overhead[0].numpy())
        self._settle(ids, receipts[ids])
        row = unpack(message.payload[:1], torch.from_numpy(extras)[None], torch.int64, torch.int64)
        self.users.receive(ids, row.to(self.device).expand(len(ids), -1))

    def _joined(self, models: Sequence[Message]) -> Message | None:
        """Return a message with the row for the users all of whose shares arrived; None if there are none."""
        H = self.planner.topology.H
        overhead, header = models[0].overhead[:1, : -_nbytes(H)], models[0].overhead[0, -_nbytes(H) :].numpy()
        relays = np.flatnonzero(np.unpackbits(header, count=H))
        code = self.planner.spread_code(tuple(relays.tolist()), self.formats.L)
        arrived = np.zeros(len(code.of_user), dtype=np.int64)
        for message in models:
            needs = code.needs(relay_number(message.sender)).sum(axis=1)
            arrived[message.of_users()] += needs[code.of_user[message.of_users()]]
        ids = self.members[arrived[self.members] == code.pieces]
        if not len(ids):
            return None
        group, rows = int(code.of_user[ids[0]]), []
        for message in models:
            if ids[0] not in message.of_users():
                continue
            needed = code.needs(relay_number(message.sender))[group]
            if self.planner.network.last_hop == "unicast":  # only what these users need was sent
                needed = needed[needed]
            rows.append(message.payload[:1].reshape(len(needed), -1)[torch.from_numpy(needed)])
        shares = torch.cat(rows)
        row_format = next(f for f in (self.formats.sums, self.formats.whole) if f.share_nbytes(code) == shares.shape[1])
        return replace(models[0], payload=row_format.join(shares, code, group), overhead=overhead, users=ids, at=None)


class AddingRelay(Relay):
    """A relay that adds up rows of its users, and sends them the server's row.

    Args: as in `Relay`, and
        formats: the formats of rows.

    Attributes:
        note: what the coder of the aggregator reads after the further numbers, uint8 [1, bytes].
    """

    def __init__(self, i: int, planner: Planner, hosts: Sequence[str], formats: Formats) -> None:
        super().__init__(i, planner, hosts)
        self.formats, self.note = formats, nothing(1)

    def plan(self) -> None:
        self.planner.plan_sums(self.attendance, self.formats.L)

    def forward(self) -> list[Message]:
        """Send this relay's shares of the sum of all terms that have to reach the server, if it has any."""
        code, L = self.planner.sum_code(self.attendance.apart, self.formats.L), self.formats.L
        own = code.shares_of(self.i)
        if not len(own):
            return []
        terms, sums = formats_of_terms(self.formats, self.sizes[0])
        shares = torch.zeros(len(own) * code.bits, code.stretches(L), dtype=torch.int64)
        for users, matrix in code.terms(self.i):
            total = terms.added(self._ivs["payload"], torch.from_numpy(self._row[users]))
            shares += torch.mm(matrix, code.cut(total[0]))
        payload, overhead = sums.words.pack(shares.view(len(own), -1)).reshape(1, -1), nothing(1)
        if (led := code.leaders == self.i).any():  # further numbers are not cut into shares
            overhead = add_rows(self._ivs["overhead"], torch.from_numpy(self._row[led]))
        return [self._to_server(IVS, payload, overhead)]

    def deliver(self) -> list[Message]:
        """Send this relay's shares of the server's row to the users who need them, if any."""
        code = self.planner.spread_code(self.attendance.holders, self.formats.L)
        own = code.shares_of(self.i)
        if not self._passed or not len(own):
            return []
        (row,) = self._passed
        if self.planner.network.medium == "unicast":  # the server sent these shares
            return self._spread(row.payload, row.overhead)
        return self._spread(_format_of_row(self.formats, row.payload).split(row.payload, code, own), row.overhead)

    def _spread(self, shares: Tensor, overhead: Tensor) -> list[Message]:
        """Return messages with this relay's shares of a row to the users who need them."""
        code, network = self.planner.spread_code(self.attendance.holders, self.formats.L), self.planner.network
        own = code.shares_of(self.i)
        if not len(own):
            return []
        shares = shares.reshape(len(own), -1)
        present = np.zeros(self.topology.H, dtype=np.uint8)
        present[list(self.attendance.holders)] = 1
        overhead = torch.cat([overhead, torch.from_numpy(np.packbits(present))[None]], dim=1)
        needs = np.append(code.needs(self.i), np.zeros((1, len(own)), dtype=bool), axis=0)[code.of_user]  # [K, x]
        if network.last_hop == "broadcast":
            broadcast = self.topology.K + self.i  # the ledger's link for what all users of this relay hear
            message = self._to_users(MODELS, shares.reshape(1, -1), overhead, np.flatnonzero(needs.any(axis=1)))
            return [replace(message, links=broadcast)]
        messages = []
        for needed in np.unique(needs[needs.any(axis=1)], axis=0):
            users = np.flatnonzero((needs == needed).all(axis=1))
            payload = shares[torch.from_numpy(needed)].reshape(1, -1)
            messages.append(
                self._to_users(MODELS, payload, overhead, users, torch.zeros(len(users), dtype=torch.int64))
            )
        return messages


class AddingServer(ForwardingServer):
    """A server that adds the relays' sums.

    Args: as in `ForwardingServer`, and
        formats: the formats of rows.

    Attributes:
        note: what the coder of the aggregator reads after the further numbers, uint8 [1, bytes].
    """

    def __init__(self, planner: Planner, aggregation: Aggregation, formats: Formats) -> None:
        super().__init__(planner, aggregation)
        self.formats, self.note = formats, nothing(1)

    def plan(self) -> None:
        self.planner.plan_sums(self.attendance, self.formats.L)

    def gather(self, messages: Sequence[Message]) -> None:
        """Add the sums that the relays sent in shares."""
        code = self.planner.sum_code(self.attendance.apart, self.formats.L)
        if self.empty or self._lacks(code.relays, messages):
            return
        payload, overhead = add_shares(code, self.formats, self.sizes, messages)
        rows = {"payload": payload, "overhead": torch.cat([overhead, self.note], dim=1)}
        self.aggregation.keep(self.round, self.name, self.attendance.users, rows)
        self._dtype = torch.int64

    def _model_messages(self, models: PackedModels) -> list[Message]:
        """Return messages that carry the row for all users, or shares of it, to the relays that deliver it."""
        code, row = self.planner.spread_code(self.attendance.holders, self.formats.L), models.payload
        if self.planner.network.medium == "broadcast":
            return self._to(code.relays, MODELS, row, models.overhead)
        row_format = _format_of_row(self.formats, row)
        shares = {i: row_format.split(row, code, code.shares_of(i)).reshape(1, -1) for i in code.relays}
        return [message for i, own in shares.items() for message in self._to((i,), MODELS, own, models.overhead)]


class SummingAggregation(Aggregation):
    """An aggregation that gives one row of sums, with one row of receipts, for all users."""

    def _receipts(self) -> Tensor:
        # Most users' last round is the same, so the compressed receipts take far less than 4 bytes for each user.
        packed = np.frombuffer(zlib.compress(numbers_to_bytes(self.counted).tobytes()), np.uint8)
        return torch.from_numpy(np.concatenate([packed, numbers_to_bytes([len(packed)])]))[None]


def split_receipts(overhead: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Split a row's overhead into further numbers and the receipts of all users [K]."""
    content, nbytes = overhead[:-4], int(bytes_to_numbers(overhead[-4:])[0])
    start = len(content) - nbytes
    receipts = np.frombuffer(zlib.decompress(content[start:].tobytes()), np.uint8)
    return content[:start], bytes_to_numbers(receipts)


def add_shares(
    code: SumCode, formats: Formats, sizes: tuple[int, int], messages: Sequence[Message]
) -> tuple[Tensor, Tensor]:
    """Return the sum of the terms of which relays sent shares, and the sum of their overhead, uint8 [1, bytes] each.

    `sizes` are the bytes of payload and overhead of a user's terms.
    """
    _, sums = formats_of_terms(formats, sizes[0])
    words, stretch = sums.words, code.stretches(formats.L)
    shares, further = [torch.zeros(0, stretch, dtype=torch.int64)], [torch.zeros(1, sizes[1], dtype=torch.uint8)]
    for message in messages:
        packed = message.payload.reshape(len(code.shares_of(relay_of(message))), -1)
        shares.append(words.unpack(packed, code.bits * stretch).reshape(-1, stretch))
        if relay_of(message) in code.leaders:
            further.append(message.overhead)
    return sums.pack(code.add(torch.cat(shares), formats.L)[None]), add_rows(torch.cat(further))


def add_rows(rows: Tensor, at: Tensor | None = None) -> Tensor:
    """Return the sum of all rows, or of the rows `at`, uint8 [1, 8·L] for rows [n, 8·L]: the bytes of int64."""
    terms = from_bytes(rows, torch.int64)
    total = terms.new_zeros(1, terms.shape[1])
    for places in portions(torch.arange(len(rows)) if at is None else at, terms.shape[1]):
        total += terms[places].sum(0)
    return to_bytes(total)


def formats_of_terms(formats: Formats, nbytes: int) -> tuple[RowFormat, RowFormat]:
    """Return the format of terms whose rows have this length in bytes, and that of their sums."""
    return (formats.terms, formats.sums) if nbytes == formats.terms.nbytes else (formats.whole, formats.whole)


def _format_of_row(formats: Formats, row: Tensor) -> RowFormat:
    """Return the format of a row of sums, uint8 [1, bytes]."""
    return formats.sums if row.shape[1] == formats.sums.nbytes else formats.whole


def _nbytes(H: int) -> int:
    """Return the bytes of one bit for each relay."""
    return -(-H // 8)
