"""The flow of a round of sums: relays and server add terms, and one row goes back to everybody. K users, H relays.

L numbers in a row of terms or sums. Rows travel in shares, by codes of `hmtl.coding.sum_codes`; with c = 1, a share is
a whole row:
    up: relays send the server shares of the sum of all terms, and it learns this sum;
    down: relays hand on to users shares of the row that the server made of it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import AggregatorSet, Loads, SumCode, sum_bounds
from hmtl.coding.plan import PLAN_DIGEST_BYTES
from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    TIERS,
    USERS_TO_RELAYS,
)
from hmtl.communication.accounting.network import Network
from hmtl.communication.agreement import Digest
from hmtl.communication.attendance import Attendance
from hmtl.communication.codecs.few_bit_words import FewBits, FewBitSumCoder, FewBitTermCoder
from hmtl.communication.codecs.formats import FEW_BITS
from hmtl.communication.codecs.plain import AggregatorCoder, UserCoder
from hmtl.communication.codecs.rows import from_bytes, to_bytes
from hmtl.communication.codecs.wires import name_of, row_bits, suits_sums
from hmtl.communication.codecs.words import PlainRows, RowFormat, SumCoder, TermCoder, unpacked
from hmtl.communication.flows.flow import OF_SERVER, OTHER_PLAN, Copy, Flow, Keeper, Shape
from hmtl.communication.flows.planner import SUMS, Planner
from hmtl.communication.flows.recipe import RECEIPT, Recipe, Transport, unknown_format
from hmtl.communication.messages import IVS, Content, Message, alike, relay_number
from hmtl.communication.sides import AggregatorSide, PlayedAggregator, PlayedUsers, RowMeaning, UserSide
from hmtl.communication.terms import ModelAtAggregator, TermsAtUsers
from hmtl.errors import CodingError, ConfigError
from hmtl.io.arrays import Ids
from hmtl.io.row_layout import RowLayout
from hmtl.topology import Moving, Topology

Formats = PlainRows | FewBits


@dataclass(frozen=True)
class SumsOfRows(Recipe):
    """The recipe of learners that need only sums. What is exchanged before the first round travels uncoded.

    Attributes:
        sums: one of `SUMS`: whether relays send rows of sums whole or in shares.
    """

    sums: str = "auto"

    tiers = RELAYS_TO_SERVER, SERVER_TO_RELAYS, RELAYS_TO_USERS
    adds = True

    def __post_init__(self) -> None:
        if self.aggregators not in ("auto", "server"):
            raise ConfigError(
                f"aggregators={self.aggregators} with communicator=sums: the server learns the sums. Set "
                "aggregators=auto or server."
            )
        if not suits_sums(self.wire):
            raise ConfigError(
                f"wire={name_of(self.wire)} with communicator=sums: sums travel as integers. Choose one of "
                f"{', '.join(FEW_BITS)}, or null for 64 bits."
            )
        if self.sums not in SUMS:
            raise ConfigError(f"sums={self.sums} is unknown. Choose one of {', '.join(SUMS)}.")

    @property
    def bits(self) -> int | None:
        """The bits of a term if they are few."""
        return FEW_BITS[self.wire] if isinstance(self.wire, str) else None

    def nodes(self, contacts: Topology | Moving, network: Network) -> AggregatorSet:
        """Return the server, which learns the sums.

        Raises:
            ConfigError: there are too few users for secure sums, or too many may collude.
        """
        if self.secure:
            self.secure.check(contacts.K, contacts.at(0).G)
        return AggregatorSet((), server=True)

    def planner(self, topology: Topology, network: Network, nodes: AggregatorSet) -> Planner:
        return Planner(topology, network, sums=self.sums)

    def transport(self, layout: RowLayout, K: int, meaning: RowMeaning | None = None) -> "TransportOfSums":
        """Return how a learner's rows travel; without a meaning, they are terms already."""
        terms, common = layout, None
        if meaning:
            terms = RowLayout.zeros(meaning.words, torch.int64, meaning.further, (meaning.answers,))
            common = None if self.bits else meaning.common
        formats: Formats = PlainRows(terms.numbers, common or torch.int64, K)
        if self.bits:
            formats = FewBits(self.bits, K, terms.numbers, masked=self.secure is not None)
        return TransportOfSums(self, terms, K, layout, formats, common)

    def joined(
        self, users: UserSide, aggregator: AggregatorSide, planner: Planner
    ) -> tuple[PlayedUsers, PlayedAggregator, "TransportOfSums"]:
        layout, K = users.row_layout, planner.topology.K
        if not layout.numbers:  # nothing travels
            return users, aggregator, self.transport(layout, K)
        if not (meaning := users.hold_meaning()):
            raise CodingError(
                f"{type(aggregator).__name__} needs the rows of all users, not only sums of them. Set "
                "communicator=coded or uncoded."
            )
        transport = self.transport(layout, K, meaning)
        if not transport.common:
            return TermsAtUsers(users, meaning, True), aggregator, transport
        of_sums = aggregator.hold_meaning()
        updating = ModelAtAggregator(aggregator, of_sums) if of_sums else aggregator
        return TermsAtUsers(users, meaning, False), updating, transport

    def bounds(self, planner: Planner) -> Loads:
        return _with_copies(planner, sum_bounds(planner.topology))


@dataclass(frozen=True, eq=False)
class TransportOfSums(Transport):
    """How sums of rows travel: a user's terms up, and one row down to everybody.

    Attributes:
        own: the layout of the learner's rows, before they become terms.
        formats: the formats of rows of terms and sums.
        common: the type of the model that all users receive instead of sums; None: they receive sums.
    """

    recipe: SumsOfRows
    own: RowLayout
    formats: Formats
    common: torch.dtype | None

    @cached_property
    def lengths(self) -> Mapping[str, tuple[int, int]]:
        return {name: (terms.nbytes, sums.nbytes) for name, (terms, sums) in self.formats.up.items()}

    def model(self, row: Tensor, row_format: str) -> int:
        before, _ = unpacked(row.numpy().ravel(), self.formats.K)
        if before - self.formats.stamp not in [8 * each for each in self.row_layout.answers]:
            raise CodingError(f"rows for users have no {before} bytes of further numbers")
        if row_format not in self.formats.down:
            raise CodingError(unknown_format(row_format))
        return self.formats.down[row_format].nbytes

    def delivered(self, planner: Planner, message: Message) -> Shape:
        to, i, n = message.of_users(), relay_number(message.sender), len(message)
        if not n:
            raise CodingError("it has no row")
        row, code = self._spread(planner, message)
        self.model(row, message.format)
        needs = code.needs(i)[to]
        shares = needs[0] if planner.network.last_hop == "unicast" else np.ones_like(needs[0])
        if not needs.any(axis=1).all() or (needs & ~shares).any():
            raise CodingError("it has shares that some of these users do not need")
        nbytes = int(shares.sum()) * self.formats.down[message.format].share(code).nbytes
        return Shape(nbytes, message.overhead.shape[1], True, n, format=message.format)

    def user_coder(self, members: Ids) -> UserCoder:
        if isinstance(self.formats, FewBits):
            return FewBitTermCoder(self.row_layout, self.formats, members)
        return TermCoder(self.row_layout, self.K)

    def aggregator_coder(self) -> AggregatorCoder:
        if isinstance(self.formats, FewBits):
            return FewBitSumCoder(self.formats)
        return SumCoder(self.row_layout.numbers, self.common)

    def flow(self, planner: Planner, attendance: Attendance, sizes: tuple[int, int]) -> "Flow[Sum]":
        terms, sums = self.formats.up[attendance.format]
        code = planner.sum_code(attendance.heard, self.formats.L)
        added = Added(code, terms, sums, attendance.format, sizes[1], attendance.users)
        delivery = CommonRow(planner, attendance, self.formats)
        for planned in (code, delivery.code):
            _ = planned.inverses  # otherwise the first node that needs them makes them during its turn
        codes = hashlib.blake2b(code.digest + delivery.code.digest, digest_size=PLAN_DIGEST_BYTES).digest()
        return Flow(partial(Sum, added), (added,), delivery, codes)

    def arrived(
        self, planner: Planner, members: Ids, messages: Sequence[Message]
    ) -> tuple[Ids, Tensor, Tensor, str] | None:
        """Return the users all of whose shares arrived, and the row that these are shares of.

        If relays say different things about it, what most of them say holds.
        """
        if not messages:
            return None
        messages = alike(messages, lambda message: (message.format, message.overhead[0].numpy().tobytes()))
        messages.sort(key=lambda message: relay_number(message.sender))  # as shares are joined
        row_format, (overhead, code) = messages[0].format, self._spread(planner, messages[0])
        arrived = np.zeros(len(code.of_user), dtype=np.int64)
        for message in messages:
            needs = code.needs(relay_number(message.sender)).sum(axis=1)
            arrived[message.of_users()] += needs[message.of_users()]
        users = members[arrived[members] == code.pieces]
        if not len(users):
            return None
        group, rows = int(code.of_user[users[0]]), []
        for message in messages:
            if users[0] not in message.of_users():
                continue
            needed = code.needs(relay_number(message.sender))[users[0]]
            if planner.network.last_hop == "unicast":  # only what these users need was sent
                needed = needed[needed]
            rows.append(message.payload[:1].reshape(len(needed), -1)[torch.from_numpy(needed)])
        return users, self.formats.down[row_format].join(torch.cat(rows), code, group), overhead, row_format

    def _spread(self, planner: Planner, message: Message) -> tuple[Tensor, SumCode]:
        """Return the overhead of the row of which a relay sends shares, and the code by which relays make these.

        Raises:
            CodingError: the relay has another code.
        """
        H = planner.topology.H
        size = -(-H // 8) + PLAN_DIGEST_BYTES  # a bit for each relay
        overhead, header = message.overhead[:1, :-size], message.overhead[0, -size:].numpy()
        present = np.unpackbits(header[:-PLAN_DIGEST_BYTES], count=H)
        code = planner.spread_code(tuple(np.flatnonzero(present).tolist()), self.formats.L)
        if header[-PLAN_DIGEST_BYTES:].tobytes() != code.digest:
            raise CodingError(OTHER_PLAN)
        return overhead, code

    def codes(self, planner: Planner) -> tuple[SumCode, SumCode]:
        """Return the codes by which relays add and spread sums if everybody is present."""
        attendance, L = planner.everybody, self.formats.L
        return planner.sum_code(attendance.heard, L), planner.spread_code(attendance.relays, L)

    def loads(self, planner: Planner) -> Loads:
        up, spread = self.codes(planner)
        return _with_copies(planner, up.loads(spread, self.formats.L))

    @cached_property
    def tier_bits(self) -> dict[str, int]:
        """The bits of a row of each tier; before the scales are known, rows are longer."""
        usual = next(iter(self.formats.down.values()))
        up, sums, down = (8 * each.nbytes for each in (self.formats.terms, self.formats.sums, usual))
        return dict(zip(TIERS, (up, sums, down, down), strict=True))

    def uncoded(self, sent: dict[str, Any], attendance: Attendance) -> dict[str, Any]:
        """Return the bits of a round by tier with uncoded IVs and models in the learner's own type of numbers."""
        numbers, up, down = self._own_bits, 64 * self.own.further, 64 * min(self.own.answers)
        reached = attendance.near.any(axis=0)
        ends = {
            USERS_TO_RELAYS: np.where(sent[USERS_TO_RELAYS] > 0, numbers + up, 0),
            RELAYS_TO_USERS: np.where(reached, numbers + down + RECEIPT, 0),
        }
        return {**sent, **ends}

    @cached_property
    def _own_bits(self) -> int:
        """The bits of a row of the learner, before it becomes terms."""
        return row_bits(None, self.own.numbers, self.own.dtype)

    def describe(self, planner: Planner) -> dict[str, Any]:
        """Return what `summary.json` reports about these rows.

        Loads are in rows of each tier, which have `bits_per_number` bits for each number if tiers differ in this.
        `loads_uncoded` are the loads of the same learner's IVs and models in its own type of numbers, in the same
        units.
        """
        (code, _), names = self.codes(planner), planner.topology.names
        described: dict[str, Any] = {"communicator": "sums", "scheme": "sums", "last_hop": planner.network.last_hop}
        described |= {"adding": names.of_relays(code.relays), "pieces": code.pieces}
        if self.row_layout.numbers:
            if len({*self.tier_bits.values()}) > 1:
                described["bits_per_number"] = {t: bits / self.row_layout.numbers for t, bits in self.tier_bits.items()}
            described["loads_uncoded"] = {tier: self.K * self._own_bits / self.tier_bits[tier] for tier in TIERS}
        notes, bits = [], self.recipe.bits
        if bits:
            notes.append(
                f"terms of sums travel in {bits} bits each, and users add what this rounding leaves over to their "
                "next terms; rows of 64-bit numbers travel in the first round and for users who missed a row"
            )
        if bits and self.recipe.secure:
            w = self.formats.terms.bits
            notes.append(f"masked terms are uniform in {w} bits per number, so users send these instead of {bits}")
        return described | {"note": "; ".join(notes)}


def _with_copies(planner: Planner, load: Loads) -> Loads:
    """Return a load with the rows that relays send if each user gets its own copy."""
    if planner.network.last_hop == "unicast":
        return replace(load, last_hop=float(len(planner.topology.present)))
    return load


@dataclass(frozen=True, eq=False)
class Added:
    """Relays send shares of sums of terms, which the server adds, so that it learns the sum.

    Attributes:
        code: makes shares of the terms.
        terms, sums: formats of a user's terms and of their sums.
        format: the name of both.
        overhead: bytes of further numbers beside a user's terms.
        users: whose terms are added.
    """

    code: SumCode
    terms: RowFormat
    sums: RowFormat
    format: str
    overhead: int
    users: Ids

    kinds = IVS, ""
    receivers = ()
    learners = (OF_SERVER,)

    @cached_property
    def senders(self) -> tuple[int, ...]:
        return self.code.relays

    @cached_property
    def share(self) -> RowFormat:
        """Format of a share of sums."""
        return self.sums.share(self.code)

    def up(self, i: int, heard: "Sum") -> Content:
        shares = self.share.pack(heard.shares.view(len(self.code.shares[i]), -1))
        return Content(shares.reshape(1, -1), to_bytes(heard.further), format=self.format)

    def shape(self, i: int, up: bool) -> Shape:
        shares, leads = len(self.code.shares[i]), i in self.code.leaders
        return Shape(shares * self.share.nbytes, self.overhead * leads, format=self.format)

    def down(self, heard: "Sum", received: Sequence[Message]) -> Iterator[Copy]:
        yield from ()

    def learn(
        self, node: int, heard: "Sum", received: Sequence[Message], digest: Digest, keeper: Keeper | None
    ) -> None:
        assert keeper, "the server keeps what it learns"
        code, stretch = self.code, self.code.stretches(self.terms.L)
        row = torch.zeros(code.pieces * code.bits, stretch, dtype=torch.int64)
        further = torch.zeros(1, self.overhead // 8, dtype=torch.int64)
        for message in received:
            i = relay_number(message.sender)
            packed = message.payload.reshape(len(code.shares[i]), -1)
            code.add(i, self.share.unpack(packed).reshape(-1, stretch), row)
            if i in code.leaders:
                further += from_bytes(message.overhead, torch.int64)
        payload = self.sums.pack(row.view(1, -1)[:, : self.terms.L])
        keeper.keep(self.users, {"payload": payload, "overhead": to_bytes(further)})


class Sum:
    """What relay i keeps of the terms that it hears.

    Args:
        step: by which it sends them.
        i: number of the relay.

    Attributes:
        shares: of the terms that it sends, int64 [x·m, stretch].
        further: sum of the further numbers of users whose shares it leads, int64 [1, e].
    """

    def __init__(self, step: Added, i: int) -> None:
        code, self._terms, K = step.code, step.terms, len(step.code.of_user)
        stretch, e = code.stretches(self._terms.L), step.overhead // 8
        self.shares = torch.zeros(len(code.shares[i]) * code.bits, stretch, dtype=torch.int64)
        self._led = code.leaders == i
        self.further = torch.zeros(1, e if self._led.any() else 0, dtype=torch.int64)
        self._groups = [(code.of_user == group, matrix) for group, matrix in code.terms(i)]
        self._needed = np.logical_or.reduce([self._led, *(chosen for chosen, _ in self._groups)])
        self._nbytes, self._heard = self._terms.nbytes + step.overhead, np.zeros(K, dtype=np.int64)

    @property
    def lacking(self) -> Ids:
        """The users whose rows did not arrive whole and once, as they were announced."""
        return np.flatnonzero(self._needed & (self._heard != self._nbytes))

    def take(self, messages: Sequence[Message]) -> None:
        """Add the terms in these messages."""
        for message in messages:
            users, rows = message.of_users(), message.rows().numpy()
            self._heard[users] += sum(message.sizes)
            for chosen, matrix in self._groups:
                if len(at := rows[chosen[users]]):
                    self._terms.add(message.payload, torch.from_numpy(at), matrix, self.shares, message.first)
            if message.overhead.shape[1] and len(at := rows[self._led[users]]):
                self.further += from_bytes(message.overhead[torch.from_numpy(at)], torch.int64).sum(0)


class CommonRow:
    """The delivery of one row to all users: relays send shares of it to their users."""

    def __init__(self, planner: Planner, attendance: Attendance, formats: Formats) -> None:
        self.code, self.formats = planner.spread_code(attendance.relays, formats.L), formats
        self.relays, self.K, self.last_medium = attendance.relays, planner.topology.K, planner.network.last_hop
        self.copies = planner.copies(self.code.relays)
        # What a relay gets of the server: the row, or its own shares if each relay gets its own copy.
        self.splits = planner.network.medium == "unicast"

    @property
    def served(self) -> NDArray[np.float64]:
        return np.array([self.code.needs(i).sum(axis=1) for i in range(self.code.H)]) / self.code.pieces

    def up(self, i: int, models: Content) -> Content | None:
        return None

    def passed(self, i: int, up: bool, message: Message, nbytes: int) -> Shape:
        if up or i not in self.code.relays:
            raise CodingError("no models are sent this way")
        if self.splits:
            nbytes = len(self.code.shares[i]) * self.formats.down[message.format].share(self.code).nbytes
        return Shape(nbytes, message.overhead.shape[1], format=message.format)

    def down(self, models: Content) -> Iterator[Copy]:
        for relays, link in self.copies:
            payload = self._shares(models, relays[0]).reshape(1, -1) if self.splits else models.payload
            yield Copy(relays, link, models._replace(payload=payload))

    def last_hop(
        self, i: int, models: Content | None, passed: Sequence[Message]
    ) -> Iterator[tuple[int | Ids, Content]]:
        own, needs = self.code.shares[i], self.code.needs(i)
        if not passed or not len(own):
            return
        row = Content(passed[0].payload, passed[0].overhead, format=passed[0].format)
        shares = row.payload.reshape(len(own), -1) if self.splits else self._shares(row, i)
        present = np.isin(np.arange(self.code.H), self.relays)
        header = np.concatenate([np.packbits(present), np.frombuffer(self.code.digest, np.uint8)])
        overhead = torch.cat([row.overhead, torch.from_numpy(header)[None]], dim=1)
        if self.last_medium == "broadcast":
            users = np.flatnonzero(needs.any(axis=1))
            yield (
                self.K + i,
                Content(shares.reshape(1, -1), overhead, users, format=row.format),
            )  # the link for all users of this relay
            return
        for needed in np.unique(needs[needs.any(axis=1)], axis=0):
            users = np.flatnonzero((needs == needed).all(axis=1))
            payload, at = shares[torch.from_numpy(needed)].reshape(1, -1), torch.zeros(len(users), dtype=torch.int64)
            yield users, Content(payload, overhead, users, at, row.format)

    def _shares(self, row: Content, i: int) -> Tensor:
        """Return relay i's shares of a row, uint8 [x, bytes]."""
        if self.code.pieces == 1:
            return row.payload
        return self.formats.down[row.format].split(row.payload, self.code, self.code.shares[i])
