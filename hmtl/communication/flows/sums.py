"""The flow of a round of sums: relays and server add terms, and one row goes back to everybody. K users, H relays.

L numbers in a row of terms or sums. Rows travel in shares, by codes of `hmtl.coding.sum_codes`; with c = 1, a share is
a whole row:
    up: relays send the server shares of the sum of all terms; if relays learn the sums, of the terms of users whom not
        all of them heard;
    down: relays send users shares of the row that the server or relays made of the sums.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.coding import MOST_PIECES, AggregatorSet, Loads, SumCode, best_sum_aggregators, resolve, sum_bounds
from hmtl.coding.plan import DIGEST_BYTES
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
from hmtl.communication.coders import AggregatorCoder, UserCoder
from hmtl.communication.encoding import from_bytes, to_bytes
from hmtl.communication.flows.flow import OF_SERVER, OTHER_PLAN, RECEIPT, Content, Copy, Flow, Keeper, Recipe, Shape
from hmtl.communication.flows.planner import SUMS, Planner, who_may_aggregate
from hmtl.communication.meaning import CommonModel, TermsOfUsers
from hmtl.communication.messages import BROADCAST, IVS, Message, Users, alike, relay_number
from hmtl.communication.rounding_of_sums import FEW_BITS, FewBits
from hmtl.communication.row_formats import PlainRows, RowFormat
from hmtl.communication.sides import AggregatorSide, UserSide
from hmtl.communication.sum_coders import FewBitSumCoder, FewBitTermCoder, SumCoder, TermCoder, unpacked
from hmtl.communication.wires import name_of
from hmtl.errors import CodingError, ConfigError
from hmtl.topology import Moving, Topology

Formats = PlainRows | FewBits


@dataclass(frozen=True)
class SumsOfRows(Recipe):
    """The recipe of learners that need only sums. What is exchanged before the first round travels uncoded.

    Attributes:
        formats: the formats of rows; of no numbers before the learner is known.
        sums: one of `SUMS`: whether relays send rows of sums whole or in shares.
    """

    formats: Formats = PlainRows(0)  # noqa: RUF009, it is frozen
    sums: str = "auto"

    tiers = RELAYS_TO_SERVER, SERVER_TO_RELAYS, RELAYS_TO_USERS
    row_type = torch.int64
    adds = True

    def __post_init__(self) -> None:
        if self.secure and self.aggregators not in ("auto", "server"):
            raise ConfigError(
                f"aggregators={self.aggregators} with secure=true: the server unmasks the sums, so it learns them. Set "
                "aggregators=auto or server."
            )
        if self.wire is not None and not (isinstance(self.wire, str) and self.wire in FEW_BITS):
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
        """Return the relays that learn the sums if they can, in all rounds, or the server.

        Raises:
            ConfigError: there are too few users for secure sums, or too many may collude.
            CodingError: the relays do not hear all users of the first contacts, or the choice is invalid.
        """
        if self.secure:
            self.secure.check(contacts.K, contacts.at(0).G)
            return AggregatorSet((), server=True)
        first = contacts.at(0)
        if self.aggregators == "auto":
            A = best_sum_aggregators(first, network.hops(first), 1 if self.sums == "whole" else MOST_PIECES).relays
            return AggregatorSet(A, server=not A)
        nodes = resolve(who_may_aggregate(contacts), self.aggregators)
        A = nodes.relays
        if A and nodes.server:
            raise CodingError(
                f"aggregators=[{','.join(map(str, nodes.setting))}] with communicator=sums: either the server or "
                "relays learn the sums, not both. Leave server out, or set aggregators=auto."
            )
        if A and (unheard := np.setdiff1d(first.present, first.restricted(relays=A).present)).size:
            relays, users = first.names.of_relays(A), first.names.of_users(unheard)
            raise CodingError(
                f"aggregators={relays} with communicator=sums: none of these relays hears {users}. Name "
                "relays that together hear everybody, or set aggregators=auto."
            )
        return nodes

    def planner(self, topology: Topology, network: Network, nodes: AggregatorSet) -> Planner:
        return Planner(topology, network, nodes.relays, sums=self.sums)

    def joined(self, users: UserSide, aggregator: AggregatorSide, K: int) -> tuple[UserSide, AggregatorSide]:
        if not users.numbers:  # nothing travels
            return users, aggregator
        meaning = users.means()
        if not meaning:
            raise CodingError(
                f"{type(aggregator).__name__} needs the rows of all users, not only sums of them. Set "
                "communicator=coded or uncoded."
            )
        if meaning.common and not self.bits and (of_sums := aggregator.means()):
            aggregator = CommonModel(aggregator, of_sums)
        return TermsOfUsers(users, meaning), aggregator

    def of_rows(self, users: UserSide, planner: Planner) -> "SumsOfRows":
        meaning = users.means()
        common = meaning.common if meaning and not self.bits else None
        made = replace(self, common=common).of_numbers(users.numbers, planner.topology.K)
        for code in made.codes(planner):
            _ = code.inverses
        return made

    def of_numbers(self, m: int, K: int) -> "SumsOfRows":
        """Return this recipe for rows of m numbers and K users."""
        formats: Formats = PlainRows(m, 8 * (self.common or torch.int64).itemsize, K)
        if self.bits:
            formats = FewBits(self.bits, K, m, masked=self.secure is not None)
        return replace(self, formats=formats)

    def lengths(self, users: UserSide) -> Mapping[str, tuple[int, int]]:
        return {name: (terms.nbytes, sums.nbytes) for name, (terms, sums) in self.formats.up.items()}

    def model(self, users: UserSide, row: Tensor) -> int:
        before, _ = unpacked(row.numpy().ravel(), self.formats.K)
        if before - self.formats.stamp not in [8 * each for each in users.answers]:
            raise CodingError(f"rows for users have no {before} bytes of further numbers")
        return self.formats.of_row(row).nbytes

    def delivered(self, planner: Planner, users: UserSide, message: Message) -> Shape:
        to, i, n = message.of_users(), relay_number(message.sender), len(message)
        if not n:
            raise CodingError("it has no row")
        row, code = self._spread(planner, message)
        self.model(users, row)
        needs = code.needs(i)[to]
        shares = needs[0] if planner.network.last_hop == "unicast" else np.ones_like(needs[0])
        if not needs.any(axis=1).all() or (needs & ~shares).any():
            raise CodingError("it has shares that some of these users do not need")
        nbytes = int(shares.sum()) * self.formats.of_row(row).share(code).nbytes
        return Shape(nbytes, message.overhead.shape[1], True, n)

    def user_coder(self, users: UserSide, members: Users) -> UserCoder:
        return (
            FewBitTermCoder(users, self.formats, members)
            if isinstance(self.formats, FewBits)
            else TermCoder(users, self.formats, self.common)
        )

    def aggregator_coder(self, users: UserSide, K: int) -> AggregatorCoder:
        return (
            FewBitSumCoder(self.formats) if isinstance(self.formats, FewBits) else SumCoder(users.numbers, self.common)
        )

    def flow(self, planner: Planner, attendance: Attendance, sizes: tuple[int, int]) -> Flow:
        terms, sums = self.formats.up[attendance.format]
        code, A = planner.sum_code(attendance.apart, self.formats.L), attendance.aggregators
        apart = np.array(attendance.apart.present, dtype=np.int64)
        common = np.setdiff1d(attendance.users, apart) if A else apart[:0]
        learners = A or ((OF_SERVER,) if planner.server else ())
        added = Added(code, terms, sums, sizes[1], attendance.users, common, learners, planner.copies(A))
        delivery = CommonRow(planner, attendance, self.formats)
        for planned in (code, delivery.code):
            _ = planned.inverses  # otherwise the first node that needs them makes them during its turn
        codes = hashlib.blake2b(code.digest + delivery.code.digest, digest_size=DIGEST_BYTES).digest()
        return Flow(partial(Sum, added), (added,) if learners else (), delivery, codes)

    def arrived(
        self, planner: Planner, members: Users, messages: Sequence[Message]
    ) -> tuple[Users, Tensor, Tensor] | None:
        """Return the users all of whose shares arrived, and the row that these are shares of.

        If relays say different things about it, what most of them say holds.
        """
        if not messages:
            return None
        messages = alike(messages, lambda message: message.overhead[0].numpy().tobytes())
        messages.sort(key=lambda message: relay_number(message.sender))  # as shares are joined
        overhead, code = self._spread(planner, messages[0])
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
        return users, self.formats.of_row(overhead).join(torch.cat(rows), code, group), overhead

    def _spread(self, planner: Planner, message: Message) -> tuple[Tensor, SumCode]:
        """Return the overhead of the row of which a relay sends shares, and the code by which relays make these.

        Raises:
            CodingError: the relay has another code.
        """
        H = planner.topology.H
        size = _nbytes(H) + DIGEST_BYTES
        overhead, header = message.overhead[:1, :-size], message.overhead[0, -size:].numpy()
        present = np.unpackbits(header[:-DIGEST_BYTES], count=H)
        code = planner.spread_code(tuple(np.flatnonzero(present).tolist()), self.formats.L)
        if header[-DIGEST_BYTES:].tobytes() != code.digest:
            raise CodingError(OTHER_PLAN)
        return overhead, code

    def codes(self, planner: Planner) -> tuple[SumCode, SumCode]:
        """Return the codes by which relays add and spread sums if everybody is present."""
        attendance, L = planner.everybody, self.formats.L
        return planner.sum_code(attendance.apart, L), planner.spread_code(attendance.holders, L)

    def loads(self, planner: Planner) -> Loads:
        up, spread = self.codes(planner)
        attendance, t = planner.everybody, planner.topology
        A = attendance.aggregators
        load = up.loads(spread, self.formats.L, len(A) or None)
        if planner.network.last_hop == "unicast":
            load = replace(load, last_hop=float(len(t.present)))
        if A and (others := len(set(attendance.holders).difference(A))):  # get the row through the server
            by_relay = np.array(load.by_relay)
            row = self.formats.down.nbytes / self.formats.sums.nbytes if self.formats.L else 1.0
            by_relay[planner.carrier(attendance)] += row
            passed = {
                "uplink": load.uplink + row,
                "downlink": load.downlink + row,
                "unicast": load.unicast + row * others,
            }
            load = replace(load, by_relay=tuple(by_relay.tolist()), **passed)
        return load

    def bounds(self, planner: Planner) -> Loads:
        bound = sum_bounds(planner.topology, planner.everybody.aggregators)
        if planner.network.last_hop == "unicast":
            return replace(bound, last_hop=float(len(planner.topology.present)))
        return bound

    def row_bits(self, V_bits: int, relays: Sequence[int] = ()) -> dict[str, int]:
        """Return the bits of a row of each tier; before the scales are known, rows are longer."""
        up, sums, down = (8 * each.nbytes for each in (self.formats.terms, self.formats.sums, self.formats.down))
        return dict(zip(TIERS, (up, sums, sums if relays else down, down), strict=True))

    def uncoded(self, sent: dict[str, Any], users: UserSide, attendance: Attendance) -> dict[str, Any]:
        """Return the bits of a round by tier with uncoded IVs and models in the learner's own type of numbers."""
        numbers, up, down = _bits_of_rows(users), 64 * users.further, 64 * min(users.answers)
        reached = attendance.topology.restricted(relays=attendance.relays).degrees > 0
        ends = {
            USERS_TO_RELAYS: np.where(sent[USERS_TO_RELAYS] > 0, numbers + up, 0),
            RELAYS_TO_USERS: np.where(reached, numbers + down + RECEIPT, 0),
        }
        return {**sent, **ends}

    def describe(self, planner: Planner, users: UserSide | None, dtype: str) -> dict[str, Any]:
        """Return what `summary.json` reports about these rows.

        Loads are in rows of each tier, which have `bits_per_number` bits for each number if tiers differ in this.
        `loads_uncoded` are the loads of the same learner's IVs and models in its own type of numbers, in the same
        units.
        """
        (code, _), names = self.codes(planner), planner.topology.names
        described: dict[str, Any] = {"communicator": "sums", "scheme": "sums", "last_hop": planner.network.last_hop}
        described |= {"adding": names.of_relays(code.relays), "pieces": code.pieces}
        if users and users.numbers and (meaning := users.means()):
            row_bits, K = self.row_bits(0, planner.everybody.aggregators), planner.topology.K
            if len({*row_bits.values()}) > 1:
                described["bits_per_number"] = {tier: bits / meaning.words for tier, bits in row_bits.items()}
            described["loads_uncoded"] = {tier: K * _bits_of_rows(users) / row_bits[tier] for tier in TIERS}
        notes = []
        if self.bits:
            notes.append(
                f"terms of sums travel in {self.bits} bits each, and users add what this rounding leaves over to their "
                "next terms; rows of 64-bit numbers travel in the first round and for users who missed a row"
            )
        if self.bits and self.secure:
            w = FewBits(self.bits, planner.topology.K, 0, masked=True).terms.bits
            notes.append(f"masked terms are uniform in {w} bits per number, so users send these instead of {self.bits}")
        return described | {"note": "; ".join(notes)}


def _bits_of_rows(users: UserSide) -> int:
    """Return the bits of a row of these users, before it becomes terms."""
    return 8 * users.numbers * users.origin.element_size()


@dataclass(frozen=True, eq=False)
class Added:
    """Relays send shares of sums of terms, which the server adds; it learns the sum, or relays do.

    Attributes:
        code: makes shares of the terms that reach the server.
        terms, sums: formats of a user's terms and of their sums.
        overhead: bytes of further numbers beside a user's terms.
        users: whose terms are added.
        common: the users whose terms every learner heard, and which do not travel.
        learners: the relays that learn the sum, or OF_SERVER.
        copies: the relays that receive the server's sum, and the link.
    """

    code: SumCode
    terms: RowFormat
    sums: RowFormat
    overhead: int
    users: Users
    common: Users
    learners: tuple[int, ...]
    copies: tuple[tuple[tuple[int, ...], int], ...]

    kinds = IVS, BROADCAST

    @property
    def senders(self) -> tuple[int, ...]:
        return self.code.relays

    @property
    def receivers(self) -> tuple[int, ...]:
        return self.learners if self.copies and self.code.relays else ()

    def up(self, i: int, heard: "Sum") -> Content:
        shares = self.sums.share(self.code).pack(heard.shares.view(len(self.code.shares_of(i)), -1))
        return Content(shares.reshape(1, -1), to_bytes(heard.further))

    def shape(self, i: int, up: bool) -> Shape:
        if not up:
            return Shape(self.sums.nbytes, self.overhead)
        shares, leads = len(self.code.shares_of(i)), i in self.code.leaders
        return Shape(shares * self.sums.share(self.code).nbytes, self.overhead * leads)

    def down(self, heard: "Sum", received: Sequence[Message]) -> Iterator[Copy]:
        if self.receivers:
            content = Content(*self._joined(received))
            for relays, link in self.copies:
                yield Copy(relays, link, content)

    def learn(self, node: int, heard: "Sum", received: Sequence[Message], digest: Digest, keeper: Keeper) -> None:
        if node == OF_SERVER:  # it learns the sum alone, so nobody compares digests
            payload, overhead = self._joined(received)
        else:
            total, heard.common = heard.common, heard.common[:, :0]
            for message in received:
                total += self.sums.unpack(message.payload)
            further = [to_bytes(heard.common_further), *(message.overhead for message in received)]
            payload, overhead = self.sums.pack(total), _added(torch.cat(further))
            digest.add_rows(payload)
            digest.add_rows(overhead)
        if keeper:
            keeper.keep(self.users, {"payload": payload, "overhead": overhead})

    def _joined(self, received: Sequence[Message]) -> tuple[Tensor, Tensor]:
        """Return the sum of the terms of which relays sent shares, and of their further numbers, uint8 [1, bytes]."""
        code, share, stretch = self.code, self.sums.share(self.code), self.code.stretches(self.terms.L)
        row = torch.zeros(code.pieces * code.bits, stretch, dtype=torch.int64)
        further = [torch.zeros(1, self.overhead, dtype=torch.uint8)]
        for message in received:
            i = relay_number(message.sender)
            packed = message.payload.reshape(len(code.shares_of(i)), -1)
            code.add(i, share.unpack(packed).reshape(-1, stretch), row)
            if i in code.leaders:
                further.append(message.overhead)
        return self.sums.pack(row.view(1, -1)[:, : self.terms.L]), _added(torch.cat(further))


class Sum:
    """What relay i keeps of the terms that it hears.

    Args:
        step: by which it sends them.
        i: number of the relay.

    Attributes:
        shares: of the terms that it sends, int64 [x·m, stretch].
        further: sum of the further numbers of users whose shares it leads, int64 [1, e].
        common: sum of the terms that do not travel, int64 [1, L], at a relay that learns the sum.
        common_further: sum of the further numbers beside these, int64 [1, e].
    """

    def __init__(self, step: Added, i: int) -> None:
        code, self._terms, K = step.code, step.terms, len(step.code.of_user)
        stretch, e = code.stretches(self._terms.L), step.overhead // 8
        self.shares = torch.zeros(len(code.shares_of(i)) * code.bits, stretch, dtype=torch.int64)
        led, common = code.leaders == i, np.isin(np.arange(K), step.common if i in step.learners else [])
        self.further = torch.zeros(1, e if led.any() else 0, dtype=torch.int64)
        self.common = torch.zeros(1, self._terms.L if i in step.learners else 0, dtype=torch.int64)
        self.common_further = torch.zeros(1, e, dtype=torch.int64)
        self._groups = [(np.isin(np.arange(K), users), matrix, self.shares) for users, matrix in code.terms(i)]
        self._groups.append((common, torch.ones(1, 1, dtype=torch.int64), self.common))
        self._further = (led, self.further), (common, self.common_further)
        self._needed = np.logical_or.reduce([led, *(chosen for chosen, _, _ in self._groups)])
        self._nbytes, self._heard = self._terms.nbytes + step.overhead, np.zeros(K, dtype=np.int64)

    @property
    def lacking(self) -> Users:
        """The users whose rows did not arrive whole and once, as they were announced."""
        return np.flatnonzero(self._needed & (self._heard != self._nbytes))

    def take(self, messages: Sequence[Message]) -> None:
        """Add the terms in these messages."""
        for message in messages:
            users, rows = message.of_users(), message.rows().numpy()
            self._heard[users] += sum(message.sizes)
            for chosen, matrix, to in self._groups:
                if len(at := rows[chosen[users]]):
                    self._terms.add(message.payload, torch.from_numpy(at), matrix, to, message.first)
            for chosen, to in self._further:
                if message.overhead.shape[1] and len(at := rows[chosen[users]]):
                    _add_numbers(message.overhead, torch.from_numpy(at), to)


class CommonRow:
    """The delivery of one row to all users: relays send shares of it to their users."""

    def __init__(self, planner: Planner, attendance: Attendance, formats: Formats) -> None:
        self.code, self.formats = planner.spread_code(attendance.holders, formats.L), formats
        self.holders, self.K, self.last_medium = attendance.holders, planner.topology.K, planner.network.last_hop
        others = tuple(i for i in attendance.holders if not attendance.aggregating[i])
        self.carrier = planner.carrier(attendance) if attendance.aggregators and others else OF_SERVER
        self.copies = planner.copies(others if attendance.aggregators else self.code.relays)
        # What a relay holds before the last hop: the row, or its shares if it learned no sum and they came one by one.
        self.splits = not attendance.aggregators and planner.network.medium == "unicast"

    def up(self, i: int, models: Content) -> Content | None:
        return models if i == self.carrier else None

    def passed(self, i: int, up: bool, row: Tensor, nbytes: int) -> Shape:
        if not (i == self.carrier if up else any(i in relays for relays, _ in self.copies)):
            raise CodingError("no models are sent this way")
        if self.splits:
            nbytes = len(self.code.shares_of(i)) * self.formats.of_row(row).share(self.code).nbytes
        return Shape(nbytes, row.shape[1])

    def down(self, models: Content) -> Iterator[Copy]:
        for relays, link in self.copies:
            payload = self._shares(models, relays[0]).reshape(1, -1) if self.splits else models.payload
            yield Copy(relays, link, Content(payload, models.overhead))

    def last_hop(
        self, i: int, models: Content | None, passed: Sequence[Message]
    ) -> Iterator[tuple[int | Users, Content]]:
        own, needs = self.code.shares_of(i), self.code.needs(i)
        received = (Content(message.payload, message.overhead) for message in passed)
        row = models or next(received, None)
        if row is None or not len(own):
            return
        shares = row.payload.reshape(len(own), -1) if self.splits else self._shares(row, i)
        present = np.isin(np.arange(self.code.H), self.holders)
        header = np.concatenate([np.packbits(present), np.frombuffer(self.code.digest, np.uint8)])
        overhead = torch.cat([row.overhead, torch.from_numpy(header)[None]], dim=1)
        if self.last_medium == "broadcast":
            users = np.flatnonzero(needs.any(axis=1))
            yield self.K + i, Content(shares.reshape(1, -1), overhead, users)  # the link for all users of this relay
            return
        for needed in np.unique(needs[needs.any(axis=1)], axis=0):
            users = np.flatnonzero((needs == needed).all(axis=1))
            payload, at = shares[torch.from_numpy(needed)].reshape(1, -1), torch.zeros(len(users), dtype=torch.int64)
            yield users, Content(payload, overhead, users, at)

    def _shares(self, row: Content, i: int) -> Tensor:
        """Return relay i's shares of a row, uint8 [x, bytes]."""
        if self.code.pieces == 1:
            return row.payload
        return self.formats.of_row(row.overhead).split(row.payload, self.code, self.code.shares_of(i))


def _added(rows: Tensor) -> Tensor:
    """Return the sum of rows, uint8 [1, 8·L] for rows [n, 8·L]: the bytes of int64."""
    total = torch.zeros(1, rows.shape[1] // 8, dtype=torch.int64)
    _add_numbers(rows, torch.arange(len(rows)), total)
    return to_bytes(total)


def _add_numbers(rows: Tensor, at: Tensor, to: Tensor) -> None:
    """Add the numbers in some rows of bytes to `to`, int64 [1, e]."""
    to += from_bytes(rows[at], torch.int64).sum(0)


def _nbytes(H: int) -> int:
    """Return the bytes of one bit for each relay."""
    return -(-H // 8)
