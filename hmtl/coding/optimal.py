"""The least that relays must send for all of them to learn all IVs: exact, proven, and reached by whole numbers.

Relay i sends R_i IVs' worth of combinations of what it hears, and the server lets all relays know them. Rates R
suffice iff Σ_{i∈S} R_i ≥ |{k : N(k) ⊆ S}| for every proper subset S of the relays, and no scheme does with less
(communication for omniscience: Csiszár and Narayan 2004; Courtade and Wesel 2014). The least Σ_i R_i is the largest
Σ_{C∈P} |{k : N(k) ∩ C = ∅}| / (|P| − 1) over the partitions P of the relays. Everything here is a maximum flow between
relays and users, in integers.

Shapes: H active relays, T types (distinct sets of relays that hear a user), n users, c pieces per IV; x = cR, int64
[H]. The constraints bound x from above just as well: for all C, x(C) ≤ x(all) − c·|{k : N(k) ∩ C = ∅}|.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from hmtl.errors import CodingError

Partition = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Uplinks:
    """The relays' links to the server.

    Attributes:
        bandwidths: in bit/s [H], or any unit; only ratios decide who sends what.
        parallel: relays send side by side, so that the last to finish counts; else one after the other.
        downlink: the bandwidth from the server to the relays, in the same unit; it matters where one direction's load
            is weighed against the other's. None: as fast as the fastest relay.
    """

    bandwidths: tuple[float, ...]
    parallel: bool = False
    downlink: float | None = None

    def seconds(self, bits: NDArray[np.number]) -> float:
        """How long it takes until the server has `bits` [H] of each relay."""
        each = bits / np.asarray(self.bandwidths)
        return float(each.max() if self.parallel else each.sum())


@dataclass(frozen=True)
class Rates:
    """Relay i sends `counts[i]` combinations, each as long as one of the c = `pieces` pieces of an IV."""

    pieces: int
    counts: tuple[int, ...]


class Demand:
    """Who must learn what, as a flow network: source → relays → types that they hear → sink.

    Args:
        G: who hears whom, of the active relays [H, n].
    """

    def __init__(self, G: NDArray[np.uint8]) -> None:
        types, self.counts = np.unique(G.T, axis=0, return_counts=True)
        self.hears = types.astype(bool)  # [T, H]
        T, self.H = types.shape
        kind, relay = np.nonzero(types)
        self._source, self._sink = T + self.H, T + self.H + 1
        tails = np.r_[np.full(self.H, self._source), relay, self.H + np.arange(T)]
        heads = np.r_[np.arange(self.H), self.H + kind, np.full(T, self._sink)]
        self._order = np.lexsort((heads, tails))
        self._heads = heads[self._order].astype(np.int32)
        self._starts = np.searchsorted(tails[self._order], np.arange(T + self.H + 3)).astype(np.int32)

    def avoiding(self, relays: Iterable[int]) -> int:
        """How many users none of these relays hears."""
        return int(self.counts[~self.hears[:, list(relays)].any(axis=1)].sum())

    def optimum(self) -> tuple[Fraction, Partition]:
        """The least Σ_i R_i, and the partition that proves that there is no less.

        Newton's method: each partition bounds the total from below. Either rates of that total exist, or the attempt
        at them gives a partition that asks for more, and has fewer parts.

        Raises:
            CodingError: the rates found do not suffice, which would be a defect.
        """
        parts: Partition = tuple((i,) for i in range(self.H))
        while len(parts) > 1:
            total, c = sum(map(self.avoiding, parts)), len(parts) - 1
            x, violated = self._largest(total, c)
            if x.sum() == total:
                if any(self.lacking(x, c, i) for i in range(self.H)):
                    raise CodingError("The optimal rates do not suffice. Please report this with the topology.")
                return Fraction(total, c), parts
            parts = violated
        return Fraction(), parts

    def rates(self, max_pieces: int, uplinks: Uplinks | None = None, slack: float = 1e-9) -> Rates:
        """The best rates with at most `max_pieces` pieces.

        Args:
            max_pieces: the largest c. From H − 1 on, the optimum is reached exactly where links are alike.
            uplinks: to be used for as short a time as can be; None: all alike and shared, so that only the sum counts.
                Then rates are as even as can be.
            slack: the least c is taken that exceeds the best by this part at most.
        """
        least, _ = self.optimum()
        totals = {c: ceil(c * least) for c in range(1, max_pieces + 1)}  # enough, for bases are integral
        if uplinks is None:
            c = _first({c: total / c for c, total in totals.items()}, slack)
            total, level, step = totals[c], -(-totals[c] // self.H), 1  # no lower level reaches the total
            found = {}  # rates by level

            def reaches(level: int) -> bool:
                found[level], _ = self._largest(total, c, [level] * self.H)
                return bool(found[level].sum() == total)

            while not reaches(level):  # mostly the first one does
                low, level, step = level + 1, level + step, 2 * step
            if level > -(-total // self.H):
                level = low + bisect_left(range(low, level), True, key=reaches)
            return Rates(c, tuple(found[level].tolist()))
        find = self._parallel if uplinks.parallel else self._shared
        found = {c: find(c, total, uplinks) for c, total in totals.items()}
        c = _first({c: uplinks.seconds(x) / c for c, x in found.items()}, slack)
        return Rates(c, tuple(found[c].tolist()))

    def _shared(self, c: int, least: int, uplinks: Uplinks) -> NDArray[np.int64]:
        """Of all rates x, those with the smallest Σ_i x_i / W_i, which is convex in the total."""
        cheapest_first = np.argsort(uplinks.bandwidths, kind="stable")[::-1]

        def at(total: int) -> NDArray[np.int64]:
            return self._largest(total, c, order=cheapest_first)[0]

        totals = range(least, c * int(self.counts.sum()))
        rises = bisect_left(totals, True, key=lambda n: uplinks.seconds(at(n + 1)) >= uplinks.seconds(at(n)))
        return at(least + rises)

    def _parallel(self, c: int, least: int, uplinks: Uplinks) -> NDArray[np.int64]:
        """Of all rates x, those with the smallest max_i x_i / W_i, and among these the smallest total.

        More never hurts. So each relay sends what it can until a time, which is put off as long as some set lacks.
        """
        W = np.asarray(uplinks.bandwidths)
        most = np.zeros(self.H, dtype=np.int64)
        while lacking := next(filter(None, (self.lacking(most, c, i) for i in range(self.H))), []):
            others = np.setdiff1d(np.arange(self.H), lacking)
            needed = c * self.avoiding(others)
            sent = np.floor(needed * W[lacking] / W[lacking].sum()).astype(np.int64)
            while sent.sum() < needed:
                sent[np.argmin((sent + 1) / W[lacking])] += 1
            most = np.floor((sent / W[lacking]).max() * W * (1 + 1e-12)).astype(np.int64)
        totals = range(least, int(most.sum()))
        total = least + bisect_left(totals, True, key=lambda total: self._reaches(total, c, most))
        return self._largest(total, c, most)[0]

    def _reaches(self, total: int, c: int, most: Sequence[int] | NDArray[np.int64]) -> bool:
        return bool(self._largest(total, c, most)[0].sum() == total)

    def _largest(
        self,
        total: int,
        c: int,
        most: Sequence[int] | NDArray[np.int64] | None = None,
        order: Sequence[int] | NDArray[np.intp] | None = None,
    ) -> tuple[NDArray[np.int64], Partition]:
        """The largest rates x ≤ most with x(C) ≤ total − c·|{k : N(k) ∩ C = ∅}| for all C, first relays first.

        They suffice if they sum to `total`. Where they do not, and there is no `most`, a partition comes with them that
        says why: its parts C meet their bounds.
        """
        x = np.zeros(self.H, dtype=np.int64)
        parts: list[frozenset[int]] = []
        for i in range(self.H) if order is None else order:
            # min over C ∋ i of the bound on C less x(C∖i): what C∖i sends is worth its place where it exceeds the
            # users that i does not hear and C∖i does, which is a minimum cut.
            demand, supply = c * self.counts * ~self.hears[:, i], x.clip(0)
            flow, graph = self._flow(supply, demand)
            x[i] = total - demand.sum() - supply.sum() + flow.flow_value
            if most is not None:
                x[i] = min(x[i], most[i])
                continue
            tight = frozenset([int(i), *self._cut(graph, flow)])
            tight = tight.union(*(part for part in parts if part & tight))
            parts = [part for part in parts if not part & tight] + [tight]
        return x, tuple(sorted(tuple(sorted(part)) for part in parts))

    def lacking(self, x: NDArray[np.int64], c: int, i: int) -> list[int]:
        """A set S of other relays with `x(S) < c·|{k : N(k) ⊆ S}|`; empty where rates x suffice for relay i.

        It can learn all iff the IVs that it misses, as a flow, fit into the rates of the others.
        """
        demand = c * self.counts * ~self.hears[:, i]
        flow, graph = self._flow(x, demand)
        return sorted(set(range(self.H)) - {i, *self._cut(graph, flow)}) if flow.flow_value < demand.sum() else []

    def _flow(self, supply: NDArray[np.int64], demand: NDArray[np.int64]) -> tuple[Any, csr_array]:
        """The largest flow from relays [H] to types [T], and the network that it is in."""
        # More than all demand is as good as no limit; scipy's flows are int32, which then holds c·n up to 2·10^9.
        unlimited = demand.sum() + 1
        inner = np.full(len(self._order) - len(supply) - len(demand), unlimited)
        capacity = np.concatenate([supply.clip(max=unlimited), inner, demand])[self._order].astype(np.int32)
        shape = (self._sink + 1, self._sink + 1)
        graph = csr_array((capacity, self._heads, self._starts), shape=shape)
        return maximum_flow(graph, self._source, self._sink), graph

    def _cut(self, graph: csr_array, flow: Any) -> list[int]:
        """The relays on the source's side of the smallest cut."""
        residual = graph - flow.flow
        residual.data = residual.data.clip(0)
        residual.eliminate_zeros()
        reached = breadth_first_order(residual, self._source, return_predecessors=False)
        return list(reached[reached < self.H].tolist())


def _first(costs: dict[int, float], slack: float) -> int:
    """The first whose cost exceeds the smallest by a part `slack` at most."""
    return next(c for c, cost in costs.items() if cost <= min(costs.values()) * (1 + slack))
