"""What all nodes know without a word: it follows from the network, the scheme, the seed and who is there."""

from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.coding import Aggregators, Cover, Plan, cover, make_plan, resolve, scheme_of
from hmtl.communication.accounting.network import Network
from hmtl.communication.attendance import Attendance, Routes, routes
from hmtl.communication.planning.coder import View
from hmtl.topology import Topology


class Code:
    """The plan of a round in which some relays aggregate, and each block of it as each relay knows it."""

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
        """The relays that decode a block."""
        active = self.plan.topology.active
        return tuple(active[n] for n in self.plan.blocks[block].aggregators)

    def carriers(self, models: int) -> NDArray[np.int64]:
        """Which aggregator sends each of so many models, of users whom none of them hears, to the server."""
        if not self.plan.aggregators:  # as nobody was heard
            return np.full(models, self.aggregators[0])
        return self.plan.carriers(models)

    def view(self, block: int, i: int) -> View:
        """What relay i needs to know of a block."""
        if (block, i) not in self._views:
            self._views[block, i] = View.of(self.plan.blocks[block], self._place[i])
        return self._views[block, i]


class Planner:
    """Plans and routes of the rounds' networks, kept for when they come again. The nodes of a process share one.

    Args:
        topology: who hears whom when all are there.
        network: the links.
        scheme, seed, max_pieces, generation: see `hmtl.coding.make_plan`; the scheme `uncoded` has no plans.
        aggregators: who computes the models, see `hmtl.coding.resolve`; with the scheme `uncoded` it is the server.
        home: the relays that these are; None: as follows from the topology.
    """

    def __init__(
        self,
        topology: Topology,
        network: Network,
        scheme: str,
        seed: int = 0,
        max_pieces: int = 8,
        generation: int = 200,
        aggregators: Aggregators = "all",
        home: tuple[int, ...] | None = None,
    ) -> None:
        self.topology, self.network, self.scheme = topology, network, scheme
        self._settings: dict[str, Any] = {"seed": seed, "max_pieces": max_pieces, "generation": generation}
        self.aggregators, self._home = aggregators, home
        self._codes = lru_cache(8)(self._code)  # these are large
        self.attendance = lru_cache(64)(self._attendance)
        self._routes = lru_cache(64)(lambda there, aggregating: routes(topology, there, aggregating))
        self.forwarders = lru_cache(64)(self._forwarders)
        self.cover = lru_cache(64)(self._cover)
        self._spread = lru_cache(64)(lambda there: cover(self.topology.restricted(relays=there)))

    @cached_property
    def home(self) -> tuple[int, ...]:
        """The relays that aggregate if they can, and others only when none of these can; none: the server does."""
        if self._home is not None:
            return self._home
        if scheme_of(self.scheme).code is None:
            return ()
        uplinks = self.network.uplinks(self.topology)
        return resolve(self.topology, self.aggregators, self.scheme, uplinks, self.network.medium)

    @property
    def usual(self) -> tuple[int, ...]:
        """The relays that aggregate when all are there; none: the server does."""
        active = self.topology.active
        return tuple(i for i in self.home if i in active) or (active if self.home else ())

    @property
    def made(self) -> int:
        """The number of plans made so far."""
        return self._codes.cache_info().misses

    def code(self, attendance: Attendance) -> Code:
        """The code of a round in which relays aggregate."""
        return self._codes(attendance.heard, attendance.aggregators)

    @property
    def plan(self) -> Plan:
        """The plan for when all are there."""
        return self._codes(self.topology, self.usual).plan

    def _code(self, heard: Topology, aggregators: tuple[int, ...]) -> Code:
        links = self.network.uplinks(heard)
        who = aggregators or "server"
        return Code(make_plan(heard, self.scheme, uplinks=links, aggregators=who, **self._settings), aggregators)

    def _attendance(self, content: bytes) -> Attendance:
        """The attendance of which these are the bytes."""
        return Attendance.from_bytes(np.frombuffer(content, np.uint8), self.topology)

    def routes(self, attendance: Attendance) -> Routes:
        """How models come to the users, see `attendance.routes`."""
        return self._routes(attendance.relays, attendance.aggregators)

    def _forwarders(self, heard: Topology) -> NDArray[np.int64]:
        """[K] the relay that passes each user's IV on where nothing is coded."""
        return self.network.forwarders(heard)

    def _cover(self, heard: Topology) -> Cover:
        """The relays that add up the terms of sums."""
        return cover(heard, self.network.uplinks(heard))

    def spread(self, attendance: Attendance) -> Cover:
        """The relays that send the sums to all users who can be reached."""
        return self._spread(attendance.relays)
