"""A smallest set of relays that together hear everybody, for sums: each relay of it adds up those it hears.

Shapes: H active relays, T types (distinct sets of relays that hear a user); a set of relays is a number, whose bits are
its members.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.formulas import Loads
from hmtl.coding.optimal import Uplinks
from hmtl.topology import Topology

MOST_ENUMERATED = 16  # relays, all sets of which are compared
NODES = 100  # of the search among sets of more relays


@dataclass(frozen=True)
class Cover:
    """Relays of which every user who is present has one at least.

    Attributes:
        relays: ascending.
        adds: [K] the one of them that adds each user's terms; -1 for who is absent.
        cost: how many they are or, where links differ, how long it takes until each has sent an IV, the slowest relay
            taking 1.
        bound: no other set costs less.
    """

    relays: tuple[int, ...]
    adds: NDArray[np.int64]
    cost: float
    bound: float

    @property
    def proven(self) -> bool:
        """Whether no other set costs less; always so for up to 16 active relays."""
        return self.cost <= self.bound * (1 + 1e-9) + 1e-9


def cover(t: Topology, uplinks: Uplinks | None = None) -> Cover:
    """The relays that hear everybody and take the least time to send a row each; of such, the fewest.

    Proven for up to 16 active relays; beyond, what an integer programme finds, which says how far it may be off.

    Args:
        t: who hears whom; absent users need nobody.
        uplinks: of the active relays; None: all alike, so that the fewest take the least time.
    """
    if not t.active:
        return Cover((), np.full(t.K, -1), 0.0, 0.0)
    hears = np.unique(t.core, axis=1).astype(bool)  # [H, T]
    W = np.ones(len(t.active)) if uplinks is None else np.asarray(uplinks.bandwidths)
    seconds, parallel = W.min() / W, uplinks is not None and uplinks.parallel
    usable = np.ones(len(t.active), dtype=bool)
    if parallel:  # no slower relay than it takes: among these, the fewest
        usable = seconds <= min(s for s in np.unique(seconds) if hears[seconds <= s].any(axis=0).all())
    weights = np.ones(len(t.active)) if parallel else seconds
    places, bound = _least(hears[usable], weights[usable])
    chosen = np.flatnonzero(usable)[places]
    cost = float(seconds[chosen].max() if parallel else seconds[chosen].sum())
    relays = tuple(t.active[i] for i in chosen.tolist())
    among = t.G[list(relays)]
    adds = np.where(among.any(axis=0), np.asarray(relays)[among.argmax(axis=0)], -1)
    return Cover(relays, adds, cost, cost if parallel else min(cost, bound))


def sum_loads(t: Topology, uplinks: Uplinks | None = None) -> Loads:
    """Loads between relays and server where sums travel: a row of each relay of a cover, and one row for everybody.

    Of `unicast`, a copy goes to each relay of a smallest cover, as many as it takes to reach all users.
    """
    adding = cover(t, uplinks).relays
    up = tuple(float(i in adding) for i in range(t.H))
    return Loads(sum(up), min(1.0, sum(up)), up, float(len(cover(t).relays)))


def sum_bounds(t: Topology) -> Loads:
    """What no scheme falls below by which the server learns the sums, and users take them from what it sends.

    The relays that hear a user send a whole row between them, and are sent one, for each user: the least of these
    loads is a linear programme. A cover adds whole rows, and may take more.
    """
    if not t.present:
        return Loads(0.0, 0.0)
    from scipy.optimize import linprog

    hears = np.unique(t.core, axis=1)  # [H, T]
    found = linprog(np.ones(len(hears)), A_ub=-hears.T.astype(float), b_ub=-np.ones(hears.shape[1]))
    least = round(float(found.fun), 9)
    return Loads(least, 1.0, unicast=least)


def _least(hears: NDArray[np.bool_], weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """The rows that have all columns between them [n], and what no such rows weigh less than."""
    H = len(hears)
    if H > MOST_ENUMERATED:
        return _searched(hears, weights)
    sets = np.arange(1 << H)
    whole, weight, size = np.ones(1 << H, dtype=bool), np.zeros(1 << H), np.zeros(1 << H, dtype=np.int64)
    for of in hears.T:
        whole &= sets & (1 << np.flatnonzero(of)).sum() > 0
    for i in range(H):
        member = sets >> i & 1
        weight, size = weight + weights[i] * member, size + member
    found = np.flatnonzero(whole)
    best = found[np.lexsort((found, size[found], weight[found].round(9)))[0]]
    return np.flatnonzero(best >> np.arange(H) & 1), float(weight[best])


def _searched(hears: NDArray[np.bool_], weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """The same by an integer programme that stops after so many nodes; it may then have better relays to find."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    found = milp(
        weights + 1e-6 * weights.min() / len(hears),  # of equal weights, the fewest
        constraints=LinearConstraint(hears.T.astype(float), 1, inf),
        bounds=Bounds(0, 1),
        integrality=np.ones(len(hears)),
        options={"node_limit": NODES},
    )
    bound = float(found.mip_dual_bound) if found.mip_dual_bound is not None else 0.0
    chosen = np.flatnonzero(found.x > 0.5) if found.x is not None else _greedy(hears, weights)
    bound = max(bound - 1e-6 * weights.min(), 0.0)
    return chosen, float(np.ceil(bound - 1e-4)) if (weights == 1).all() else bound


def _greedy(hears: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Always the relay that hears the most new types for its weight: at most 1 + ln T times the least weight."""
    chosen: list[int] = []
    left = np.ones(hears.shape[1], dtype=bool)
    while left.any():
        chosen.append(int((hears[:, left].sum(axis=1) / weights).argmax()))
        left &= ~hears[chosen[-1]]
    return np.array(sorted(chosen))
