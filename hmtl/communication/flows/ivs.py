"""The flow of a round of IVs: relays forward them, or exchange combinations of them, over GF(2^8). K users."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import AggregatorSet, Loads, Plan, Scheme, bounds, loads, make_plan, resolve, scheme_of
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS, TIERS
from hmtl.communication.accounting.network import Network
from hmtl.communication.agreement import Digest
from hmtl.communication.attendance import Attendance
from hmtl.communication.codecs.few_bit_blocks import QuantizedAggregatorCoder, QuantizedUserCoder
from hmtl.communication.codecs.formats import FLOATS, Quantizer
from hmtl.communication.codecs.plain import AggregatorCoder, UserCoder
from hmtl.communication.codecs.rows import put, take
from hmtl.communication.codecs.wires import check_wire, format_of, quantizer_of, rounding_note, row_bits
from hmtl.communication.flows.flow import OF_SERVER, Copy, Flow, Keeper, Shape, Step
from hmtl.communication.flows.pieces import Segment, View, segments
from hmtl.communication.flows.planner import Planner, who_may_aggregate
from hmtl.communication.flows.recipe import RECEIPT, Recipe, Transport, unknown_format
from hmtl.communication.messages import BROADCAST, COMBINATIONS, IVS, Content, Message, alike, by_user
from hmtl.communication.sides import AggregatorSide, PlayedAggregator, PlayedUsers, RowMeaning, UserSide
from hmtl.communication.terms import TermsAtAggregator
from hmtl.errors import CodingError, ConfigError
from hmtl.gf256 import matmul
from hmtl.io.arrays import NOBODY, Ids
from hmtl.io.row_layout import RowLayout
from hmtl.topology import Moving, Topology


@dataclass(frozen=True)
class IVs(Recipe):
    """The recipe of learners that need all IVs.

    Attributes:
        scheme: what is sent: a name in `hmtl.coding.SCHEMES`, or a `Scheme` of your own.
        seed, max_pieces, generation: see `hmtl.coding.make_plan`.
    """

    scheme: str | Scheme = "optimal"
    seed: int = 0
    max_pieces: int = 8
    generation: int = 200

    tiers = RELAYS_TO_SERVER, SERVER_TO_RELAYS
    adds = False

    def __post_init__(self) -> None:
        check_wire(self.wire)
        if not self.coded:
            object.__setattr__(self, "aggregators", "server")

    @property
    def coded(self) -> bool:
        """Whether relays send combinations; otherwise they forward rows to the server."""
        return scheme_of(self.scheme).code is not None

    def nodes(self, contacts: Topology | Moving, network: Network) -> AggregatorSet:
        # They are chosen once, since a relay that joins them later has to be handed the state, about K IVs up and as
        # many down, and a few rounds with better aggregators do not make up for that.
        first = contacts.at(0)
        t = first if self.aggregators == "auto" else who_may_aggregate(contacts)
        return resolve(t, self.aggregators, self.scheme, network.uplinks(first), network.medium)

    def planner(self, topology: Topology, network: Network, nodes: AggregatorSet) -> Planner:
        make = partial(
            _plan, scheme=self.scheme, seed=self.seed, max_pieces=self.max_pieces, generation=self.generation
        )
        return Planner(topology, network, nodes.relays, make, server=nodes.server)

    def transport(self, layout: RowLayout, K: int, meaning: RowMeaning | None = None) -> "TransportOfIVs":
        return TransportOfIVs(self, layout, K)

    def joined(
        self, users: UserSide, aggregator: AggregatorSide, planner: Planner
    ) -> tuple[PlayedUsers, PlayedAggregator, "TransportOfIVs"]:
        meaning, K = aggregator.hold_meaning(), planner.topology.K
        if meaning and meaning.private:
            raise ConfigError(
                "privacy protects users in sums only, but this learner's rows travel one by one. Set "
                "communicator=sums, or privacy.clip=null."
            )
        return (
            users,
            TermsAtAggregator(aggregator, meaning, K) if meaning else aggregator,
            self.transport(users.row_layout, K),
        )

    def bounds(self, planner: Planner) -> Loads:
        return bounds(planner.topology, aggregators=planner.usual.setting)


@dataclass(frozen=True, eq=False)
class TransportOfIVs(Transport):
    """How IVs travel: a row for each user, both ways."""

    recipe: IVs

    @cached_property
    def lengths(self) -> Mapping[str, tuple[int, int]]:
        dtype = self.row_layout.dtype
        nbytes = row_bits(self.recipe.wire, self.row_layout.numbers, dtype) // 8
        return {format_of(self.recipe.wire, dtype): (nbytes, nbytes)}

    @cached_property
    def tier_bits(self) -> dict[str, int]:
        return dict.fromkeys(TIERS, row_bits(self.recipe.wire, self.row_layout.numbers, self.row_layout.dtype))

    def model(self, row: Tensor, row_format: str) -> int:
        if row.shape[1] not in [8 * each + RECEIPT // 8 for each in self.row_layout.answers]:
            raise CodingError(f"models have no {row.shape[1]} bytes of further numbers")
        if row_format not in (lengths := self.lengths):
            raise CodingError(unknown_format(row_format))
        return lengths[row_format][0]

    def user_coder(self, members: Ids) -> UserCoder:
        if quantizer := self._quantizer:
            return QuantizedUserCoder(self.row_layout, quantizer, members)
        return UserCoder(self.row_layout, self._float_type)

    def aggregator_coder(self) -> AggregatorCoder:
        if quantizer := self._quantizer:
            return QuantizedAggregatorCoder(self.row_layout, quantizer, self.K)
        return AggregatorCoder(self.row_layout.numbers, self._float_type)

    @property
    def _quantizer(self) -> Quantizer | None:
        """What rounds numbers to few bits; a learner without common numbers sends none."""
        return quantizer_of(self.recipe.wire) if self.row_layout.numbers else None

    @property
    def _float_type(self) -> torch.dtype | None:
        return FLOATS.get(self.recipe.wire) if isinstance(self.recipe.wire, str) else None

    def flow(self, planner: Planner, attendance: Attendance, sizes: tuple[int, int]) -> "Flow[Kept]":
        steps: list[Step[Kept]] = []
        digest = Flow.digest
        if planner.server:
            steps.append(Forwarded(attendance.relays, planner.forwarders(attendance.heard), sizes, attendance.format))
        if attendance.aggregators:
            steps += coded_steps(planner, attendance, sizes)
            digest = planner.plan_of(attendance).digest
        delivery = OwnModels(planner, attendance)
        return Flow(lambda i: Kept(planner.topology.G[i] == 1), tuple(steps), delivery, digest)

    def arrived(
        self, planner: Planner, members: Ids, messages: Sequence[Message]
    ) -> tuple[Ids, Tensor, Tensor, str] | None:
        if not messages:
            return None
        messages = alike(messages, lambda message: (message.format, message.sizes))
        users, rows = by_user(messages)
        return users, rows["payload"], rows["overhead"], messages[0].format

    def loads(self, planner: Planner) -> Loads:
        if self.recipe.coded:
            return planner.plan.loads
        return loads(planner.topology, self.recipe.scheme, planner.network.uplinks(planner.topology))

    def describe(self, planner: Planner) -> dict[str, Any]:
        communicator, scheme = "coded" if self.recipe.coded else "uncoded", scheme_of(self.recipe.scheme).name
        note = rounding_note(self.recipe.wire, self.row_layout.dtype) if self.row_layout.numbers else ""
        return {"communicator": communicator, "scheme": scheme, "note": note}


UNCODED = IVs("uncoded")


@lru_cache(4)  # plans are large; a round that was played for its price and the run then share one
def _plan(heard: Topology, **settings: Any) -> Plan:
    return make_plan(heard, **settings)


@dataclass(eq=False)
class Kept:
    """The rows that a node heard.

    Attributes:
        near: the users whose rows it reads [K].
        parts: payload and overhead of the rows, uint8 [n, bytes] each.
        place: the row of each user [K]; -1: not heard.
        cut: the step that cut the rows into pieces last, with these pieces; None: no step has.
        lacking: nobody, since rows that arrived before the report are whole, see `Sum.lacking`.
    """

    near: NDArray[np.bool_]
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    place: NDArray[np.int64] = field(init=False)
    cut: "tuple[Coded, Tensor] | None" = None
    lacking: ClassVar[Ids] = NOBODY

    def __post_init__(self) -> None:
        self.place = np.full(len(self.near), -1)

    def take(self, messages: Sequence[Message]) -> None:
        """Hear these messages, which hold all rows."""
        if messages:
            users, self.parts = by_user(messages)
            at = np.flatnonzero(self.near[users])
            self.place[users[at]] = at

    def at(self, users: NDArray[np.int64]) -> Tensor:
        """Return the rows of these users, of any shape."""
        return torch.from_numpy(self.place[users])


@dataclass(frozen=True, eq=False)
class Forwarded:
    """Relays forward rows, and the server learns them.

    Attributes:
        senders: all relays that take part.
        forwarders: the relay that forwards each user's row [K].
        sizes: bytes of payload and overhead of a row.
        format: of the rows.
    """

    senders: tuple[int, ...]
    forwarders: NDArray[np.int64]
    sizes: tuple[int, int]
    format: str

    kinds = IVS, ""
    receivers = ()
    learners = (OF_SERVER,)

    def up(self, i: int, heard: Kept) -> Content:
        users = np.flatnonzero(self.forwarders == i)
        return Content(heard.parts["payload"], heard.parts["overhead"], users, heard.at(users), self.format)

    def shape(self, i: int, up: bool) -> Shape:
        users = np.flatnonzero(self.forwarders == i)
        return Shape(*self.sizes, users, len(users), format=self.format)

    def down(self, heard: Kept, received: Sequence[Message]) -> Iterator[Copy]:
        yield from ()

    def learn(self, node: int, heard: Kept, received: Sequence[Message], digest: Digest, keeper: Keeper | None) -> Kept:
        assert keeper, "the server keeps what it learns"
        rows = Kept(np.ones(len(self.forwarders), dtype=bool))
        rows.take(received)
        keeper.keep(np.flatnonzero(rows.place >= 0), {**rows.parts})
        return rows


@dataclass(frozen=True, eq=False)
class Coded:
    """Relays send combinations of what they heard, the server combines these, and aggregators decode what they missed.

    If the server knows all rows, it combines these, and relays send nothing.

    Attributes:
        segment: what is coded.
        sizes: bytes of payload and overhead of a row.
        views: what each relay knows of it; the server, if it aggregates, knows all rows.
        senders: the relays whose combinations the server combines.
        copies: who receives the server's combinations, the link, and how many of them (the first ones).
    """

    segment: Segment
    sizes: tuple[int, int]
    views: Mapping[int, View]
    senders: tuple[int, ...]
    copies: tuple[tuple[tuple[int, ...], int, int], ...]
    learners: tuple[int, ...]

    kinds = COMBINATIONS, BROADCAST

    @cached_property
    def receivers(self) -> tuple[int, ...]:
        return tuple(i for i in self.learners if i in self.views and self.views[i].need)

    def up(self, i: int, heard: Kept) -> Content:
        return self._content(matmul(self.views[i].encoder, self._pieces(i, heard)))

    def shape(self, i: int, up: bool) -> Shape:
        rows = len(self.views[i].encoder) if up else next(rows for relays, _, rows in self.copies if i in relays)
        nbytes = len(self.segment.blocks) * self.segment.width
        return Shape(*((nbytes, 0) if self.segment.part == "payload" else (0, nbytes)), rows=rows)

    def down(self, heard: Kept, received: Sequence[Message]) -> Iterator[Copy]:
        if not self.copies:  # every aggregator heard all of these users
            return
        if self.senders:
            combined = self.segment.recoded(torch.cat([self._part(message) for message in received]))
        else:
            combined = self.segment.recoded(self._pieces(OF_SERVER, heard))
        for relays, link, rows in self.copies:
            yield Copy(relays, link, self._content(combined[:rows]))

    def learn(self, node: int, heard: Kept, received: Sequence[Message], digest: Digest, keeper: Keeper | None) -> None:
        segment, pieces = self.segment, self._pieces(node, heard)
        if node == OF_SERVER:
            digest.add(segment.check(pieces))
            return
        view = self.views[node]
        decoded = view.decode(self._part(received[0])[: view.need] if received else pieces[:0], pieces)
        digest.add(view.check(pieces, decoded, len(segment.blocks)))
        if keeper:
            segment.put(decoded, keeper.room(self.sizes)[segment.part], keeper.places(segment.users[view.missing]))

    def _pieces(self, node: int, heard: Kept) -> Tensor:
        """Return the pieces of the rows that a node heard; they are cut once for what it sends and learns."""
        if heard.cut is None or heard.cut[0] is not self:
            users = self.segment.users if node == OF_SERVER else self.segment.users[self.views[node].heard]
            heard.cut = self, self.segment.cut(heard.parts[self.segment.part], heard.at(users))
        return heard.cut[1]

    def _content(self, rows: Tensor) -> Content:
        return Content(*self.segment.sides(rows))

    def _part(self, message: Message) -> Tensor:
        rows: Tensor = getattr(message, self.segment.part)
        return rows


@dataclass(frozen=True, eq=False)
class Completed:
    """Aggregators complete what they decoded with the rows that they heard.

    Attributes:
        learners: the aggregators.
        sizes: bytes of payload and overhead of a row.
        heard_by_all: the users whom all aggregators hear, whose rows were not coded.
    """

    learners: tuple[int, ...]
    sizes: tuple[int, int]
    heard_by_all: Ids

    kinds = "", ""
    senders = receivers = ()

    def up(self, i: int, heard: Kept) -> Content:
        raise NotImplementedError("no relay sends anything")

    def shape(self, i: int, up: bool) -> Shape:
        raise NotImplementedError("nobody sends anything")

    def down(self, heard: Kept, received: Sequence[Message]) -> Iterator[Copy]:
        yield from ()

    def learn(self, node: int, heard: Kept, received: Sequence[Message], digest: Digest, keeper: Keeper | None) -> None:
        at = heard.at(self.heard_by_all)
        for rows in heard.parts.values():
            digest.add_rows(take(rows, at))
        if keeper and node != OF_SERVER:  # the server heard all rows
            rows_of_users = heard.at(keeper.users)
            to = torch.nonzero(rows_of_users >= 0).ravel()
            kept = keeper.room(self.sizes)
            for part, rows in heard.parts.items():
                put(kept[part], to, rows, rows_of_users[to])


def coded_steps(planner: Planner, attendance: Attendance, sizes: tuple[int, int]) -> Iterator[Step[Kept]]:
    """Yield the steps by which the aggregators learn the rows that they did not hear.

    `sizes` are the bytes of payload and overhead of a row.
    """
    plan, H, active = planner.plan_of(attendance), planner.topology.H, attendance.heard.active
    view = cache(lambda number, n: View(plan.blocks[number], n))
    central = (OF_SERVER,) if planner.server else ()
    senders = () if planner.server else active
    for segment in segments(plan, *sizes):
        views = {i: view(segment.number, n) for n, i in enumerate(active)}
        decoding, rows = tuple(active[n] for n in segment.block.aggregators), len(segment.block.downlink)
        needing = decoding if any(views[i].need for i in decoding) else ()
        copies = ((to, link, views[link].need if link < H else rows) for to, link in planner.copies(needing))
        yield Coded(segment, sizes, views, senders, tuple(copies), central + decoding)
    coded = {k for block in plan.blocks for k in block.users}
    heard_by_all = np.array([k for k in attendance.heard.present if k not in coded], np.int64)
    yield Completed(central + attendance.aggregators, sizes, heard_by_all)


class OwnModels:
    """The delivery of a model to each user, by an aggregator that hears the user or else via the server."""

    def __init__(self, planner: Planner, attendance: Attendance) -> None:
        self.serving, self.via_server = planner.routes(attendance)
        # The aggregator that sends the server each user's model; OF_SERVER: none does.
        self.carriers = np.full(planner.topology.K, OF_SERVER)
        if not planner.server and attendance.aggregators:
            users = np.flatnonzero(self.via_server)
            plan = planner.plan_of(attendance)  # without aggregators if nobody was heard
            self.carriers[users] = plan.carriers(len(users)) if plan.aggregators else attendance.aggregators[0]
        self.served = (np.arange(planner.topology.H)[:, None] == self.serving).astype(np.float64)

    def up(self, i: int, models: Content) -> Content | None:
        users = np.flatnonzero(self.carriers == i)
        return models._replace(users=users, at=torch.from_numpy(users)) if len(users) else None

    def passed(self, i: int, up: bool, message: Message, nbytes: int) -> Shape:
        users = np.flatnonzero(self.carriers == i if up else self.via_server & (self.serving == i))
        rows = len(users) if up else None
        return Shape(nbytes, message.overhead.shape[1], users, rows, format=message.format)

    def down(self, models: Content) -> Iterator[Copy]:
        of = np.arange(len(self.serving)) if models.users is None else models.users
        rows = torch.arange(len(of)) if models.at is None else models.at
        for i in np.unique(self.serving[of][self.via_server[of]]).tolist():
            chosen = np.flatnonzero(self.via_server[of] & (self.serving[of] == i))
            yield Copy((i,), i, models._replace(users=of[chosen], at=rows[torch.from_numpy(chosen)]))

    def last_hop(
        self, i: int, models: Content | None, passed: Sequence[Message]
    ) -> Iterator[tuple[int | Ids, Content]]:
        for message in passed:
            users = message.of_users()
            yield users, Content(message.payload, message.overhead, users, message.rows(), message.format)
        if models:
            users = np.flatnonzero((self.serving == i) & ~self.via_server)
            yield users, models._replace(users=users, at=torch.from_numpy(users))
