"""The smallest rates with which aggregators A learn all IVs; the other relays help.

Relay i sends R_i IVs' worth of combinations of what it hears, and the server forwards them. Rates R suffice iff
Σ_{i∈S} R_i ≥ |{k : N(k) ⊆ S}| for every set S of relays that lacks an aggregator, and the rates of every scheme by
which all aggregators learn all IVs satisfy this (docs/theory/aggregators.md; communication for omniscience: Csiszár and
Narayan 2004; Courtade and Wesel 2014; with helpers, Milosavljević, Pawar, El Rouayheb, Gastpar and Ramchandran 2012).

If all relays aggregate, the smallest Σ_i R_i is the largest Σ_{C∈P} |{k : N(k) ∩ C = ∅}| / (|P| − 1) over the
partitions P of the relays. `Demand` finds it, and whole rates, exactly by integer maximum flows between relays and
users. With helpers, `Program` solves a linear program, or an integer program for whole pieces, whose constraints
are added as they are violated.

Shapes: H active relays; T types, which are distinct sets of relays that hear a user; n users; c pieces per IV; x = cR,
int64 [H]; 2^H sets of relays, whose members are the bits of their number. If all relays aggregate, the constraints also
bound x from above: x(C) ≤ x(all) − c·|{k : N(k) ∩ C = ∅}| for all C.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache, reduce
from itertools import takewhile
from math import ceil, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from hmtl.errors import CodingError
from hmtl.io.described import Described
from hmtl.topology import Topology

MAX_AT_ONCE = 6  # relays; up to this number, all constraints are used, beyond it they are added when violated
MAX_TABULATED = 12  # relays; up to this number, a table of all sets finds violations, beyond it a flow is faster
MAX_SOLVED = 20  # relays; up to this number, integer programs find whole rates, beyond it rates are rounded up
MAX_CUTS = 20  # violated sets that a step adds, if there is no table
MAX_FLOWS = 500  # that search for violated sets from one call on, before the program ends early
MAX_STEPS = 60  # rounds of adding violated sets, if there is no table
MAX_RATE_NODES = 1000  # nodes of an integer program's tree, after which its best solution is used
TOLERANCE = 1e-9
SLOWEST = 1e-6  # share of the largest bandwidth below which the solver ignores a link
EVEN = 1e-4  # weight of the largest rate: breaks ties in favor of even rates, which violate fewer sets

RelayPartition = tuple[tuple[int, ...], ...]
Set = NDArray[np.bool_]  # [H] members


def over_sets(values: NDArray[Any], combine: Callable[..., Any], empty: Any) -> NDArray[Any]:
    """Return each set's combination, such as the sum, of its members' values [2^H]."""
    return reduce(lambda sets, value: np.concatenate([sets, combine(sets, value)]), values, np.array([empty]))


@dataclass(frozen=True)
class Uplinks:
    """The relays' links to the server.

    Attributes:
        bandwidths: [H] in bit/s, or in any other unit, because rates depend only on ratios.
        parallel: whether relays send in parallel, so that the last to finish counts; otherwise one after another.
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


class Demand(Described):
    """The IVs that relays must learn, as flows: source → relays → types heard → sink.

    Args:
        G: which active relay hears which user [H, n].

    Attributes:
        counts: users of each type [T].
        hears: which relays hear each type [T, H].
        H: number of relays.
        rates: see `_rates`, whose results are kept.
    """

    _shown = ("H", "counts")

    def __init__(self, G: NDArray[np.uint8]) -> None:
        types, self.counts = np.unique(G.T, axis=0, return_counts=True)
        self.hears = types.astype(bool)  # [T, H]
        self.rates = lru_cache(None)(self._rates)
        T, self.H = types.shape
        kind, relay = np.nonzero(types)
        self._source, self._sink = T + self.H, T + self.H + 1
        tails = np.r_[np.full(self.H, self._source), relay, self.H + np.arange(T)]
        heads = np.r_[np.arange(self.H), self.H + kind, np.full(T, self._sink)]
        self._edges = csr_array((np.arange(len(tails)), (tails, heads)), shape=(self._sink + 1, self._sink + 1))

    def avoiding(self, relays: Iterable[int]) -> int:
        """Return how many users none of these relays hears."""
        return int(self.counts[~self.hears[:, list(relays)].any(axis=1)].sum())

    @cached_property
    def within(self) -> NDArray[np.int64]:
        """Number of users k with N(k) ⊆ S, for each set S [2^H]."""
        within = np.bincount(self.hears @ (1 << np.arange(self.H)), self.counts, 1 << self.H).astype(np.int64)
        for i in range(self.H):
            halves = within.reshape(-1, 2, 1 << i)
            halves[:, 1] += halves[:, 0]
        return within

    @cached_property
    def optimum(self) -> tuple[Fraction, RelayPartition]:
        """The smallest Σ_i R_i with which all relays learn all IVs, and a partition that proves it.

        Newton's method: each partition gives a lower bound of the total. Either rates with this total exist, or the
        search for them returns a partition with a larger bound and fewer parts.
        """
        parts: RelayPartition = tuple((i,) for i in range(self.H))
        while len(parts) > 1:
            total, c = sum(map(self.avoiding, parts)), len(parts) - 1
            x, violated = self._largest(total, c)
            if x.sum() == total:
                return Fraction(total, c), parts
            parts = violated
        return Fraction(), parts

    def _rates(self, max_pieces: int, slack: float = 1e-9) -> Rates:
        """Return the best rates with at most `max_pieces` pieces: the least sum, as evenly as possible.

        Args:
            max_pieces: the largest c; some c ≤ H − 1 reaches the optimum.
            slack: relative excess over the least sum that is accepted for a smaller c.
        """
        least, _ = self.optimum
        totals = {c: ceil(c * least) for c in range(1, max_pieces + 1)}  # these suffice, because bases are integral
        c = _first({c: total / c for c, total in totals.items()}, slack)
        total = totals[c]
        level = -(-total // self.H)  # no lower level reaches the total, and usually this one does
        if not self._reaches(total, c, level):
            level += bisect_left(range(level, total), True, key=lambda level: self._reaches(total, c, level))
        return Rates(c, tuple(self._largest(total, c, level)[0].tolist()))

    def _reaches(self, total: int, c: int, most: int) -> bool:
        return bool(self._largest(total, c, most)[0].sum() == total)

    def _largest(self, total: int, c: int, most: int | None = None) -> tuple[NDArray[np.int64], RelayPartition]:
        """Return the largest rates x ≤ most that obey the upper bounds, in order of relays.

        The bounds are x(C) ≤ total − c·|{k : N(k) ∩ C = ∅}| for all C. They suffice if they sum to `total`. If they do
        not and `most` is None, the returned partition proves it: its parts C attain their bounds.
        """
        x = np.zeros(self.H, dtype=np.int64)
        parts: list[frozenset[int]] = []
        for i in range(self.H):
            # The minimum over C ∋ i of C's bound minus x(C∖i) is a minimum cut: C∖i pays off where it sends more than
            # the users that it hears and i does not.
            demand, supply = c * self.counts * ~self.hears[:, i], x.clip(0)
            flow, graph = self._flow(supply, demand)
            x[i] = total - demand.sum() - supply.sum() + flow.flow_value
            if most is not None:
                x[i] = min(x[i], most)
                continue
            tight = frozenset([i, *self._cut(graph, flow)])
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
        unlimited, edges = demand.sum() + 1, self._edges
        inner = np.full(edges.nnz - len(supply) - len(demand), unlimited)
        capacity = np.concatenate([supply.clip(max=unlimited), inner, demand])[edges.data].astype(np.int32)
        graph = csr_array((capacity, edges.indices, edges.indptr), shape=edges.shape)
        return maximum_flow(graph, self._source, self._sink), graph

    def _cut(self, graph: csr_array, flow: Any) -> list[int]:
        """Return the relays on the source's side of the minimum cut."""
        residual = graph - flow.flow
        residual.data = residual.data.clip(0)
        residual.eliminate_zeros()
        reached = breadth_first_order(residual, self._source, return_predecessors=False)
        return list(reached[reached < self.H].tolist())


@lru_cache(4)
def demand_of(t: Topology) -> Demand:
    """Return the demand of a network."""
    return Demand(t.core)


def _first(costs: dict[int, float], slack: float) -> int:
    """Return the first key whose cost exceeds the smallest by at most the fraction `slack`."""
    return next(c for c, cost in costs.items() if cost <= min(costs.values()) * (1 + slack))


class Program:
    """The linear program of one network; it keeps violated sets for other aggregators.

    Args:
        demand: which relay hears which users.
        uplinks: the links, whose time is minimized; None: equal and shared links, for which the sum of rates is.
        sets: [n, H] sets to start with, for example those of another program.
    """

    def __init__(self, demand: Demand, uplinks: Uplinks | None = None, sets: NDArray[np.bool_] | None = None) -> None:
        self.demand, self.H, self.uplinks = demand, demand.H, uplinks
        self.W = np.ones(self.H)
        if uplinks is not None:
            self.W = (uplinks.bandwidths / np.max(uplinks.bandwidths)).clip(min=SLOWEST)
        self.parallel = uplinks is not None and uplinks.parallel
        self.tabulated, self.flows = self.H <= MAX_TABULATED, 0
        self.steps = 1 << self.H if self.tabulated else MAX_STEPS
        if sets is None:  # all of them if they are few, because one program is faster than several
            end = (1 << self.H) - 1 if self.H <= MAX_AT_ONCE else 1
            sets = (np.arange(1, end)[:, None] >> np.arange(self.H) & 1).astype(bool)
        self.sets = sets
        self.needs = self._needs(self.sets)

    def least(self, A: Sequence[int], models: float = 0, stop: float = inf) -> tuple[float, NDArray[np.float64]] | None:
        """Return the least time of the uplink, in IVs at the speed of the fastest relay, and its rates in IVs [H].

        The aggregators A also send this number of models, divided among them for the least time. The result is None as
        soon as the time is known to be at least `stop`. After too many steps, rates suffice but may not be optimal.
        """
        apart, models = self._apart(A, models)
        for _ in self._steps():
            x = self._solve(A, models, even=EVEN)
            enough = self._seconds(x) + apart
            if enough >= stop and self._seconds(self._solve(A, models)) + apart >= stop:
                return None
            if not self._add(self._violated(x[: self.H], 1, A)):
                break
        else:
            self.steps = max(1, self.steps // 4)  # the next call would probably not converge either
            x = np.array(self.demand.rates(1).counts, dtype=np.float64)
            enough = self._time(x) + apart + models
        for _ in self._steps():
            y = self._solve(A, models)
            time = self._seconds(y) + apart
            if time >= stop:
                return None
            if time >= enough * (1 - TOLERANCE):
                return time, x[: self.H]
            if not self._add(self._violated(y[: self.H], 1, A)):
                return time, y[: self.H]
        return enough, x[: self.H]

    def bound(self, A: Sequence[int]) -> float:
        """Return the uplink's least time, or a slightly lower bound after too many steps."""
        if len(A) == self.H and self.uplinks is None:
            return float(self.demand.optimum[0])
        self.least(A)
        return self._seconds(self._solve(A, 0))

    def _steps(self) -> Iterator[int]:
        """Count steps until there were too many, or too many flows."""
        self.flows = 0
        return takewhile(lambda _: self.flows < MAX_FLOWS, range(self.steps))

    def _apart(self, A: Sequence[int], models: float) -> tuple[float, float]:
        """Return the models' time by the fastest aggregator, and their number in the program."""
        return (0.0, models) if self.parallel else (models / float(self.W[list(A)].max()), 0.0)

    def rates(self, A: Sequence[int], max_pieces: int, models: float = 0, slack: float = TOLERANCE) -> Rates:
        """Return the best rates in whole pieces; see `least` and `Demand.rates`."""
        if len(A) == self.H and self.uplinks is None:
            return self.demand.rates(max_pieces, slack)
        models = models if self.parallel else 0
        solution = self.least(A, models)
        assert solution is not None
        least, real = solution
        if self.H > MAX_SOLVED:  # larger rates than those of the linear program suffice
            rounded = {c: np.ceil(c * real - 1e-6) for c in range(1, max_pieces + 1)}
            c = _first({c: self._time(x) / c for c, x in rounded.items()}, slack)
            return Rates(c, tuple(rounded[c].astype(int).tolist()))
        equal = not self.parallel and bool((self.W == 1).all())
        shortest, best = inf, None
        for c in range(1, max_pieces + 1):
            if (ceil(c * least - 1e-6) / c if equal else least) >= shortest * (1 - TOLERANCE):
                continue
            x = self._whole(A, models, c)
            if x is None:
                continue
            time = self._seconds(x) / c
            if time < shortest * (1 - TOLERANCE):
                if self.parallel:  # the smallest rates that take this time, if they are found
                    least_x = self._whole(A, models, c, within=c * time * (1 + TOLERANCE))
                    x = x if least_x is None else least_x
                shortest, best = time, Rates(c, tuple(x[: self.H].astype(int).tolist()))
            if shortest <= least * (1 + slack):
                break
        return best or self.demand.rates(max_pieces)

    def _whole(self, A: Sequence[int], models: float, c: int, within: float = 0.0) -> NDArray[np.float64] | None:
        """Return whole rates, see `_solve`; None after too many steps."""
        for _ in range(self.steps):
            x = self._solve(A, models, c, EVEN, within)
            x[: self.H] = x[: self.H].round()
            if not self._add(self._violated(x[: self.H], c, A)):
                return x
        return None

    def _time(self, rates: NDArray[np.float64]) -> float:
        return float((rates / self.W).max() if self.parallel else (rates / self.W).sum())

    def _seconds(self, x: NDArray[np.float64]) -> float:
        return float(x[-1]) if self.parallel else self._time(x[: self.H])

    def _solve(
        self, A: Sequence[int], models: float, pieces: int | None = None, even: float = 0.0, within: float = 0.0
    ) -> NDArray[np.float64]:
        """Return rates that satisfy the constraints of `sets`, with the least time.

        Args:
            pieces: c, for whole rates; None: real rates in IVs.
            even: weight of the largest rate, unless relays send in parallel.
            within: if relays send in parallel, minimize the number of pieces within this time instead.

        Returns:
            [2H + 1]: the rates in pieces; the models in pieces that each relay sends in parallel; the time of parallel
            links, else the largest rate.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp  # here, because most networks do not need it

        c, H = pieces or 1, self.H
        aggregates = np.zeros(H, bool)
        aggregates[list(A)] = True
        self._add(~np.eye(H, dtype=bool)[list(A)])
        valid = (aggregates & ~self.sets).any(axis=1)
        rates, zeros = np.ones(H), np.zeros(H)
        upper = np.r_[np.full(H, inf), np.where(aggregates, c * models, 0), within or inf]
        last = self.W if self.parallel else rates
        cost = np.r_[rates if within else rates / self.W, zeros, even]
        if self.parallel and not within:
            cost = np.r_[zeros, zeros, 1]
        sets = np.c_[self.sets[valid], np.zeros((int(valid.sum()), H + 1))]
        solution = milp(
            cost,
            constraints=LinearConstraint(  # one matrix, because scipy takes long to concatenate constraints
                np.vstack([sets, np.c_[np.eye(H), np.eye(H), -last], np.r_[zeros, rates, 0]]),
                np.r_[c * self.needs[valid], np.full(H, -inf), c * models],
                np.r_[np.full(len(sets), inf), zeros, c * models],
            ),
            bounds=Bounds(0, upper),
            integrality=np.r_[rates, zeros, 0] if pieces else None,
            options={"node_limit": MAX_RATE_NODES} if pieces else None,
        )
        if solution.x is None:
            raise CodingError(
                f"The solver found no rates for {len(A)} of {H} relays as aggregators ({solution.message}). "
                "Set aggregators=all."
            )
        x = np.array(solution.x)
        if self.parallel and not within:  # larger rates take no longer and violate fewer sets
            x[:H] = (x[-1] * self.W - x[H:-1]).clip(min=0)
            if pieces:
                x[:H] = np.floor(x[:H] + 1e-6)
        return x

    def _violated(self, x: NDArray[np.float64], c: int, A: Sequence[int]) -> list[Set]:
        """Return for each aggregator a set whose constraint the rates x violate, if there is one."""
        members = np.arange(self.H)
        if not self.tabulated:
            scale = max(1, int(2e8 // (c * self.demand.counts.sum())))  # flows are integers below 2^31
            supply = np.ceil(x * scale - 1e-3).astype(np.int64)
            known, new = {row.tobytes() for row in self.sets}, list[Set]()
            for j in A:
                self.flows += 1
                lacking = np.isin(members, self.demand.lacking(supply, c * scale, j))
                if lacking.any() and lacking.tobytes() not in known:  # known ones are violated by rounding errors only
                    new.append(lacking)
                if len(new) == MAX_CUTS:
                    break
            return new
        lack, violated = over_sets(x, np.add, 0.0) - c * self.demand.within, []
        for j in A:
            without = lack.reshape(-1, 2, 1 << j)[:, 0]
            at = int(without.argmin())
            if without.flat[at] < -TOLERANCE * c * self.demand.counts.sum():
                high, low = divmod(at, 1 << j)
                violated.append((high << (j + 1) | low) >> members & 1 == 1)
        return violated

    def _add(self, sets: Iterable[Set]) -> bool:
        """Add sets; return whether one of them is new."""
        known = {row.tobytes() for row in self.sets}
        new = list({row.tobytes(): row for row in sets if row.tobytes() not in known}.values())
        if new:
            self.sets = np.vstack([self.sets, *new])
            self.needs = np.r_[self.needs, self._needs(np.array(new))]
        return bool(new)

    def _needs(self, sets: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return |{k : N(k) ⊆ S}| for each set."""
        others = (~sets).astype(np.float32) @ self.demand.hears.T.astype(np.float32)  # relays outside the set
        return np.asarray((others == 0) @ self.demand.counts)
