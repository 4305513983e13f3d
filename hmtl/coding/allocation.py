"""How much of each IV every relay forwards: the paper's linear programme, solved exactly, and the equal split.

Shapes: one `Allocation` per z, the number of relays that hear a user; lists over i run over the active relays.
A *type* is a distinct set of relays that hear a user.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.errors import CodingError
from hmtl.topology import Topology

# From the numbers n_i [relays] and the types that relays hear [types, relays], α_i for each relay.
Split = Callable[[NDArray[np.int64], NDArray[np.int64]], tuple[Fraction, ...]]

MOST_PIECES = 4096  # a block of so many pieces takes minutes to plan, and time grows with their cube
NEGLIGIBLE = 1e-7  # above the solver's rounding, below the entries of vertices with tens of relays


@dataclass(frozen=True)
class Allocation:
    """What is sent for the users that exactly z relays hear.

    Attributes:
        z: how many relays hear each of these users.
        users: I_z, or those of them that some aggregator does not hear.
        heard: N_i ∩ I_z for each relay, as positions within `users`.
        n: combinations that each relay sends, n_i^z, (16).
        alpha: the part of an IV that each combination of relay i carries, α_i^z.
        downlink: IVs that the server broadcasts, |I_z| − min_i |N_i ∩ I_z|, (32), the minimum over aggregators.
    """

    z: int
    users: tuple[int, ...]
    heard: tuple[tuple[int, ...], ...]
    n: tuple[int, ...]
    alpha: tuple[Fraction, ...]
    downlink: int

    @property
    def uplink(self) -> Fraction:
        """IVs that the relays send to the server, Σ_i n_i^z α_i^z, (27)."""
        return sum((n * alpha for n, alpha in zip(self.n, self.alpha, strict=True)), Fraction())

    @property
    def pieces(self) -> int:
        """Into how many pieces an IV is cut, so that each α is a multiple of one."""
        return lcm(*(alpha.denominator for alpha in self.alpha))

    @property
    def too_long(self) -> str:
        """Why this takes too many pieces to be sent; empty where it does not."""
        cut = self.pieces * len(self.users)
        if cut <= MOST_PIECES:
            return ""
        return (
            f"This allocation cuts the IVs of the {len(self.users)} users that {self.z} relays hear into "
            f"c={self.pieces} pieces each, {cut} in all: more than {MOST_PIECES} take too long to invert."
        )


def allocate(t: Topology, split: Split, A: Sequence[int] | None = None) -> tuple[Allocation, ...]:
    """The allocations of all z for which anything must pass the server, z ascending.

    Args:
        t: the topology; its inactive relays and absent users take no part.
        split: `cheapest`, the optimum of (28), or `even`, α_i^z = 1/z.
        A: the aggregators; None: all active relays, as in the paper. What is sent suffices for them: the minima of (16)
            and (32) are over A.

    Raises:
        CodingError: an optimum that could not be proven.

    Ref: Hu et al. 2022, eqs. (16), (28), (32) and Remark 2, the covering constraint for k ∈ I_z only.
    """
    found = []
    A = list(t.active if A is None else A)
    aggregates = np.isin(t.active, A)
    known = np.asarray(t.G[A].all(axis=0))  # to all aggregators
    for z in range(1, len(t.active)):
        users = tuple(k for k in t.I(z) if not known[k])
        if not users:
            continue
        hears = t.G[np.ix_(t.active, users)].astype(np.int64)
        common = hears @ hears.T
        counts = common.diagonal().copy()
        np.fill_diagonal(common, len(users))  # the minimum is over other relays, and no overlap is larger
        n = (counts - common[:, aggregates].min(axis=1)).clip(min=0)  # none to send where only relay i itself receives
        found.append(
            Allocation(
                z=z,
                users=users,
                heard=tuple(tuple(np.flatnonzero(row).tolist()) for row in hears),
                n=tuple(n.tolist()),
                alpha=split(n, np.unique(hears.T, axis=0)),
                downlink=len(users) - int(counts[aggregates].min()),
            )
        )
    return tuple(found)


def even(n: NDArray[np.int64], types: NDArray[np.int64]) -> tuple[Fraction, ...]:
    """1/z for each relay that hears some of the users, 0 for the others."""
    z = int(types[0].sum())
    return tuple(Fraction(int(hears), z) for hears in types.max(axis=0))


def cheapest(n: NDArray[np.int64], types: NDArray[np.int64]) -> tuple[Fraction, ...]:
    """The minimum of Σ n_i α_i with every type [types, relays] covered, exact.

    α ≤ 1 need not be asked for: lowering a larger α_i to 1 leaves all covered, and costs less as n_i > 0 for each
    relay that hears some of the users. The simplex method ends at a vertex, and so does its dual; both are solved
    again in fractions. Feasible with equal objectives, each proves the other optimal.
    """
    from scipy.optimize import linprog  # here, as the optimal scheme, which most use, does without

    ones = np.ones(len(types), dtype=np.int64)
    found = linprog(n, A_ub=-types, b_ub=-ones, method="highs-ds")
    primal = _exact(types, ones, found.x)
    dual = _exact(types.T, n, -found.ineqlin.marginals)
    feasible = all(0 <= share <= 1 for share in primal) and all(primal @ types.T >= 1)
    dual_feasible = all(price >= 0 for price in dual) and all(dual @ types <= n)
    if not (feasible and dual_feasible and primal @ n == sum(dual)):
        raise CodingError(
            f"The optimum of (28) for {len(n)} relays and {len(types)} types could not be proven: floating point did "
            f"not tell which constraints are tight. Use scheme=optimal."
        )
    return tuple(primal)


def _exact(A: NDArray[np.int64], b: NDArray[np.int64], x: Any) -> NDArray[np.object_]:
    """The vertex near x as fractions, an array that computes exactly: A·x = b on its tight rows and nonzero entries.

    Where x is no vertex, what comes back solves nothing, and the proof finds out.
    """
    from scipy.linalg import qr

    used = np.flatnonzero(x > NEGLIGIBLE)
    tight = np.flatnonzero(abs(A @ x - b) < NEGLIGIBLE)
    independent = qr(A[np.ix_(tight, used)].T, mode="r", pivoting=True)[-1][: len(used)]
    rows = tight[independent]
    system = np.column_stack([A[np.ix_(rows, used)], b[rows]]).astype(object) + Fraction()
    for step in range(len(rows)):
        pivot = step + int(np.argmax(system[step:, step] != 0))
        system[[step, pivot]] = system[[pivot, step]]
        system[step] /= system[step, step] or 1
        factors = system[:, step].copy()
        factors[step] = 0
        system -= np.outer(factors, system[step])
    solution = np.full(len(x), Fraction())
    solution[used[: len(rows)]] = system[:, -1]
    return solution
