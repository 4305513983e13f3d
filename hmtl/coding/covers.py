"""Smallest sets of relays that together hear all users, to add up the users' terms.

Shapes: H active relays; T types, which are distinct sets of relays that hear a user; a set of relays is a number, whose
bits are its members.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.formulas import Loads
from hmtl.coding.omniscience import Uplinks
from hmtl.topology import Topology

MOST_ENUMERATED = 16  # relays up to which all sets are compared
NODES = 100  # of the search tree for more relays


@dataclass(frozen=True)
class Cover:
    """A set of relays that together hear all present users.

    Attributes:
        relays: its members, ascending.
        adds: [K] the member that adds each user's terms; -1 for absent users.
        cost: number of members or, for different links, the time in which each sends an IV; the slowest relay takes 1.
        bound: lower bound of the cost of all such sets.
    """

    relays: tuple[int, ...]
    adds: NDArray[np.int64]
    cost: float
    bound: float

    @property
    def proven(self) -> bool:
        """Whether no other set costs less; always true for up to 16 active relays."""
        return self.cost <= self.bound * (1 + 1e-9) + 1e-9


def cover(t: Topology, uplinks: Uplinks | None = None) -> Cover:
    """Return the relays that hear all users and send a row each in the least time.

    Ties go to the fewest relays. The result is proven optimal for up to 16 active relays. Beyond, it is that of an
    integer programme with a bound.

    Args:
        t: the topology.
        uplinks: of the active relays; None: equal, so that the fewest relays take the least time.
    """
    if not t.active:
        return Cover((), np.full(t.K, -1), 0.0, 0.0)
    hears = np.unique(t.core, axis=1).astype(bool)  # [H, T]
    W = np.ones(len(t.active)) if uplinks is None else np.asarray(uplinks.bandwidths)
    seconds, parallel = W.min() / W, uplinks is not None and uplinks.parallel
    usable = np.ones(len(t.active), dtype=bool)
    if parallel:  # the fastest relays that hear all users; among these, the fewest
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
    """Return the loads of sums: a row from each relay of a cover, and one row from the server.

    With `unicast`, a copy goes to each relay of a smallest cover, which suffices to reach all users.
    """
    adding = cover(t, uplinks).relays
    up = tuple(float(i in adding) for i in range(t.H))
    return Loads(sum(up), min(1.0, sum(up)), up, float(len(cover(t).relays)))


def sum_bounds(t: Topology) -> Loads:
    """Return lower bounds of the loads of any scheme for sums.

    For each user, the relays that hear it together send at least one row and receive one. The smallest such loads are
    the solution of a linear programme; a cover sends whole rows and may need more.
    """
    if not t.present:
        return Loads(0.0, 0.0)
    from scipy.optimize import linprog

    hears = np.unique(t.core, axis=1)  # [H, T]
    solution = linprog(np.ones(len(hears)), A_ub=-hears.T.astype(float), b_ub=-np.ones(hears.shape[1]))
    least = round(float(solution.fun), 9)
    return Loads(least, 1.0, unicast=least)


def _least(hears: NDArray[np.bool_], weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Return rows of least weight that cover all columns [n], and a lower bound of the weight."""
    H = len(hears)
    if H > MOST_ENUMERATED:
        return _searched(hears, weights)
    sets = np.arange(1 << H)
    whole, weight, size = np.ones(1 << H, dtype=bool), np.zeros(1 << H), np.zeros(1 << H, dtype=np.int64)
    for column in hears.T:
        whole &= sets & (1 << np.flatnonzero(column)).sum() > 0
    for i in range(H):
        member = sets >> i & 1
        weight, size = weight + weights[i] * member, size + member
    covers = np.flatnonzero(whole)
    best = covers[np.lexsort((covers, size[covers], weight[covers].round(9)))[0]]
    return np.flatnonzero(best >> np.arange(H) & 1), float(weight[best])


def _searched(hears: NDArray[np.bool_], weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Return the same by an integer programme with a limit of nodes; may be suboptimal."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    solution = milp(
        weights + 1e-6 * weights.min() / len(hears),  # breaks ties in favour of the fewest rows
        constraints=LinearConstraint(hears.T.astype(float), 1, inf),
        bounds=Bounds(0, 1),
        integrality=np.ones(len(hears)),
        options={"node_limit": NODES},
    )
    bound = float(solution.mip_dual_bound) if solution.mip_dual_bound is not None else 0.0
    chosen = np.flatnonzero(solution.x > 0.5) if solution.x is not None else _greedy(hears, weights)
    bound = max(bound - 1e-6 * weights.min(), 0.0)
    return chosen, float(np.ceil(bound - 1e-4)) if (weights == 1).all() else bound


def _greedy(hears: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Choose rows greedily, with at most 1 + ln T times the least weight."""
    chosen: list[int] = []
    uncovered = np.ones(hears.shape[1], dtype=bool)
    while uncovered.any():
        chosen.append(int((hears[:, uncovered].sum(axis=1) / weights).argmax()))
        uncovered &= ~hears[chosen[-1]]
    return np.array(sorted(chosen))
