"""Nodes of a round of sums: relays and server add, and one row goes back to everybody.

K users, H relays, L numbers in a row of terms or sums, int64. Two sets of relays act, each a cover of users:
    up: a cover of the users who were heard; each of its relays sends one row, the sum over the users assigned to it;
    down: a cover of all users within range of some relay; each of its relays sends the server's row to its users.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.attendance import bytes_to_numbers, numbers_to_bytes
from hmtl.communication.encoding import from_bytes, to_bytes, unpack
from hmtl.communication.messages import IVS, MODELS, PARTS, Message, Users
from hmtl.communication.nodes.aggregation import Aggregation, PackedModels
from hmtl.communication.nodes.base import Relay
from hmtl.communication.nodes.forwarding import ForwardingServer
from hmtl.communication.nodes.host import UserHost
from hmtl.errors import CodingError

WORK = 2**16  # numbers that are added at once, so that they stay in the processor's cache


class AddingHost(UserHost):
    """A host whose users send terms of sums, and receive one row for all of them."""

    def send(self, round: int, relays: Sequence[str]) -> list[Message]:
        messages = super().send(round, relays)
        if self.dtype != torch.int64:
            raise CodingError(
                f"communicator=sums adds terms of type int64, but these users send {self.dtype}. Make the algorithm "
                "with messages='sums'."
            )
        return messages

    def receive(self, models: Sequence[Message]) -> None:
        """Take the row that all users share, which ends with the receipts of all users."""
        models = [message for message in models if len(message.of_users())]  # others' rows are left out on the way
        if models:
            self._take(models[0], np.unique(np.concatenate([message.of_users() for message in models])))

    def _take(self, message: Message, ids: Users) -> None:
        """Give these users the row of a message."""
        extras, receipts = _split_receipts(message.overhead[0].numpy())
        self._settle(ids, receipts[ids])
        row = unpack(message.payload[:1], torch.from_numpy(extras)[None], torch.int64, torch.int64)
        self.users.receive(ids, row.to(self.device).expand(len(ids), -1))


class AddingRelay(Relay):
    """A relay that adds up rows of its users, and sends them the server's row."""

    def forward(self) -> list[Message]:
        """Send the sum of the rows of the users whom the plan assigns to this relay, if any."""
        users = np.flatnonzero(self.planner.cover(self.attendance.heard).adds == self.i)
        if not len(users):
            return []
        at = torch.from_numpy(self._row[users])
        payload, overhead = (self._sum(part, at) for part in PARTS)
        return [self._to_server(IVS, payload, overhead)]

    def deliver(self) -> list[Message]:
        """Send the server's row to the users whom the plan assigns to this relay."""
        users = np.flatnonzero(self.planner.spread(self.attendance).adds == self.i)
        if not len(users):
            return []
        copies = torch.zeros(len(users), dtype=torch.int64)
        messages = [self._to_users(MODELS, m.payload, m.overhead, users, copies) for m in self._passed]
        if self.planner.network.last_hop == "unicast":
            return messages
        broadcast = self.topology.K + self.i  # the ledger's link for what all users of this relay hear
        return [replace(message, links=broadcast, at=None) for message in messages]

    def _sum(self, part: str, at: Tensor) -> Tensor:
        """Return the sum of the rows `at` of a part of what this relay heard, uint8 [1, bytes]."""
        return add_rows(self._ivs[part], at)


class AddingServer(ForwardingServer):
    """A server that adds the relays' sums."""

    def gather(self, messages: Sequence[Message]) -> None:
        """Add the sums of the relays that the plan names."""
        if self.empty or self._lacks(self.planner.cover(self.attendance.heard).relays, messages):
            return
        sums = {
            part: self._sum(part, [getattr(message, part) for message in messages], nbytes)
            for part, nbytes in zip(PARTS, self.sizes, strict=True)
        }
        self.aggregation.keep(self.round, self.attendance.users, sums)
        self._dtype = torch.int64

    def _sum(self, part: str, rows: Sequence[Tensor], nbytes: int) -> Tensor:
        """Return the sum of the rows that relays sent as a part, the bytes of int64: uint8 [1, nbytes]."""
        return add_rows(torch.cat([torch.zeros(1, nbytes, dtype=torch.uint8), *rows]), torch.arange(len(rows) + 1))

    def _model_messages(self, models: PackedModels) -> list[Message]:
        """Return messages that carry the row for all users to the relays that deliver it."""
        return self._to(self.planner.spread(self.attendance).relays, MODELS, models.payload, models.overhead)


class SummingAggregation(Aggregation):
    """An aggregation that gives one row of sums, with one row of receipts, for all users."""

    def _receipts(self) -> Tensor:
        # Most users' last round is the same, so the compressed receipts take far less than 4 bytes for each user.
        packed = np.frombuffer(zlib.compress(numbers_to_bytes(self.counted).tobytes()), np.uint8)
        return torch.from_numpy(np.concatenate([packed, numbers_to_bytes([len(packed)])]))[None]


def _split_receipts(overhead: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Split a row's overhead into further numbers and the receipts of all users [K]."""
    content, nbytes = overhead[:-4], int(bytes_to_numbers(overhead[-4:])[0])
    start = len(content) - nbytes
    receipts = np.frombuffer(zlib.decompress(content[start:].tobytes()), np.uint8)
    return content[:start], bytes_to_numbers(receipts)


def add_rows(rows: Tensor, at: Tensor) -> Tensor:
    """Return the sum of the rows `at`, uint8 [1, 8·L] for rows [n, 8·L]: the bytes of int64."""
    terms = from_bytes(rows, torch.int64)
    total = terms.new_zeros(1, terms.shape[1])
    for places in torch.split(at, max(1, WORK // max(1, terms.shape[1]))):
        total += terms[places].sum(0)
    return to_bytes(total)
