"""How many rows, or shares of rows, relays send so that those of each user together send enough, to add up terms.

Shapes: H active relays; T types, which are distinct sets of relays that hear a user; hears [T, H]; 2^H sets of relays,
whose members are the bits of their number.
"""

from bisect import bisect_left
from functools import lru_cache
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.aggregators import Choice
from hmtl.coding.rates import Uplinks, demand_of, over_sets
from hmtl.topology import Topology

MAX_COVER_RELAYS = 16  # relays; up to this number, all sets are compared
MAX_COVER_CELLS = 4000  # relays times types; up to this number, integer programs search, beyond it a greedy rule
MAX_COVER_NODES = 100  # of the search tree of an integer program


@lru_cache(8)
def cover(t: Topology, uplinks: Uplinks | None = None) -> Choice:
    """Return the relays that together hear all users and send one row each in the least time.

    The cost is the number of relays or, for different links, the time in which each sends a row; the slowest takes 1.
    Among equally fast sets, the smallest is chosen. The result is proven optimal for up to 16 active relays. For more,
    it is that of an integer program with a bound.

    Args:
        t: the topology.
        uplinks: links of the active relays; None: equal, so that the fewest relays take the least time.
    """
    if not t.active:
        return Choice((), 0.0, 0.0)
    demand, H = demand_of(t), len(t.active)
    program = ShareProgram(demand.hears, uplinks)
    if H <= MAX_COVER_RELAYS:
        covers = np.flatnonzero(demand.within[::-1] == 0)  # no user is left to other relays
        weight = over_sets(program.seconds, np.maximum if program.parallel else np.add, 0.0)[covers]
        best = np.lexsort((over_sets(np.ones(H), np.add, 0)[covers], weight.round(9)))[0]
        x, bound = covers[best] >> np.arange(H) & 1, float(weight[best])
    else:
        x, bound = program.solve(1)
    cost = program.time(x > 0.5)
    if uplinks is None:
        bound = float(np.ceil(bound - 1e-4))
    return Choice(tuple(t.active[i] for i in np.flatnonzero(x > 0.5).tolist()), cost, min(cost, bound))


class ShareProgram:
    """The integer program for the number of shares of each active relay, of which each user's relays send enough.

    Args:
        hears: which active relays hear each type [T, H].
        uplinks: links of the active relays; None: equal and shared.
    """

    def __init__(self, hears: NDArray[np.bool_], uplinks: Uplinks | None) -> None:
        H = hears.shape[1]
        W = np.ones(H) if uplinks is None else np.asarray(uplinks.bandwidths)
        self.hears, self.seconds = hears, W.min() / W
        self.parallel = uplinks is not None and uplinks.parallel

    def time(self, x: NDArray[Any]) -> float:
        """Return the time in which relays send x shares [H]; a share of the slowest relay takes 1."""
        return float((self.seconds * x).max() if self.parallel else (self.seconds * x).sum())

    def solve(self, c: int, whole: bool = True) -> tuple[NDArray[np.float64], float]:
        """Return whole numbers, or fractions, of shares [H] that take the least time, and a lower bound of this time.

        Each user's relays send at least c shares.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp  # here, because most learners need no sums

        T, H = self.hears.shape
        if whole and T * H > MAX_COVER_CELLS:
            least = self.time(self.solve(c, whole=False)[0])
            return enough(self.hears, self.seconds, c, self.parallel).astype(np.float64), least
        each = LinearConstraint(np.c_[self.hears, np.zeros(T)].astype(float), c, inf)
        slowest = LinearConstraint(np.c_[np.diag(self.seconds), -np.ones(H)], -inf, 0)  # at most the last variable
        tie = 1e-6 * whole * float(self.seconds.min()) / H  # in favor of the fewest shares
        cost = np.r_[np.full(H, tie), 1.0] if self.parallel else np.r_[self.seconds + tie, 0.0]
        solution: Any = milp(
            cost,
            constraints=[each, slowest] if self.parallel else each,
            bounds=Bounds(0, np.r_[np.full(H, c), inf]),
            integrality=np.r_[np.full(H, whole), False],
            options={"node_limit": MAX_COVER_NODES} if whole else None,
        )
        if solution.x is None:  # whole rows always suffice
            return np.full(H, float(c)), 0.0
        bound = solution.mip_dual_bound if whole else solution.fun
        return np.asarray(solution.x[:H]), max(float(bound) - tie * c * H, 0.0)


def enough(hears: NDArray[np.bool_], seconds: NDArray[np.float64], c: int, parallel: bool) -> NDArray[np.int64]:
    """Return shares [H] with which the relays of each type send at least c, one by one where most are lacking."""
    x, heard, most = np.zeros(len(seconds), np.int64), hears.astype(np.float64), np.full(len(seconds), c)
    if parallel:  # by the first deadline by which relays can send enough
        ends = np.unique(np.outer(seconds, np.arange(1, c + 1)))
        by = [(end / seconds * (1 + 1e-9)).astype(np.int64).clip(max=c) for end in ends]
        most = by[bisect_left(by, True, key=lambda sent: bool((heard @ sent >= c).all()))]
    while (lacking := (c - heard @ x).clip(min=0)).any():
        x[np.where(x < most, lacking @ heard / (1 if parallel else seconds), -1).argmax()] += 1
    for i in np.argsort(-seconds, kind="stable"):  # without those that others made needless
        x[i] -= min(x[i], (heard @ x - c)[hears[:, i]].min())
    return x
