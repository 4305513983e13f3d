"""Sums instead of IVs: relays add what they hear, the server adds that, and one row goes back to everybody.

K users, H relays, L numbers in a row of terms or sums, int64. The nodes play the same schedule as where relays forward,
and only what they hand on is another: a relay of a cover of all who were heard hands on one row, the sum of the rows of
users whom the plan assigns to it; and a relay of a cover of all who can be reached sends the server's row to its users.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import Loads, cover, sum_bounds, sum_loads
from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    TIERS,
    USERS_TO_RELAYS,
    LinkLedger,
)
from hmtl.communication.accounting.network import Network, between_seconds
from hmtl.communication.attendance import bytes_to_numbers, numbers_to_bytes
from hmtl.communication.communicators.base import Communicator
from hmtl.communication.communicators.coded import CodedHierarchical
from hmtl.communication.encoding import from_bytes, to_bytes, unpack
from hmtl.communication.links import InProcess, Links
from hmtl.communication.messages import IVS, MODELS, Message, Users
from hmtl.communication.nodes.aggregator import Aggregation, AggregatorSide
from hmtl.communication.nodes.host import UserHost, UserSide
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.server import Server
from hmtl.communication.round import Nodes
from hmtl.errors import CodingError, ConfigError
from hmtl.topology import Moving, Topology

WORK = 2**16  # numbers that are picked at once, so that they stay in the processor's cache
RECEIPT = 32  # bits that tell a user, with a model of its own, when its IV counted last


class SummingSide(UserSide, Protocol):
    """Users who send terms of sums; see `hmtl.mtl.Users`."""

    @property
    def row_bits(self) -> tuple[int, int, int]:
        """Of the same learner where IVs and models travel: bits of the m numbers, and beside those of IV and model."""


class SummingHost(UserHost):
    """Users who send terms, and get one row for all of them."""

    def send(self, round: int, relays: Sequence[str]) -> Message:
        message = super().send(round, relays)
        if message.dtype != torch.int64:
            raise CodingError(
                f"communicator=sums adds terms of type int64, but these users send {message.dtype}: call the "
                "algorithm's in_sums() before the first round."
            )
        return message

    def receive(self, models: Sequence[Message]) -> None:
        if not models:
            return
        ids: Users = np.unique(np.concatenate([message.of_users() for message in models]))
        overhead = models[0].overhead[0].numpy()
        extras, counted = _without_receipts(overhead)
        self._settle(ids, counted[ids])
        row = unpack(models[0].payload[:1], torch.from_numpy(extras)[None], torch.int64, torch.int64)
        self.users.receive(ids, row.to(self._device).expand(len(ids), -1))


class SummingRelay(Relay):
    """A relay that adds up the rows of some of its users, and hands on the server's row."""

    def forward(self) -> list[Message]:
        """The sum of the rows that it is this relay's turn to add, if any."""
        users = np.flatnonzero(self.planner.cover(self.attendance.heard).adds == self.i)
        if not len(users):
            return []
        at = torch.from_numpy(self._row[users])
        return [self._up(IVS, _added(self._ivs["payload"], at), _added(self._ivs["overhead"], at))]

    def deliver(self) -> list[Message]:
        """The server's row to the users whom the plan assigns to this relay: once, or a copy for each."""
        users = np.flatnonzero(self.planner.spread(self.attendance).adds == self.i)
        if not len(users):
            return []
        if self.planner.network.last_hop == "unicast":
            copies = torch.zeros(len(users), dtype=torch.int64)
            return [self._down(MODELS, m.payload, m.overhead, users, copies) for m in self._passed]
        everybody = self.t.K + self.i  # the link of the ledger for what all users of this relay hear
        return [self._down(MODELS, m.payload, m.overhead, users, links=everybody) for m in self._passed]


class SummingServer(Server):
    """A server that adds up the relays' sums."""

    def gather(self, messages: Sequence[Message]) -> None:
        """Take the sums of the relays that were to add."""
        if self.aggregation is None or self.empty:
            return
        if self._lacks(self.planner.cover(self.attendance.heard).relays, messages):
            return
        self.aggregation.open(self._round, self.name, self.attendance.users, *self.sizes)
        for part, nbytes in zip(("payload", "overhead"), self.sizes, strict=True):
            rows = [torch.zeros(1, nbytes, dtype=torch.uint8), *(getattr(message, part) for message in messages)]
            self.aggregation.ivs[part] = _added(torch.cat(rows))
        self._dtype = torch.int64

    def hand_back(self) -> list[Message]:
        """One row, to the relays that send it on."""
        if self.silent:
            return self._in_vain()
        models = self.aggregation.models(b"") if self.aggregation is not None else None
        if models is None:
            return []
        to = self.planner.spread(self.attendance).relays
        return list(self._to(np.array(to), MODELS, models.payload, models.overhead))


class SummingAggregation(Aggregation):
    """The aggregator's seat, for one row of sums and one row that goes to everybody, with receipts of all users."""

    def _rows(self, users: int) -> int:
        return 1

    def _receipts(self) -> Tensor:
        # most users' last round is the same, so that this is far less than 4 bytes for each
        packed = np.frombuffer(zlib.compress(numbers_to_bytes(self.counted).tobytes()), np.uint8)
        return torch.from_numpy(np.concatenate([packed, numbers_to_bytes([len(packed)])]))[None]


def _without_receipts(overhead: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """What else is in the overhead of a row, and the round in which each user's IV counted last [K]."""
    rest, nbytes = overhead[:-4], int(bytes_to_numbers(overhead[-4:])[0])
    packed = rest[len(rest) - nbytes :].tobytes()
    return rest[: len(rest) - nbytes], bytes_to_numbers(np.frombuffer(zlib.decompress(packed), np.uint8))


def _added(rows: Tensor, at: Tensor | None = None) -> Tensor:
    """The sum of rows of int64, or of those that are named, as bytes [1, L]."""
    terms, at = from_bytes(rows, torch.int64), torch.arange(len(rows)) if at is None else at
    total = terms.new_zeros(1, terms.shape[1])
    for part in torch.split(at, max(1, WORK // max(1, terms.shape[1]))):
        total += terms[part].sum(0)
    return to_bytes(total)


class Sums(Communicator):
    """Relays and server add up terms, for learners that need no more of their users than sums.

    What is exchanged before the first round travels as where nothing is coded.

    Args:
        topology, network, links: see `Communicator`; `network.last_hop` says how relays reach their users.
        wire: none other than null: sums have a format of their own.
    """

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        wire: str | None = None,
        *,
        links: Callable[[LinkLedger], Links] = InProcess,
    ) -> None:
        if wire is not None:
            raise ConfigError(f"wire={wire} with communicator=sums: sums travel as 64-bit integers. Set wire=null.")
        super().__init__(topology, network, "uncoded", links=links)
        self.note = ""

    @classmethod
    def where_cheaper(cls, coded: CodedHierarchical, IV_bits: int, row_bits: int) -> "Sums | None":
        """On the network of `coded`, sums of so many bits instead of IVs of so many, if the second hop takes less time.

        Only where `coded` chooses by itself who aggregates, and numbers travel as they are; its report says so.
        """
        if coded.planner.aggregators != "auto" or coded.wire is not None:
            return None
        sums = cls(coded.contacts, coded.network, links=coded.make_links)
        ours, theirs = (
            between_seconds(coded.network, c.theory, bits) for c, bits in ((sums, row_bits), (coded, IV_bits))
        )
        if ours >= theirs:
            return None
        sums.note = (
            f"relays add instead of coding, since this learner needs no more than sums: a round between relays and "
            f"server takes {ours:.3g} s instead of {theirs:.3g} s (numbers of {row_bits / IV_bits:.2g} times the bits)"
        )
        return sums

    @property
    def theory(self) -> Loads:
        return sum_loads(self.topology, self.network.uplinks(self.topology))

    def describe(self) -> dict[str, Any]:
        """The bounds are those of `sum_bounds`; where a relay's users are sent copies, each gets one.

        `loads_uncoded` are of the same learner's IVs and models, in messages of this run's length.
        """
        described = super().describe()
        topologies = [self.contacts.at(number) for number in self._told]
        rows = {t: self._rows(t) for t in set(topologies)}
        last_hop, *least = np.mean([rows[t] for t in topologies], axis=0).tolist()
        described["loads_theory"][RELAYS_TO_USERS] = last_hop
        described["bounds"] = dict(zip((RELAYS_TO_SERVER, SERVER_TO_RELAYS, RELAYS_TO_USERS), least, strict=True))
        if self._sides and self.V_bits:
            described["loads_uncoded"] = dict.fromkeys(TIERS, self.topology.K * self._side.row_bits[0] / self.V_bits)
        own = {
            "communicator": "sums",
            "scheme": "sums",
            "adding": list(self.planner.cover(self.topology).relays),
            "last_hop": self.network.last_hop,
        }
        return described | own | ({"note": self.note} if self.note else {})

    def _rows(self, t: Topology) -> tuple[float, float, float, float]:
        """How many rows the relays send to users, and the least from relays, from the server, and to users."""
        bound = sum_bounds(t)
        up, down = bound.uplink, bound.down(self.network.medium)
        if self.network.last_hop == "unicast":
            return len(t.present), up, down, len(t.present)
        return len(cover(t).relays), up, down, bound.unicast

    @property
    def _side(self) -> SummingSide:
        assert self._sides is not None
        return cast(SummingSide, self._sides[0])

    def _cast(self, users: UserSide, aggregator: AggregatorSide) -> Nodes:
        if not users.numbers:  # a set-up, or nothing travels
            return super()._cast(users, aggregator)
        K = self.topology.K
        seat = SummingAggregation(K, aggregator, users.numbers, None)
        return self._here(
            lambda n, mine: SummingHost(K, users, None, n, mine),
            lambda i, hosts: SummingRelay(i, self.planner, None, hosts, self._links.sure),
            lambda: SummingServer(self.planner, seat),
            seat,
        )

    def uncoded_seconds(self) -> float:
        """What the communication of the last round had taken with IVs and models, and nothing coded."""
        if self._server is None:
            return 0.0
        (numbers, up, down), sent = self._side.row_bits, self._sent(-1)
        reached = self.topology.restricted(relays=self._server.attendance.relays).degrees > 0
        users = {
            USERS_TO_RELAYS: np.where(sent[USERS_TO_RELAYS] > 0, numbers + up, 0),
            RELAYS_TO_USERS: np.where(reached, numbers + down + RECEIPT, 0),
        }
        return self._uncoded_seconds({**sent, **users}, self._server)
