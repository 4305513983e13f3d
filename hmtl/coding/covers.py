"""Smallest sets of relays that together hear all users, to add up the users' terms.

Shapes: H active relays; T types, which are distinct sets of relays that hear a user; hears [T, H]; 2^H sets of relays,
whose members are the bits of their number.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import inf

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.aggregators import Choice
from hmtl.coding.rates import Demand, Uplinks, demand_of, over_sets
from hmtl.topology import Topology

MOST_ENUMERATED = 16  # relays; up to this number, all sets are compared
MOST_SEARCHED = 4000  # relays times types; up to this number, integer programmes search, beyond it a greedy rule
NODES = 100  # of the search tree of an integer programme


@dataclass(frozen=True)
class Cover(Choice):
    """A set of relays that together hear all present users.

    Attributes:
        relays: its members, ascending.
        cost: number of members or, for different links, the time in which each sends an IV; the slowest relay takes 1.
        bound: lower bound of the cost of all such sets; equal to the cost for up to 16 active relays.
        adds: [K] the member that adds each user's terms; -1 for absent users.
    """

    adds: NDArray[np.int64]


@lru_cache(8)
def cover(t: Topology, uplinks: Uplinks | None = None) -> Cover:
    """Return the relays that together hear all users and send one row each in the least time.

    Among equally fast sets, the smallest is chosen. The result is proven optimal for up to 16 active relays. For more,
    it is that of an integer programme with a bound.

    Args:
        t: the topology.
        uplinks: of the active relays; None: equal, so that the fewest relays take the least time.
    """
    if not t.active:
        return Cover((), 0.0, 0.0, np.full(t.K, -1))
    hears = demand_of(t).hears
    W = np.ones(len(t.active)) if uplinks is None else np.asarray(uplinks.bandwidths)
    seconds, parallel = W.min() / W, uplinks is not None and uplinks.parallel
    usable = np.ones(len(t.active), dtype=bool)
    if parallel:  # the fastest relays that hear all users; among these, the fewest
        usable = seconds <= min(s for s in np.unique(seconds) if hears[:, seconds <= s].any(axis=1).all())
    weights = np.ones(len(t.active)) if parallel else seconds
    places, bound = _least(hears[:, usable], weights[usable])
    chosen = np.flatnonzero(usable)[places]
    cost = float(seconds[chosen].max() if parallel else seconds[chosen].sum())
    relays = tuple(t.active[i] for i in chosen.tolist())
    among = t.G[list(relays)]
    adds = np.where(among.any(axis=0), np.asarray(relays)[among.argmax(axis=0)], -1)
    return Cover(relays, cost, cost if parallel else min(cost, bound), adds)


def enough(
    hears: NDArray[np.bool_], seconds: NDArray[np.float64], c: int = 1, parallel: bool = False
) -> NDArray[np.int64]:
    """Return shares [H] with which the relays of each type send at least c, one by one where most are lacking."""
    x, heard = np.zeros(len(seconds), np.int64), hears.astype(np.float64)
    while (lacking := (c - heard @ x).clip(min=0)).any():
        x[(lacking @ heard / (seconds * (x + 1 if parallel else 1))).argmax()] += 1
    for i in np.argsort(-seconds, kind="stable"):  # without those that others made needless
        x[i] -= min(x[i], (heard @ x - c)[hears[:, i]].min())
    return x


def _least(hears: NDArray[np.bool_], weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Return relays of least weight that hear all types, and a lower bound of the weight."""
    H = len(weights)
    if H <= MOST_ENUMERATED:
        covers = np.flatnonzero(Demand(hears.T.astype(np.uint8)).within[::-1] == 0)  # no user is left to other relays
        weight, size = over_sets(weights, np.add, 0.0)[covers], over_sets(np.ones(H), np.add, 0)[covers]
        best = np.lexsort((size, weight.round(9)))[0]
        return np.flatnonzero(covers[best] >> np.arange(H) & 1), float(weight[best])
    from scipy.optimize import Bounds, LinearConstraint, milp

    tie = 1e-6 * weights.min()  # in favour of the fewest relays
    small = hears.size <= MOST_SEARCHED
    solution = milp(
        weights + tie / H,
        constraints=LinearConstraint(hears.astype(float), 1, inf),
        bounds=Bounds(0, 1),
        integrality=np.full(H, small),
        options={"node_limit": NODES} if small else None,
    )
    if solution.x is None:  # all of them are a cover, too
        return np.arange(H), 0.0
    chosen = solution.x > 0.5 if small else enough(hears, weights) > 0
    bound = max(float(solution.mip_dual_bound if small else solution.fun) - tie, 0.0)
    return np.flatnonzero(chosen), float(np.ceil(bound - 1e-4)) if (weights == 1).all() else bound
