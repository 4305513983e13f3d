"""The least that relays must send for some of them, the aggregators A, to learn all IVs: the others are helpers.

Relay i sends R_i IVs' worth of combinations. Rates suffice iff Σ_{i∈S} R_i ≥ |{k : N(k) ⊆ S}| for every set S of relays
that lacks an aggregator (communication for omniscience with helpers: Csiszár and Narayan 2004; Milosavljević, Pawar, El
Rouayheb, Gastpar and Ramchandran 2012). With all relays as aggregators this is `optimal`, where whole numbers reach the
optimum; with helpers they need not, and what is solved is a linear programme, or an integer one, to which, unless they
are few, the constraints come as they are found violated.

Shapes: H active relays, 2^H sets of them, whose members are the bits of their number.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from math import ceil, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.optimal import Demand, Rates, Uplinks
from hmtl.errors import CodingError

MOST_AT_ONCE = 6  # relays; from there on the constraints come as they are found violated
MOST_TABULATED = 12  # relays; from there on a flow finds a violated set sooner than a table of all
MOST_STEPS = 60  # with more relays than that; each step adds the sets that the last one's rates violate
NODES = 1000  # of an integer programme's tree, after which the best rates found so far are taken
TOLERANCE = 1e-9
EVEN = 1e-4  # what the largest rate costs, beside a sum: of equally good rates, even ones violate the fewest sets

Sets = NDArray[np.bool_]


def over_sets(values: NDArray[Any], combine: Callable[..., Any], empty: Any) -> NDArray[Any]:
    """For each set, its members' values [H] combined, by `np.add` or `np.maximum` for example [2^H]."""
    return reduce(lambda found, value: np.concatenate([found, combine(found, value)]), values, np.array([empty]))


def users_within(demand: Demand) -> NDArray[np.int64]:
    """For each set S, |{k : N(k) ⊆ S}| [2^H]."""
    within = np.zeros(1 << demand.H, dtype=np.int64)
    np.add.at(within, demand.hears @ (1 << np.arange(demand.H)), demand.counts)
    for i in range(demand.H):
        halves = within.reshape(-1, 2, 1 << i)
        halves[:, 1] += halves[:, 0]
    return within


class Programme:
    """The programme of one network; sets found for some aggregators are kept for others.

    Args:
        demand: who hears whom.
        uplinks: to be used for as short a time as can be; None: all alike and shared, so that the sum of rates counts.
        sets: [n, H] sets to start from, such as another's.
    """

    def __init__(self, demand: Demand, uplinks: Uplinks | None = None, sets: Sets | None = None) -> None:
        self.demand, self.H, self.uplinks = demand, demand.H, uplinks
        self.W = np.ones(self.H) if uplinks is None else np.asarray(uplinks.bandwidths) / max(uplinks.bandwidths)
        self.parallel = uplinks is not None and uplinks.parallel
        self.within = users_within(demand) if self.H <= MOST_TABULATED else None
        self.steps = MOST_STEPS if self.within is None else 1 << self.H
        if sets is None:  # all of them where they are few, for one programme is solved sooner than several
            end = (1 << self.H) - 1 if self.H <= MOST_AT_ONCE else 1
            sets = (np.arange(1, end)[:, None] >> np.arange(self.H) & 1).astype(bool)
        self.sets: Sets = sets
        self.needs = self._needs(self.sets)

    def time(self, A: Sequence[int], models: float = 0, stop: float = inf) -> float | None:
        """The least time of the uplink, in IVs at the speed of the fastest relay; see `least`."""
        if self.H <= MOST_AT_ONCE:
            apart, models = self._apart(A, models)
            time = self._seconds(self._solve(A, models)) + apart
            return time if time < stop else None
        found = self.least(A, models, stop)
        return None if found is None else found[0]

    def least(self, A: Sequence[int], models: float = 0, stop: float = inf) -> tuple[float, NDArray[np.float64]] | None:
        """The least time of the uplink, in IVs at the speed of the fastest relay, and rates for it in IVs [H].

        Args:
            A: the aggregators.
            models: how many models aggregators send to the server, shared out for the least time.
            stop: leave off, with None, once it is known to be no less.

        Returns:
            Where the programme takes too many steps, rates that will do, and may not be the best.
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
            self.steps = max(1, self.steps // 4)  # the next will hardly fare better
            x = self._for_all()
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
        """What the uplink takes at least: the least time, or a little less where the programme takes too many steps."""
        self.least(A, models)
        apart, models = self._apart(A, models)
        return self._seconds(self._solve(A, models)) + apart

    def _apart(self, A: Sequence[int], models: float) -> tuple[float, float]:
        """The time that models take by themselves, all by the fastest, and how many are left for the programme."""
        return (0.0, models) if self.parallel else (models / float(self.W[list(A)].max()), 0.0)

    def _for_all(self) -> NDArray[np.float64]:
        """Rates with which every relay learns all [H]."""
        rates = self.demand.rates(1, self.uplinks)
        return np.array(rates.counts, dtype=np.float64)

    def rates(self, A: Sequence[int], max_pieces: int, models: float = 0, slack: float = TOLERANCE) -> Rates:
        """Rates in whole pieces.

        Args:
            A, models: see `time`.
            max_pieces: the largest c.
            slack: the least c is taken that exceeds the least time, or else the best c, by this part at most.
        """
        models = models if self.parallel else 0
        least = self.time(A, models)
        assert least is not None
        alike = not self.parallel and bool((self.W == 1).all())
        best: tuple[float, Rates] | None = None
        for c in range(1, max_pieces + 1):
            if best and (ceil(c * least - 1e-6) / c if alike else least) >= best[0] * (1 - TOLERANCE):
                continue
            x = self._whole(A, models, c)
            if x is None:
                continue
            time = self._seconds(x) / c
            if not best or time < best[0] * (1 - TOLERANCE):
                if self.parallel:  # the fewest of those that take this long
                    x = self._whole(A, models, c, within=c * time * (1 + TOLERANCE))
                    assert x is not None
                best = time, Rates(c, tuple(x[: self.H].astype(int).tolist()))
            if best[0] <= least * (1 + slack):
                break
        return best[1] if best else self.demand.rates(max_pieces, self.uplinks)

    def _whole(self, A: Sequence[int], models: float, c: int, within: float = 0.0) -> NDArray[np.float64] | None:
        """Whole rates, see `_solve`; None where none were found in time."""
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
        """Rates that suffice for the sets known, in the least time.

        Args:
            pieces: c, with rates whole; None: rates in IVs, of any size.
            even: weight of the largest rate, unless relays send side by side.
            within: in parallel, the fewest pieces within this time instead.

        Returns:
            Rates in pieces [H]; in parallel, models in pieces that each relay sends [H]; and in parallel the time, else
            the largest rate.

        Raises:
            CodingError: the programme was not solved.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp  # here, as most networks do without

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
        found = milp(
            cost,
            constraints=LinearConstraint(  # one matrix, as scipy spends more on putting together than on solving
                np.vstack([sets, np.c_[np.eye(H), np.eye(H), -last], np.r_[zeros, rates, 0]]),
                np.r_[c * self.needs[valid], np.full(H, -inf), c * models],
                np.r_[np.full(len(sets), inf), zeros, c * models],
            ),
            bounds=Bounds(0, upper),
            integrality=np.r_[rates, zeros, 0] if pieces else None,
            options={"node_limit": NODES} if pieces else None,
        )
        if found.x is None:
            raise CodingError(
                f"No rates found for {len(A)} of {H} relays as aggregators ({found.message}). Use aggregators=all."
            )
        x = np.array(found.x)
        if self.parallel and not within:  # more never hurts, and violates fewer sets
            x[:H] = (x[-1] * self.W - x[H:-1]).clip(min=0)
            if pieces:
                x[:H] = np.floor(x[:H] + 1e-6)
        return x

    def _violated(self, x: NDArray[np.float64], c: int, A: Sequence[int]) -> list[set[int]]:
        """For each aggregator, a set without it that asks for more than rates x give, if there is one."""
        found = []
        if self.within is not None:
            lack = over_sets(x, np.add, 0.0) - c * self.within
            for j in A:
                without = lack.reshape(-1, 2, 1 << j)[:, 0]
                at = int(without.argmin())
                if without.flat[at] < -TOLERANCE * c * self.demand.counts.sum():
                    high, low = divmod(at, 1 << j)
                    number = high << (j + 1) | low
                    found.append({i for i in range(self.H) if number >> i & 1})
            return found
        scale = max(1, int(2e8 // (c * self.demand.counts.sum())))  # flows are whole, below 2^31
        supply = np.ceil(x * scale - 1e-3).astype(np.int64)
        return [set(relays) for j in A if (relays := self.demand.lacking(supply, c * scale, j))]

    def _add(self, sets: list[set[int]]) -> bool:
        """Keep these sets; whether one of them is new."""
        known = {row.tobytes() for row in self.sets}
        rows = [np.isin(np.arange(self.H), list(members)) for members in sets]
        new = list({row.tobytes(): row for row in rows if row.tobytes() not in known}.values())
        if new:
            self.sets = np.vstack([self.sets, *new])
            self.needs = np.r_[self.needs, self._needs(np.array(new))]
        return bool(new)

    def _needs(self, sets: Sets) -> NDArray[np.int64]:
        """|{k : N(k) ⊆ S}| of each set."""
        others = (~sets).astype(np.float32) @ self.demand.hears.T.astype(np.float32)  # relays of a type outside the set
        return np.asarray((others == 0) @ self.demand.counts)
