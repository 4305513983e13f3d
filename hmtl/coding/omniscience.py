"""The smallest rates with which all relays learn all IVs, exactly and with a proof.

Relay i sends R_i IVs' worth of combinations of what it hears, and the server forwards them to all relays. Rates R
suffice iff Σ_{i∈S} R_i ≥ |{k : N(k) ⊆ S}| for every proper subset S of the relays, and every scheme needs this
(communication for omniscience: Csiszár and Narayan 2004; Courtade and Wesel 2014). The smallest Σ_i R_i is the largest
Σ_{C∈P} |{k : N(k) ∩ C = ∅}| / (|P| − 1) over the partitions P of the relays. It is computed by integer maximum flows
between relays and users. `rates` has the general case, in which only some relays learn all IVs.

Shapes: H active relays; T types, which are distinct sets of relays that hear a user; n users; c pieces per IV; x = cR,
int64 [H]. The constraints also bound x from above: x(C) ≤ x(all) − c·|{k : N(k) ∩ C = ∅}| for all C.
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

Partition = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Uplinks:
    """The relays' links to the server.

    Attributes:
        bandwidths: in bit/s [H], or any other unit, because rates depend only on ratios.
        parallel: whether relays send in parallel, so that the last to finish counts; else one after the other.
        downlink: bandwidth from the server to the relays, in the same unit, to compare loads of both directions. None:
            that of the fastest relay.
    """

    bandwidths: tuple[float, ...]
    parallel: bool = False
    downlink: float | None = None

    def seconds(self, bits: NDArray[np.number]) -> float:
        """Return the time until the server has received `bits` [H] from the relays."""
        each = bits / np.asarray(self.bandwidths)
        return float(each.max() if self.parallel else each.sum())


@dataclass(frozen=True)
class Rates:
    """Numbers of combinations, `counts` [H], each as long as 1/`pieces` of an IV."""

    pieces: int
    counts: tuple[int, ...]


class Demand:
    """The IVs that relays must learn, as flows: source → relays → types heard → sink.

    Args:
        G: which active relay hears which user [H, n].

    Attributes:
        counts: users of each type [T].
        hears: which relays hear each type [T, H].
        H: number of relays.
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
        """Return how many users none of these relays hears."""
        return int(self.counts[~self.hears[:, list(relays)].any(axis=1)].sum())

    def optimum(self) -> tuple[Fraction, Partition]:
        """Return the smallest Σ_i R_i, and a partition that proves it.

        Newton's method: each partition gives a lower bound of the total. Either rates with this total exist, or the
        search for them returns a partition with a larger bound and fewer parts.
        """
        parts: Partition = tuple((i,) for i in range(self.H))
        while len(parts) > 1:
            total, c = sum(map(self.avoiding, parts)), len(parts) - 1
            x, violated = self._largest(total, c)
            if x.sum() == total:
                return Fraction(total, c), parts
            parts = violated
        return Fraction(), parts

    def rates(self, max_pieces: int, uplinks: Uplinks | None = None, slack: float = 1e-9) -> Rates:
        """Return the best rates with at most `max_pieces` pieces.

        Args:
            max_pieces: the largest c. With equal links, c = H − 1 reaches the optimum.
            uplinks: the links, whose time is minimized; None: equal and shared links. Then the sum is minimized, and
                the rates are as even as possible.
            slack: relative excess over the best cost that is accepted for a smaller c.
        """
        least, _ = self.optimum()
        totals = {c: ceil(c * least) for c in range(1, max_pieces + 1)}  # these suffice, because bases are integral
        if uplinks is None:
            c = _first({c: total / c for c, total in totals.items()}, slack)
            total, level, step = totals[c], -(-totals[c] // self.H), 1  # no lower level reaches the total
            at_level = {}  # rates

            def reaches(level: int) -> bool:
                at_level[level], _ = self._largest(total, c, [level] * self.H)
                return bool(at_level[level].sum() == total)

            while not reaches(level):  # usually the first level does
                low, level, step = level + 1, level + step, 2 * step
            if level > -(-total // self.H):
                level = low + bisect_left(range(low, level), True, key=reaches)
            return Rates(c, tuple(at_level[level].tolist()))
        fastest = self._parallel if uplinks.parallel else self._shared
        by_pieces = {c: fastest(c, total, uplinks) for c, total in totals.items()}
        c = _first({c: uplinks.seconds(x) / c for c, x in by_pieces.items()}, slack)
        return Rates(c, tuple(by_pieces[c].tolist()))

    def _shared(self, c: int, least: int, uplinks: Uplinks) -> NDArray[np.int64]:
        """Return the rates x with the smallest Σ_i x_i / W_i, which is convex in the total."""
        cheapest_first = np.argsort(uplinks.bandwidths, kind="stable")[::-1]

        def at(total: int) -> NDArray[np.int64]:
            return self._largest(total, c, order=cheapest_first)[0]

        totals = range(least, c * int(self.counts.sum()))
        rises = bisect_left(totals, True, key=lambda n: uplinks.seconds(at(n + 1)) >= uplinks.seconds(at(n)))
        return at(least + rises)

    def _parallel(self, c: int, least: int, uplinks: Uplinks) -> NDArray[np.int64]:
        """Return rates x with the smallest max_i x_i / W_i, and of these the smallest total.

        Larger rates always suffice, so each relay sends as much as it can until a deadline, which is extended as long
        as a set violates its constraint.
        """
        W = np.asarray(uplinks.bandwidths)
        most = np.zeros(self.H, dtype=np.int64)
        while lacking := next(filter(None, (self.lacking(most, c, i) for i in range(self.H))), []):
            needed = c * self.avoiding(np.setdiff1d(np.arange(self.H), lacking))
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
        """Return the largest rates x ≤ most that obey the upper bounds, in order of relays.

        The bounds are x(C) ≤ total − c·|{k : N(k) ∩ C = ∅}| for all C. They suffice if they sum to `total`. If they do
        not and `most` is None, the returned partition proves it: its parts C attain their bounds.
        """
        x = np.zeros(self.H, dtype=np.int64)
        parts: list[frozenset[int]] = []
        for i in range(self.H) if order is None else order:
            # The minimum over C ∋ i of C's bound minus x(C∖i) is a minimum cut: C∖i pays off where it sends more than
            # the users that it hears and i does not.
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
        """Return a set S without relay i that violates `x(S) ≥ c·|{k : N(k) ⊆ S}|`, or [].

        They suffice iff the IVs that relay i misses, as a flow, fit into the rates of the other relays.
        """
        demand = c * self.counts * ~self.hears[:, i]
        flow, graph = self._flow(x, demand)
        return sorted(set(range(self.H)) - {i, *self._cut(graph, flow)}) if flow.flow_value < demand.sum() else []

    def _flow(self, supply: NDArray[np.int64], demand: NDArray[np.int64]) -> tuple[Any, csr_array]:
        """Return the maximum flow from relays [H] to types [T], and its network."""
        # A capacity above the total demand is unlimited; scipy's flows are int32, so c·n may be up to 2·10^9.
        unlimited = demand.sum() + 1
        inner = np.full(len(self._order) - len(supply) - len(demand), unlimited)
        capacity = np.concatenate([supply.clip(max=unlimited), inner, demand])[self._order].astype(np.int32)
        shape = (self._sink + 1, self._sink + 1)
        graph = csr_array((capacity, self._heads, self._starts), shape=shape)
        return maximum_flow(graph, self._source, self._sink), graph

    def _cut(self, graph: csr_array, flow: Any) -> list[int]:
        """Return the relays on the source's side of the minimum cut."""
        residual = graph - flow.flow
        residual.data = residual.data.clip(0)
        residual.eliminate_zeros()
        reached = breadth_first_order(residual, self._source, return_predecessors=False)
        return list(reached[reached < self.H].tolist())


def _first(costs: dict[int, float], slack: float) -> int:
    """Return the first key whose cost exceeds the smallest by at most the fraction `slack`."""
    return next(c for c, cost in costs.items() if cost <= min(costs.values()) * (1 + slack))
