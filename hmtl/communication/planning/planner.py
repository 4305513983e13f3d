"""Plans and routes of a network, which every node derives by itself."""

from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from hmtl.coding import Aggregators, Cover, Plan, cover, make_plan, resolve, scheme_of
from hmtl.communication.accounting.network import Network
from hmtl.communication.attendance import Attendance, Routes, routes
from hmtl.communication.planning.pieces import View
from hmtl.topology import Topology


@dataclass(frozen=True)
class PlanSettings:
    """Settings of coded plans, see `hmtl.coding.make_plan`.

    Attributes:
        seed: coefficients follow from it, so none travel.
        max_pieces: largest number of pieces of an IV.
        generation: about how many users are coded together.
    """

    seed: int = 0
    max_pieces: int = 8
    generation: int = 200


class Code:
    """The plan of a round in which relays aggregate, and each relay's view of it."""

    def __init__(self, plan: Plan, aggregators: tuple[int, ...]) -> None:
        self.plan, self.aggregators = plan, aggregators
        self._place = {i: n for n, i in enumerate(plan.topology.active)}
        self._views: dict[tuple[int, int], View] = {}

    @cached_property
    def not_coded(self) -> NDArray[np.int64]:
        """The users of the round whom all aggregators hear."""
        coded = np.concatenate([np.empty(0, np.int64), *(np.array(block.users) for block in self.plan.blocks)])
        return np.setdiff1d(np.array(self.plan.topology.present, dtype=np.int64), coded)

    def receivers(self, block: int) -> tuple[int, ...]:
        """Return the relays that decode a block."""
        active = self.plan.topology.active
        return tuple(active[n] for n in self.plan.blocks[block].aggregators)

    def carriers(self, models: int) -> NDArray[np.int64]:
        """Return the aggregator that sends each model to the server, if none hears the user."""
        if not self.plan.aggregators:  # nobody was heard
            return np.full(models, self.aggregators[0])
        return self.plan.carriers(models)

    def view(self, block: int, i: int) -> View:
        """Return what relay i needs to know of a block."""
        if (block, i) not in self._views:
            self._views[block, i] = View.of(self.plan.blocks[block], self._place[i])
        return self._views[block, i]


class Planner:
    """The plans and routes of a topology, kept in case an attendance recurs.

    The nodes of a process share a planner.

    Args:
        topology: who hears whom when everybody is present.
        network: bandwidths and media.
        scheme: see `hmtl.coding.make_plan`; `uncoded` has no plans.
        settings: settings of the plans.
        aggregators: who computes the models, see `hmtl.coding.resolve`; with the scheme `uncoded`, the server does.
        preferred: the relays that this names; None: as it follows from the topology.
    """

    def __init__(
        self,
        topology: Topology,
        network: Network,
        scheme: str,
        settings: PlanSettings = PlanSettings(),
        aggregators: Aggregators = "all",
        preferred: tuple[int, ...] | None = None,
    ) -> None:
        self.topology, self.network, self.scheme, self.settings = topology, network, scheme, settings
        self.aggregators, self._preferred = aggregators, preferred
        self._codes = lru_cache(8)(self._code)  # codes are large
        self._routes = lru_cache(64)(lambda relays, aggregating: routes(topology, relays, aggregating))
        self._spread = lru_cache(64)(lambda relays: cover(topology.restricted(relays=relays)))
        self.attendance = lru_cache(64)(self._attendance)
        self.forwarders = lru_cache(64)(self._forwarders)
        self.cover = lru_cache(64)(self._cover)

    @cached_property
    def preferred(self) -> tuple[int, ...]:
        """The preferred aggregators; empty: the server aggregates.

        If none of them is present, any relay may aggregate.
        """
        if self._preferred is not None:
            return self._preferred
        if scheme_of(self.scheme).code is None:
            return ()
        uplinks = self.network.uplinks(self.topology)
        return resolve(self.topology, self.aggregators, self.scheme, uplinks, self.network.medium)

    @property
    def usual(self) -> tuple[int, ...]:
        """The relays that aggregate when everybody is present; empty: the server does."""
        active = self.topology.active
        return tuple(i for i in self.preferred if i in active) or (active if self.preferred else ())

    @property
    def plans_made(self) -> int:
        """The number of plans made so far."""
        return self._codes.cache_info().misses

    @property
    def plan(self) -> Plan:
        """The plan for when everybody is present."""
        return self._codes(self.topology, self.usual).plan

    def code(self, attendance: Attendance) -> Code:
        """Return the code of a round in which relays aggregate."""
        return self._codes(attendance.heard, attendance.aggregators)

    def routes(self, attendance: Attendance) -> Routes:
        """Return how models reach the users."""
        return self._routes(attendance.relays, attendance.aggregators)

    def spread(self, attendance: Attendance) -> Cover:
        """Return the relays that send the sums to all users within range."""
        return self._spread(attendance.relays)

    def _code(self, heard: Topology, aggregators: tuple[int, ...]) -> Code:
        uplinks, settings = self.network.uplinks(heard), asdict(self.settings)
        plan = make_plan(heard, self.scheme, uplinks=uplinks, aggregators=aggregators or "server", **settings)
        return Code(plan, aggregators)

    def _attendance(self, content: bytes) -> Attendance:
        """Return the attendance that these bytes hold."""
        return Attendance.from_bytes(np.frombuffer(content, np.uint8), self.topology)

    def _forwarders(self, heard: Topology) -> NDArray[np.int64]:
        """Return the relay that forwards each user's IV if nothing is coded [K]."""
        return self.network.forwarders(heard)

    def _cover(self, heard: Topology) -> Cover:
        """Return the relays that add the terms of sums."""
        return cover(heard, self.network.uplinks(heard))
