"""The smallest rates with which aggregators A learn all IVs; other relays help.

Relay i sends R_i IVs' worth of combinations. Rates suffice iff Σ_{i∈S} R_i ≥ |{k : N(k) ⊆ S}| for every set S of relays
that lacks an aggregator (communication for omniscience with helpers: Csiszár and Narayan 2004; Milosavljević, Pawar, El
Rouayheb, Gastpar and Ramchandran 2012). If all relays aggregate, `omniscience` finds the optimum by flows. With helpers
it is a linear programme, or an integer programme for whole pieces, whose constraints are added as they are violated.

Shapes: H active relays; 2^H sets of relays, whose members are the bits of their number.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from math import ceil, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.omniscience import Demand, Rates, Uplinks
from hmtl.errors import CodingError

MOST_AT_ONCE = 6  # relays up to which all constraints are used; beyond, they are added as they are violated
MOST_TABULATED = 12  # relays up to which a table of all sets finds violations; beyond, a flow is faster
MOST_STEPS = 60  # of adding violated sets, if there is no table
NODES = 1000  # of an integer programme's tree, after which its best solution is used
TOLERANCE = 1e-9
EVEN = 1e-4  # weight of the largest rate: breaks ties in favour of even rates, which violate fewer sets

Sets = NDArray[np.bool_]


def over_sets(values: NDArray[Any], combine: Callable[..., Any], empty: Any) -> NDArray[Any]:
    """Return each set's combination, such as the sum, of its members' values [2^H]."""
    return reduce(lambda sets, value: np.concatenate([sets, combine(sets, value)]), values, np.array([empty]))


def users_within(demand: Demand) -> NDArray[np.int64]:
    """Return |{k : N(k) ⊆ S}| for each set S [2^H]."""
    within = np.zeros(1 << demand.H, dtype=np.int64)
    np.add.at(within, demand.hears @ (1 << np.arange(demand.H)), demand.counts)
    for i in range(demand.H):
        halves = within.reshape(-1, 2, 1 << i)
        halves[:, 1] += halves[:, 0]
    return within


class Programme:
    """The linear programme of one network; violated sets are kept for other aggregators.

    Args:
        demand: which relay hears which users.
        uplinks: the links, whose time is minimized; None: equal and shared links, so that the sum of rates is.
        sets: [n, H] sets to start with, for example those of another programme.
    """

    def __init__(self, demand: Demand, uplinks: Uplinks | None = None, sets: Sets | None = None) -> None:
        self.demand, self.H, self.uplinks = demand, demand.H, uplinks
        self.W = np.ones(self.H) if uplinks is None else np.asarray(uplinks.bandwidths) / max(uplinks.bandwidths)
        self.parallel = uplinks is not None and uplinks.parallel
        self.tabulated = self.H <= MOST_TABULATED
        self.steps = 1 << self.H if self.tabulated else MOST_STEPS
        if sets is None:  # all of them if they are few, because one programme is faster than several
            end = (1 << self.H) - 1 if self.H <= MOST_AT_ONCE else 1
            sets = (np.arange(1, end)[:, None] >> np.arange(self.H) & 1).astype(bool)
        self.sets: Sets = sets
        self.needs = self._needs(self.sets)

    @cached_property
    def within(self) -> NDArray[np.int64]:
        """|{k : N(k) ⊆ S}| for each set S [2^H]."""
        return users_within(self.demand)

    def time(self, A: Sequence[int], models: float = 0, stop: float = inf) -> float | None:
        """Return the least time of the uplink in IVs at the fastest relay's speed; see `least`."""
        if self.H <= MOST_AT_ONCE:
            apart, models = self._apart(A, models)
            time = self._seconds(self._solve(A, models)) + apart
            return time if time < stop else None
        solution = self.least(A, models, stop)
        return None if solution is None else solution[0]

    def least(self, A: Sequence[int], models: float = 0, stop: float = inf) -> tuple[float, NDArray[np.float64]] | None:
        """Return the least time of the uplink, and its rates in IVs [H].

        The time is in IVs at the speed of the fastest relay.

        Args:
            A: the aggregators.
            models: how many models the aggregators send to the server, divided among them for the least time.
            stop: return None as soon as the time is known to be at least this.

        Returns:
            After too many steps, rates that suffice but may not be optimal.
        """
        apart, models = self._apart(A, models)
        for _ in range(self.steps):
            x = self._solve(A, models, even=EVEN)
            enough = self._seconds(x) + apart
            if enough >= stop and self._seconds(self._solve(A, models)) + apart >= stop:
                return None
            if not self._add(self._violated(x[: self.H], 1, A)):
                break
        else:
            self.steps = max(1, self.steps // 4)  # the next call would probably not converge either
            x = np.array(self.demand.rates(1, self.uplinks).counts, dtype=np.float64)
            enough = float((x / self.W).max() if self.parallel else (x / self.W).sum()) + apart + models
        for _ in range(self.steps):
            y = self._solve(A, models)
            time = self._seconds(y) + apart
            if time >= stop:
                return None
            if time >= enough * (1 - TOLERANCE):
                return time, x[: self.H]
            if not self._add(self._violated(y[: self.H], 1, A)):
                return time, y[: self.H]
        return enough, x[: self.H]

    def bound(self, A: Sequence[int], models: float = 0) -> float:
        """Return the uplink's least time, or a slightly lower bound after too many steps."""
        if len(A) == self.H and self.uplinks is None:
            return float(self.demand.optimum()[0])
        self.least(A, models)
        apart, models = self._apart(A, models)
        return self._seconds(self._solve(A, models)) + apart

    def _apart(self, A: Sequence[int], models: float) -> tuple[float, float]:
        """Return the models' time by the fastest aggregator, and those in the programme."""
        return (0.0, models) if self.parallel else (models / float(self.W[list(A)].max()), 0.0)

    def rates(self, A: Sequence[int], max_pieces: int, models: float = 0, slack: float = TOLERANCE) -> Rates:
        """Return the best rates in whole pieces.

        Args:
            A, models: see `least`.
            max_pieces: the largest c.
            slack: relative excess over the least time that is accepted for a smaller c.
        """
        if len(A) == self.H:
            return self.demand.rates(max_pieces, self.uplinks, slack)
        models = models if self.parallel else 0
        least = self.time(A, models)
        assert least is not None
        equal = not self.parallel and bool((self.W == 1).all())
        best: tuple[float, Rates] | None = None
        for c in range(1, max_pieces + 1):
            if best and (ceil(c * least - 1e-6) / c if equal else least) >= best[0] * (1 - TOLERANCE):
                continue
            x = self._whole(A, models, c)
            if x is None:
                continue
            time = self._seconds(x) / c
            if not best or time < best[0] * (1 - TOLERANCE):
                if self.parallel:  # the smallest rates that take this time
                    x = self._whole(A, models, c, within=c * time * (1 + TOLERANCE))
                    assert x is not None
                best = time, Rates(c, tuple(x[: self.H].astype(int).tolist()))
            if best[0] <= least * (1 + slack):
                break
        return best[1] if best else self.demand.rates(max_pieces, self.uplinks)

    def _whole(self, A: Sequence[int], models: float, c: int, within: float = 0.0) -> NDArray[np.float64] | None:
        """Return whole rates, see `_solve`; None after too many steps."""
        for _ in range(self.steps):
            x = self._solve(A, models, c, EVEN, within)
            x[: self.H] = x[: self.H].round()
            if not self._add(self._violated(x[: self.H], c, A)):
                return x
        return None

    def _seconds(self, x: NDArray[np.float64]) -> float:
        return float(x[-1] if self.parallel else (x[: self.H] / self.W).sum())

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

        Raises:
            CodingError: the solver failed.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp  # here, because most networks do not need it

        c, H = pieces or 1, self.H
        aggregates = np.zeros(H, bool)
        aggregates[list(A)] = True
        self._add([set(range(H)) - {j} for j in A])
        valid = (aggregates & ~self.sets).any(axis=1)
        rates, zeros = np.ones(H), np.zeros(H)
        upper = np.r_[np.full(H, inf), np.where(aggregates, c * models, 0), within or inf]
        last = self.W if self.parallel else rates
        cost = np.r_[zeros, zeros, 1] if self.parallel and not within else np.r_[rates / self.W, zeros, even]
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
            options={"node_limit": NODES} if pieces else None,
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

    def _violated(self, x: NDArray[np.float64], c: int, A: Sequence[int]) -> list[set[int]]:
        """Return a set whose constraint rates x violate, for each aggregator if it exists."""
        violated = []
        if self.tabulated:
            lack = over_sets(x, np.add, 0.0) - c * self.within
            for j in A:
                without = lack.reshape(-1, 2, 1 << j)[:, 0]
                at = int(without.argmin())
                if without.flat[at] < -TOLERANCE * c * self.demand.counts.sum():
                    high, low = divmod(at, 1 << j)
                    number = high << (j + 1) | low
                    violated.append({i for i in range(self.H) if number >> i & 1})
            return violated
        scale = max(1, int(2e8 // (c * self.demand.counts.sum())))  # flows are integers below 2^31
        supply = np.ceil(x * scale - 1e-3).astype(np.int64)
        return [set(relays) for j in A if (relays := self.demand.lacking(supply, c * scale, j))]

    def _add(self, sets: list[set[int]]) -> bool:
        """Add sets; return whether one of them is new."""
        known = {row.tobytes() for row in self.sets}
        rows = [np.isin(np.arange(self.H), list(members)) for members in sets]
        new = list({row.tobytes(): row for row in rows if row.tobytes() not in known}.values())
        if new:
            self.sets = np.vstack([self.sets, *new])
            self.needs = np.r_[self.needs, self._needs(np.array(new))]
        return bool(new)

    def _needs(self, sets: Sets) -> NDArray[np.int64]:
        """Return |{k : N(k) ⊆ S}| for each set."""
        others = (~sets).astype(np.float32) @ self.demand.hears.T.astype(np.float32)  # relays outside the set
        return np.asarray((others == 0) @ self.demand.counts)
