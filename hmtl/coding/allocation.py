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

AllocationRule = Callable[[NDArray[np.int64], NDArray[np.int64]], tuple[Fraction, ...]]
"""Returns α_i for each relay, given the numbers n_i [relays] and the types that relays hear [types, relays]."""

MAX_PIECES = 4096  # of a block; planning then takes minutes, and the time grows with the cube
MAX_DENOMINATOR = 2**16  # denominator of an exact share
ROUNDED_PIECES = 2**20  # pieces of an IV, if shares are rounded
NEGLIGIBLE = 1e-7  # of such a piece; above the solver's rounding errors


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
        if total <= MAX_PIECES:
            return ""
        return (
            f"This allocation cuts the IVs of the {len(self.users)} users that {self.z} relays hear into "
            f"c={self.pieces} pieces each, {total} in total: more than {MAX_PIECES} take too long to invert."
        )


@lru_cache(2)  # of either split, because loads and plans of one network are requested one after the other
def allocate(t: Topology, split: AllocationRule, A: tuple[int, ...]) -> tuple[Allocation, ...]:
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
    """Return the α that minimize Σ n_i α_i and cover every type [types, relays].

    The constraint α ≤ 1 is implied: if α_i > 1, α_i = 1 also covers all types and costs less. Each share of the
    solver's vertex becomes the nearest fraction with a denominator of at most 2¹⁶, which removes the solver's rounding
    errors. If the shares do not cover all types, because denominators are larger,
    they are rounded up to multiples of 2⁻²⁰ instead, so that they do; no plan has that many pieces.
    """
    from scipy.optimize import linprog  # here, because the default scheme does not need it

    shares = linprog(n, A_ub=-types, b_ub=-np.ones(len(types)), method="highs-ds").x.tolist()
    alpha = tuple(Fraction(share).limit_denominator(MAX_DENOMINATOR) for share in shares)
    c = lcm(*(share.denominator for share in alpha))
    pieces = np.array([int(share * c) for share in alpha], dtype=object)  # whole numbers are faster to add
    if (types @ pieces >= c).all():
        return alpha
    return tuple(Fraction(ceil(min(share, 1) * ROUNDED_PIECES - NEGLIGIBLE), ROUNDED_PIECES) for share in shares)
