"""The communicator of sums: relays and server add, and the server or relays learn the sums. K users, H relays."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hmtl.coding import Aggregators, Loads, SumCode, sum_bounds
from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    TIERS,
    USERS_TO_RELAYS,
)
from hmtl.communication.accounting.network import Network, between_seconds
from hmtl.communication.attendance import Attendance, Report, decide
from hmtl.communication.coders import UserCoder
from hmtl.communication.communicators.base import KEPT, Communicator, MakeLinks
from hmtl.communication.communicators.ivs import CodedHierarchical
from hmtl.communication.encoding import BLOCK
from hmtl.communication.few_bits import FEW_BITS, FewBits
from hmtl.communication.links import InProcess
from hmtl.communication.nodes.aggregation import Aggregation, AggregatorSide
from hmtl.communication.nodes.host import UserSide
from hmtl.communication.nodes.secure import SecureHost, SecureRelay, SecureServer
from hmtl.communication.planning.planner import SUMS, Planner, preferred_sum_aggregators
from hmtl.communication.planning.sums import SumsOfRows
from hmtl.communication.prediction import predict
from hmtl.communication.round import Nodes, Outcome
from hmtl.communication.row_formats import Formats, PlainRows
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.secure_costs import secure_costs
from hmtl.communication.secure_round import SecureSchedule
from hmtl.communication.sum_coders import FewBitSumCoder, FewBitTermCoder, SumCoder, TermCoder
from hmtl.communication.wires import QUANTISERS, name_of
from hmtl.errors import ConfigError
from hmtl.topology import Moving, Topology

RECEIPT = 32  # bits, beside each user's own model, that say in which round the user's IV counted last


@dataclass(frozen=True)
class Replaced:
    """A coded plan that sums replaced because they take less time.

    Attributes:
        seconds: returns the time [s] of the plan, given the bits of an IV.
        ratio: bits of a row of sums divided by bits of an IV.
    """

    seconds: Callable[[float], float]
    ratio: float


class Sums(Communicator):
    """A communicator for learners that need only sums: relays and server add the users' terms.

    What is exchanged before the first round travels uncoded.

    Args:
        topology: who hears whom, in all rounds or round by round.
        network, links: see `Communicator`; `network.last_hop` says how relays reach their users.
        sums: one of `SUMS`: whether relays send rows of sums whole or in shares.
        aggregators: who learns the sums. `auto`: the server, or those relays, with which a row takes the least time on
            this network; `server`; `all`; or the numbers of relays that together hear everybody.
        wire: a name in FEW_BITS, for terms and sums in few bits, see `hmtl.communication.few_bits`; None: 64 bits.
        secure: whether relays and server learn nothing but the sums, see `hmtl.communication.secure.protocol`; the
            server then learns the sums.
        colluding, least: settings of secure sums, see `Secure`.

    Attributes:
        replaced: the coded plan instead of which sums travel; None: the user chose sums.
        secure_settings: the arguments `secure`, `colluding` and `least`.
    """

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        wire: str | None = None,
        *,
        sums: str = "auto",
        aggregators: Aggregators = "auto",
        links: MakeLinks = InProcess,
        secure: bool = False,
        colluding: float = 0.1,
        least: int | None = None,
    ) -> None:
        self.secure = Secure(colluding, least) if secure else None
        if not secure and Secure(colluding, least) != Secure():
            raise ConfigError(
                f"colluding={colluding} and least={least} have no effect with secure=false. Set secure=true, or leave "
                "them out."
            )
        if self.secure:
            self.secure.check(topology.K)
            if aggregators not in ("auto", "server"):
                raise ConfigError(
                    f"aggregators={aggregators} with secure=true: the server unmasks the sums, so it learns them. Set "
                    "aggregators=auto or server."
                )
            aggregators = "server"
        if wire is not None and wire not in FEW_BITS:
            raise ConfigError(
                f"wire={name_of(wire)} with communicator=sums: sums travel as integers. Choose one of "
                f"{', '.join(FEW_BITS)}, or null for 64 bits."
            )
        if sums not in SUMS:
            raise ConfigError(f"sums={sums} is unknown. Choose one of {', '.join(SUMS)}.")
        super().__init__(topology, network, "uncoded", links=links)
        self._setup_planner = self.planner
        preferred = preferred_sum_aggregators(topology, network, sums, aggregators)
        self._planner_of = lru_cache(KEPT)(lambda t: Planner(t, network, preferred, sums=sums))
        self.planner = self._planner_of(self.topology)
        self.aggregators = aggregators
        self.secure_settings: dict[str, Any] = {"secure": secure, "colluding": colluding, "least": least}
        who = list(preferred) or "server"
        self.alike = partial(Sums, wire=wire, sums=sums, aggregators=who, **self.secure_settings)
        self.bits = FEW_BITS.get(wire or "")
        self.replaced: Replaced | None = None

    row_type = torch.int64

    @property
    def theory(self) -> Loads:
        return self._loads(self.topology)

    def setup(self, users: UserSide, aggregator: AggregatorSide) -> None:
        round_planner = self.planner
        self.planner = self._setup_planner
        try:
            super().setup(users, aggregator)
        finally:
            self.planner = round_planner

    def describe(self) -> dict[str, Any]:
        """Return what `summary.json` reports about communication, with the bounds of `sum_bounds`.

        Loads are in rows of each tier, which have `bits_per_number` bits for each number if these are few; before the
        scales are known, rows are longer. `loads_uncoded` are the loads of the same learner's IVs and models in its own
        type of numbers, in the same units.
        """
        described = super().describe()
        topologies = [self.contacts.at(number) for number in self._described_rounds]
        rows = {t: self._rows(t) for t in set(topologies)}
        last_hop, *least = np.mean([rows[t] for t in topologies], axis=0).tolist()
        described["loads_theory"][RELAYS_TO_USERS] = last_hop
        described["bounds"] = dict(zip((RELAYS_TO_SERVER, SERVER_TO_RELAYS, RELAYS_TO_USERS), least, strict=True))
        described |= {"communicator": "sums", "scheme": "sums", "last_hop": self.network.last_hop}
        code, _ = self._codes(self.topology, self._L)
        described |= {"adding": self.topology.names.of_relays(code.relays), "pieces": code.pieces}
        if not self._sides or not self.V_bits:
            return described
        row_bits = self._row_bits
        if self.bits:
            rounds, numbers = self.ledger.rounds, self._sides[0].numbers
            described["loads"] = {tier: self.ledger.bits(tier).payload / (rounds * row_bits[tier]) for tier in TIERS}
            described["bits_per_number"] = {tier: row_bits[tier] / numbers for tier in TIERS}
        IV_bits = self._sides[0].row_bits[0]
        described["loads_uncoded"] = {tier: self.topology.K * IV_bits / row_bits[tier] for tier in TIERS}
        if self.secure:
            costs = secure_costs(self.contacts.at(0), self.secure, self.network.medium)
            described["secure"] = {key: value for key, value in asdict(costs).items() if key != "bits"}
            described["secure"]["overhead"] = costs.by_tier
        notes = [self._reason(self.replaced)] if self.replaced else []
        if self.bits:
            notes.append(
                f"terms of sums travel in {self.bits} bits each, and users add what this rounding leaves over to their "
                "next terms; rows of 64-bit numbers travel in the first round and for users who missed a row"
            )
        if self.bits and self.secure:
            w = self.bits + (self.topology.K - 1).bit_length()
            notes.append(f"masked terms are uniform in {w} bits per number, so users send these instead of {self.bits}")
        return described | ({"note": "; ".join(notes)} if notes else {})

    def round(
        self, number: int, users: UserSide, aggregator: AggregatorSide, absent_relays: Collection[int] = ()
    ) -> Outcome:
        outcome = super().round(number, users, aggregator, absent_relays)
        if self.bits and users.numbers:  # not those of the first rows, which are longer
            self.V_bits = self._row_bits[USERS_TO_RELAYS]
        return outcome

    def uncoded_seconds(self) -> float:
        """Return the communication time of the last round with uncoded IVs and models instead."""
        if self._server is None or self._sides is None:
            return 0.0
        (numbers, up, down), sent = self._sides[0].row_bits, self._sent(-1)
        reached = self.topology.restricted(relays=self._server.attendance.relays).degrees > 0
        users = {
            USERS_TO_RELAYS: np.where(sent[USERS_TO_RELAYS] > 0, numbers + up, 0),
            RELAYS_TO_USERS: np.where(reached, numbers + down + RECEIPT, 0),
        }
        return self._uncoded_seconds({**sent, **users}, self._server)

    def _predicted(self, sent: Mapping[str, NDArray[np.int64]], coded: bool) -> float:
        if coded and self.secure:  # the round that is played adds the overhead of secure sums
            sent = {**sent, USERS_TO_RELAYS: self.ledger.per_link(USERS_TO_RELAYS, -1)[:, 0]}
        return super()._predicted(sent, coded)

    def _make_nodes(self, users: UserSide, aggregator: AggregatorSide) -> Nodes:
        if not users.numbers:  # a set-up, or nothing travels
            return super()._make_nodes(users, aggregator)
        K, few_bits = self.topology.K, None
        formats: Formats = PlainRows(users.numbers)
        if self.bits:
            formats = few_bits = FewBits(self.bits, K, users.numbers, masked=bool(self.secure))
        coder = FewBitSumCoder(few_bits) if few_bits else SumCoder(users.numbers)

        def user_coder(side: UserSide, members: NDArray[np.int64]) -> UserCoder:
            return FewBitTermCoder(side, few_bits, members) if few_bits else TermCoder(side)

        for code in self._codes(self.topology, formats.L):
            _ = code.inverses  # are made before the first round, like the plan of coded IVs
        revocable = bool(self.planner.preferred) and not self._links.reliable
        aggregation = Aggregation(K, aggregator, coder, revocable)
        kinds: dict[str, Any] = {}
        if self.secure:
            host, server = (partial(kind, secure=self.secure) for kind in (SecureHost, SecureServer))
            kinds = {"host": host, "relay": SecureRelay, "server": server, "schedule": SecureSchedule()}
        return self._local_nodes(users, SumsOfRows(formats), aggregation, user_coder, **kinds)

    @property
    def _L(self) -> int:
        """The words in a row; 0 before the learner is known."""
        numbers = self._sides[0].numbers if self._sides else 0
        return FewBits(self.bits, self.topology.K, numbers).L if self.bits else numbers

    def _attendance(self, t: Topology) -> Attendance:
        """Return the attendance of a round in which everybody is present."""
        reports = {i: Report(np.array(t.N(i), dtype=np.int64), 0, 0, 0) for i in range(t.H)}
        return decide(t, reports, 0, self.planner.preferred)

    def _codes(self, t: Topology, L: int) -> tuple[SumCode, SumCode]:
        """Return the codes by which relays add and spread sums if everybody is present."""
        planner, attendance = self._planner_of(t), self._attendance(t)
        return planner.sum_code(attendance.apart, L), planner.spread_code(attendance.holders, L)

    def _loads(self, t: Topology) -> Loads:
        """Return the loads if everybody is present."""
        up, spread = self._codes(t, self._L)
        attendance = self._attendance(t)
        if not attendance.aggregators:
            return up.loads(spread, self._L)
        load = up.loads(spread, self._L, len(attendance.aggregators))
        others = len(set(attendance.holders).difference(attendance.aggregators))
        if not others:
            return load
        passed = np.array(load.by_relay)
        passed[self.planner.carrier(attendance)] += 1
        down, unicast = load.downlink + 1, load.unicast + others
        return replace(load, uplink=load.uplink + 1, downlink=down, by_relay=tuple(passed.tolist()), unicast=unicast)

    @property
    def _row_bits(self) -> dict[str, int]:
        """The bits of a row of each tier."""
        if not self.bits or not self._sides:
            return dict.fromkeys(TIERS, self.V_bits)
        formats = FewBits(self.bits, self.topology.K, self._sides[0].numbers, masked=bool(self.secure))
        return dict.fromkeys(TIERS, 8 * formats.sums.nbytes) | {USERS_TO_RELAYS: 8 * formats.terms.nbytes}

    def _rows(self, t: Topology) -> tuple[float, float, float, float]:
        """Return how many rows relays send to users, and bounds for the rows from relays, from server, and to users."""
        bound = sum_bounds(t, self._attendance(t).aggregators)
        up, down = bound.uplink, bound.down(self.network.medium)
        if self.network.last_hop == "unicast":
            return len(t.present), up, down, len(t.present)
        return self._loads(t).last_hop, up, down, bound.last_hop

    def _reason(self, replaced: Replaced) -> str:
        """Return why sums travel instead of coded IVs."""
        row_bits = self._row_bits[RELAYS_TO_SERVER]
        adding, coded = _seconds(self, row_bits), replaced.seconds(row_bits / replaced.ratio)
        between = " between relays and server" * (self.network.links is None)
        return (
            f"relays add instead of coding, since this learner needs only sums: a round{between} takes "
            f"{adding:.3g} s instead of {coded:.3g} s (a row of sums has {replaced.ratio:.2g} times the bits of an IV)"
        )


def _seconds(communicator: Communicator, V_bits: float) -> float:
    """Return the time that rows of V bits take: between relays and server, or over all links if there is a file."""
    network = communicator.network
    if network.links is None:
        return between_seconds(network, communicator.theory, V_bits)
    return predict(communicator.alike, communicator.topology, network, V_bits, communicator.row_type)


def sums_if_faster(coded: CodedHierarchical, q: int, itemsize: int, numbers: int = 1) -> Sums | None:
    """Return a communicator of sums to replace `coded`, or None if it is not faster.

    Without a file of links, only the time between relays and server is compared. Sums replace coding only if
    `aggregators=auto`, and if numbers travel in their own type or in few bits.

    Args:
        coded: the communicator that sums may replace.
        q: number of sums for each coordinate of an IV.
        itemsize: bytes of a number of an IV in its own type.
        numbers: in an IV.
    """
    wire = coded.wire
    if coded.aggregators != "auto" or (wire is not None and not (isinstance(wire, str) and wire in FEW_BITS)):
        return None
    ratio = 8 * q / itemsize
    if wire:
        sums_of_block = FewBits(FEW_BITS[wire], coded.contacts.K, BLOCK).sums
        ratio = q * sums_of_block.bits * sums_of_block.L / QUANTISERS[wire].bits(BLOCK)
    V_bits = 8.0 * itemsize * numbers
    sums = Sums(coded.contacts, coded.network, wire, links=coded.make_links).for_rows(ratio * V_bits)
    assert isinstance(sums, Sums)
    sums.replaced = Replaced(partial(_seconds, coded), ratio)
    return sums if _seconds(sums, ratio * V_bits) < _seconds(coded, V_bits) else None
