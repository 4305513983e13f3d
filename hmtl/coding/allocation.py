"""The share of each IV that every relay forwards: the paper's optimum, or equal shares.

Shapes: one `Allocation` per z, the number of relays that hear a user; lists over i run over the active relays. A *type*
is a distinct set of relays that hear a user.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, lcm

import numpy as np
from numpy.typing import NDArray

from hmtl.topology import Topology

Split = Callable[[NDArray[np.int64], NDArray[np.int64]], tuple[Fraction, ...]]
"""Returns α_i for each relay, given the numbers n_i [relays] and the types that relays hear [types, relays]."""

MOST_PIECES = 4096  # of a block; planning then takes minutes, and the time grows with the cube
FINEST = 2**20  # pieces of an IV, if shares are rounded
NEGLIGIBLE = 1e-7  # above the solver's rounding errors, below the entries of vertices with tens of relays


@dataclass(frozen=True)
class Allocation:
    """The messages for the users that exactly z relays hear.

    Attributes:
        z: number of relays that hear each of these users.
        users: I_z, without the users that all aggregators hear.
        heard: N_i ∩ I_z for each relay, as positions within `users`.
        n: number of combinations that each relay sends, n_i^z, (16).
        alpha: fraction of an IV that each combination of relay i carries, α_i^z.
        downlink: IVs that the server broadcasts, |I_z| − min_i |N_i ∩ I_z|, (32), with the minimum over aggregators.
    """

    z: int
    users: tuple[int, ...]
    heard: tuple[tuple[int, ...], ...]
    n: tuple[int, ...]
    alpha: tuple[Fraction, ...]
    downlink: int

    @property
    def pieces(self) -> int:
        """Number of pieces of an IV, such that each α is a whole number of pieces."""
        return lcm(*(alpha.denominator for alpha in self.alpha))

    @property
    def too_long(self) -> str:
        """Why there are too many pieces to code; empty if there are not."""
        total = self.pieces * len(self.users)
        if total <= MOST_PIECES:
            return ""
        return (
            f"This allocation cuts the IVs of the {len(self.users)} users that {self.z} relays hear into "
            f"c={self.pieces} pieces each, {total} in total: more than {MOST_PIECES} take too long to invert."
        )


@lru_cache(2)  # of either split, because loads and plans of one network are requested one after the other
def allocate(t: Topology, split: Split, A: tuple[int, ...]) -> tuple[Allocation, ...]:
    """Return the allocations of all z for which a message must pass the server, z ascending.

    Args:
        t: the topology.
        split: `cheapest`, the optimum of (28), or `even`, α_i^z = 1/z.
        A: the aggregators, over which the minima of (16) and (32) are taken; in the paper, all active relays.

    Ref: Hu et al. 2022, eqs. (16), (28), (32) and Remark 2, with the covering constraint for k ∈ I_z only.
    """
    allocations = []
    aggregates = np.isin(t.active, A)
    known = np.asarray(t.G[list(A)].all(axis=0))  # by all aggregators
    for z in range(1, len(t.active)):
        users = tuple(k for k in t.I(z) if not known[k])
        if not users:
            continue
        hears = t.G[np.ix_(t.active, users)].astype(np.int64)
        common = hears @ hears.T
        counts = common.diagonal().copy()
        np.fill_diagonal(common, len(users))  # no overlap is larger, so the minimum is over the other relays
        n = (counts - common[:, aggregates].min(axis=1)).clip(min=0)  # 0 if relay i is the only aggregator
        heard = tuple(tuple(np.flatnonzero(row).tolist()) for row in hears)
        alpha, downlink = split(n, np.unique(hears.T, axis=0)), len(users) - int(counts[aggregates].min())
        allocations.append(Allocation(z, users, heard, tuple(n.tolist()), alpha, downlink))
    return tuple(allocations)


def even(n: NDArray[np.int64], types: NDArray[np.int64]) -> tuple[Fraction, ...]:
    """Return 1/z for each relay that hears some of the users, 0 for the others."""
    z = int(types[0].sum())
    return tuple(Fraction(int(hears), z) for hears in types.max(axis=0))


def cheapest(n: NDArray[np.int64], types: NDArray[np.int64]) -> tuple[Fraction, ...]:
    """Return the α that minimize Σ n_i α_i and cover every type [types, relays], exactly.

    The constraint α ≤ 1 is implied: if α_i > 1, α_i = 1 also covers all types and costs less. The simplex method ends
    at a vertex of the primal and of the dual problem, and both vertices are computed again in fractions. If they are
    feasible with equal objectives, they are optimal. Otherwise, because determinants exceed what floats hold, the
    shares are rounded up to multiples of 2⁻²⁰, so that they cover all types; no plan has that many pieces.
    """
    from scipy.optimize import linprog  # here, because the default scheme does not need it

    ones = np.ones(len(types), dtype=np.int64)
    solution = linprog(n, A_ub=-types, b_ub=-ones, method="highs-ds")
    primal = _exact(types, ones, solution.x)
    dual = _exact(types.T, n, -solution.ineqlin.marginals)
    c, prices = lcm(*(x.denominator for x in primal)), lcm(*(x.denominator for x in dual))
    feasible = all(0 <= share <= 1 for share in primal) and all(_whole(primal, c) @ types.T >= c)
    dual_feasible = all(price >= 0 for price in dual) and all(_whole(dual, prices) @ types <= prices * n)
    if not (feasible and dual_feasible and primal @ n == sum(dual)):
        return tuple(Fraction(ceil(min(share, 1) * FINEST - NEGLIGIBLE), FINEST) for share in solution.x.tolist())
    return tuple(primal)


def _whole(values: NDArray[np.object_], multiple: int) -> NDArray[np.object_]:
    """Return fractions times a multiple of their denominators, as whole numbers, which are faster to add."""
    return np.array([int(value * multiple) for value in values], dtype=object)


def _exact(A: NDArray[np.int64], b: NDArray[np.int64], x: NDArray[np.float64]) -> NDArray[np.object_]:
    """Return the vertex near x in fractions: A·x = b for its tight rows and nonzero entries.

    By Cramer's rule, its entries are whole multiples of 1 / det. If x is not near a vertex, the result is not a
    solution, and the caller's proof fails.
    """
    from scipy.linalg import qr

    used = np.flatnonzero(x > NEGLIGIBLE)
    tight = np.flatnonzero(abs(A @ x - b) < NEGLIGIBLE)
    rows = tight[qr(A[np.ix_(tight, used)].T, mode="r", pivoting=True)[-1][: len(used)]]  # independent
    solution = np.full(len(x), Fraction())
    if len(rows) == len(used):
        system = A[np.ix_(rows, used)]
        scale = max(1, round(abs(np.linalg.det(system))))
        solution[used] = [Fraction(round(value * scale), scale) for value in np.linalg.solve(system, b[rows])]
    return solution
