"""Groups of users whose IVs are coded together, for all relays that demand one of them.

A group has users and relays A that learn their IVs. It costs the least time of the uplink (see `rates`) and of the
downlink: relay j misses m_j of the users, so the server sends max_{j∈A} m_j messages as a broadcast, or Σ_{j∈A} m_j as
copies.

If relays demand different users, one code for several demands can cost less than a code for each of them, although
relays then learn IVs that they do not demand. So two groups at a time are merged, those that save most first, until no
two groups save anything. Most pairs need no linear programme: the uplink of a merged group is at least that of each of
the two, and at least what one of its relays misses. Programmes are solved in the order of these bounds.

Shapes: K users, H relays, g groups. Costs are as in `aggregators`, in IVs at the speed of the server's downlink.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from math import inf

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.plan import Plan
from hmtl.coding.rates import Demand, Programme, Uplinks
from hmtl.topology import Topology

log = logging.getLogger(__name__)

LEAST_SAVED = 1e-6  # IVs that a merger has to save, so that rounding errors save nothing


@dataclass(frozen=True, eq=False)
class Group:
    """Users that are coded together, and the relays that learn their IVs.

    Attributes:
        users: the users, ascending [n].
        relays: the relays, ascending.
    """

    users: NDArray[np.int64]
    relays: NDArray[np.int64]

    @classmethod
    def union(cls, groups: Iterable["Group"]) -> "Group":
        """Return the group of all users and all relays of some groups."""
        pairs = [(group.users, group.relays) for group in groups]
        users, relays = (np.unique(np.concatenate(arrays)) for arrays in zip(*pairs, strict=True))
        return cls(users, relays)


@dataclass(frozen=True)
class Involved:
    """The active relays that take part in a group's code.

    Attributes:
        places: their positions among the active relays.
        hears: which of them hears which user of the group [relays, n].
        learning: positions within `places` of those that learn the IVs.
        uplinks: their uplinks.
    """

    places: NDArray[np.int64]
    hears: NDArray[np.uint8]
    learning: list[int]
    uplinks: Uplinks | None

    @classmethod
    def of(cls, t: Topology, group: Group, uplinks: Uplinks | None) -> "Involved":
        """Return the relays that hear a user of the group or learn its IVs; `uplinks` are of the active relays."""
        active = np.array(t.active)
        hears, learns = t.G[active][:, group.users], np.isin(active, group.relays)
        places = np.flatnonzero(hears.any(axis=1) | learns)
        if uplinks:
            uplinks = replace(uplinks, bandwidths=tuple(uplinks.bandwidths[n] for n in places.tolist()))
        return cls(places, hears[places], np.flatnonzero(learns[places]).tolist(), uplinks)


class Costs:
    """The costs of groups and plans in one network.

    Args:
        t: the topology.
        uplinks: of the active relays; None: all links are equal, and relays send one after the other.
        medium: `broadcast` or `unicast`, of the downlink.

    Attributes:
        per_iv: the least time in which relays send each user's IV [K]: the fastest that hears it, or all in parallel.
    """

    def __init__(self, t: Topology, uplinks: Uplinks | None, medium: str) -> None:
        self.t, self.uplinks, self.medium = t, uplinks, medium
        W = np.zeros(t.H)
        W[list(t.active)] = uplinks.bandwidths if uplinks else 1.0
        self.downlink = float((uplinks and uplinks.downlink) or W.max(initial=0))
        together = uplinks is not None and uplinks.parallel
        fastest = np.full(t.K, W.sum()) if together else (t.G * W[:, None]).max(axis=0)
        self.per_iv = np.divide(self.downlink, fastest, out=np.zeros(t.K), where=fastest > 0)

    def down(self, misses: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the load of the downlink, given how many users each relay misses [.., relays]."""
        return np.asarray(misses.max(axis=-1) if self.medium == "broadcast" else misses.sum(axis=-1))

    def of(self, group: Group, stop: float = inf) -> float | None:
        """Return the cost of a group in pieces as small as it takes; None if it is at least `stop`."""
        down, speed, programme, learning = self._programme(group)
        solution = programme.least(learning, stop=(stop - down) / speed)
        return solution and solution[0] * speed + down

    def bound(self, group: Group) -> float:
        """Return a lower bound of the cost of any plan for a group."""
        down, speed, programme, learning = self._programme(group)
        return programme.bound(learning) * speed + down

    def of_plan(self, plan: Plan) -> float:
        """Return the cost of a plan."""
        sent = np.array(plan.sent, dtype=np.float64)
        up = sent.sum() if self.uplinks is None else self.uplinks.seconds(sent) * self.downlink
        return float(up + plan.received[self.medium == "unicast"])

    def _programme(self, group: Group) -> tuple[float, float, Programme, list[int]]:
        """Return the downlink, the factor of the uplink's time, its programme and its aggregators."""
        involved = Involved.of(self.t, group, self.uplinks)
        misses = len(group.users) - involved.hears[involved.learning].sum(axis=1, dtype=np.int64)
        speed = self.downlink / (max(involved.uplinks.bandwidths) if involved.uplinks else 1.0)
        return float(self.down(misses)), speed, Programme(Demand(involved.hears), involved.uplinks), involved.learning


def demanded(t: Topology, demands: NDArray[np.bool_]) -> list[Group]:
    """Return one group for each set of relays that demand the same users.

    Users that all relays that demand them hear are left out.

    Args:
        t: the topology.
        demands: which relay demands which user [H, K].
    """
    users = np.flatnonzero((demands & (t.G == 0)).any(axis=0))
    kinds, kind_of = np.unique(demands[:, users].T, axis=0, return_inverse=True)
    return [Group(users[kind_of.ravel() == n], np.flatnonzero(kind)) for n, kind in enumerate(kinds)]


def merged(groups: Iterable[Group], costs: Costs) -> list[Group]:
    """Merge groups until no two of them cost less together than apart, and return those that remain."""
    merger = _Merger(list(groups), costs)
    while merger.merge():
        log.debug("groups of users to code: %d", merger.remaining.sum())
    return [merger.groups[n] for n in np.flatnonzero(merger.remaining).tolist()]


class _Merger:
    """The groups before and after each merger, and a heap of the pairs that may save something.

    An entry of the heap is the negative of what the pair saves, or of an upper bound of it; the two groups; and whether
    the first number is exact.
    """

    def __init__(self, groups: list[Group], costs: Costs) -> None:
        most = 2 * len(groups)  # each merger removes two groups and adds one
        self.groups, self.costs = groups, costs
        self.remaining = np.zeros(most, dtype=bool)
        self.cost, self.up = np.zeros(most), np.zeros(most)
        self.size, self.heard = np.zeros(most, dtype=np.int64), np.zeros((most, costs.t.H), dtype=np.int64)
        self.relays = np.zeros((most, costs.t.H), dtype=bool)
        self.alone = np.zeros((most, costs.t.H))  # least time of what each relay misses
        self.pairs: list[tuple[float, int, int, bool]] = []
        for n, group in enumerate(groups):
            cost = costs.of(group)
            assert cost is not None
            self.pairs += self._add(n, group, cost)
        heapify(self.pairs)

    def merge(self) -> bool:
        """Merge the pair that saves most; return whether one saves something."""
        while self.pairs:
            change, a, b, exact = heappop(self.pairs)
            if not self.remaining[[a, b]].all():
                continue
            apart, union = self.cost[a] + self.cost[b], Group.union((self.groups[a], self.groups[b]))
            if exact:
                self.remaining[[a, b]] = False
                self.groups.append(union)
                for pair in self._add(len(self.groups) - 1, union, apart + change):
                    heappush(self.pairs, pair)
                return True
            cost = self.costs.of(union, stop=apart - LEAST_SAVED)
            if cost is not None and cost < apart - LEAST_SAVED:
                heappush(self.pairs, (cost - apart, a, b, True))
        return False

    def _add(self, n: int, group: Group, cost: float) -> list[tuple[float, int, int, bool]]:
        """Add the n-th group; return the pairs with earlier groups that may save something."""
        heard = self.costs.t.G[:, group.users].sum(axis=1, dtype=np.int64)
        misses = len(group.users) - heard[group.relays]
        self.cost[n], self.up[n] = cost, cost - self.costs.down(misses)
        self.size[n], self.heard[n], self.relays[n, group.relays] = len(group.users), heard, True
        self.alone[n] = (self.costs.t.G[:, group.users] == 0) @ self.costs.per_iv[group.users]
        others = np.flatnonzero(self.remaining)
        self.remaining[n] = True
        learns = self.relays[others] | self.relays[n]
        missed = np.where(learns, (self.size[others] + self.size[n])[:, None] - self.heard[others] - heard, 0)
        alone = np.where(learns, self.alone[others] + self.alone[n], 0).max(axis=1, initial=0)
        up = np.maximum(np.maximum(self.up[others], self.up[n]), alone)
        saved = self.cost[others] + cost - up - self.costs.down(missed)
        worth = saved > LEAST_SAVED
        return [(-s, m, n, False) for s, m in zip(saved[worth].tolist(), others[worth].tolist(), strict=True)]
