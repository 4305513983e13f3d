"""Networks by rule and by chance.

Shapes: K users, H relays, r relays per user, G [H, K].
"""

import math
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from hmtl.errors import TopologyError
from hmtl.rng import generator
from hmtl.topology.topology import Topology, check_size


def symmetric(K: int, H: int, r: float) -> Topology:
    """Users dealt evenly over all C(H, r) subsets of r relays.

    Each subset gets K / C(H, r) users, rounded down or up; the subsets that get one more are chosen such that the
    numbers of users of two relays differ by at most 1. The paper fills up with virtual users instead, whose IVs are
    zero and known to everyone: these add nothing to any sum, so here they are no users and have no column in G.

    Args:
        K, H, r: users, relays, relays per user (a whole number).

    Raises:
        TopologyError: K < 1, H < 1, or r not a whole number from 1 to H.

    Ref: Hu et al. 2022, Theorem 3.
    """
    _check_counts(K, H)
    r = _whole_degree(r, H)
    whole, extra = divmod(K, math.comb(H, r))
    dealt = list(combinations(range(H), r)) * whole if whole else []
    return Topology(_from_relays(np.array(dealt + _even_family(extra, H, r)), H))


def _even_family(size: int, H: int, r: int) -> list[tuple[int, ...]]:
    """`size` different r-subsets of H relays, such that two relays differ by at most 1 in how many they are in."""
    family: set[int] = set()  # subsets as bit masks
    if size:
        # All rotations of a subset use all relays alike, so that only the last, incomplete set of them is uneven.
        for subset in combinations(range(H), r):
            mask = sum(1 << i for i in subset)
            if mask not in family:
                rotations = dict.fromkeys((mask << s | mask >> (H - s)) & ((1 << H) - 1) for s in range(H))
                family.update(islice(rotations, size - len(family)))
            if len(family) == size:
                break
    while True:
        counts = [sum(mask >> i & 1 for mask in family) for i in range(H)]
        a, b = counts.index(max(counts)), counts.index(min(counts))
        if counts[a] - counts[b] <= 1:
            return sorted(tuple(i for i in range(H) if mask >> i & 1) for mask in family)
        # Of the subsets with a and without b, at least counts[a] - counts[b] have no twin with b in place of a.
        both = 1 << a | 1 << b
        alone = sorted(mask for mask in family if mask >> a & 1 and not mask >> b & 1 and mask ^ both not in family)
        moved = alone[: (counts[a] - counts[b]) // 2]
        family.difference_update(moved)
        family.update(mask ^ both for mask in moved)


def any_r(K: int, H: int, r: float, seed: int = 0) -> Topology:
    """Each user is heard by r relays, drawn uniformly and independently of the other users.

    Args:
        K, H, r: users, relays, relays per user (a whole number).
        seed: of the draw.

    Raises:
        TopologyError: K < 1, H < 1, or r not a whole number from 1 to H.
    """
    _check_counts(K, H)
    r = _whole_degree(r, H)
    return Topology(_from_relays(generator(seed, "any_r").random((K, H)).argsort(axis=1)[:, :r], H))


def heterogeneous(K: int, H: int = 4, r: float = 2.0, d: float = 0.0, seed: int = 0) -> Topology:
    """The first half of the relays hears (r/H + d)K users each, the other half (r/H − d)K; who hears whom is drawn.

    Sizes that are not whole are rounded by largest remainder to round(rK) links. The draw is uniform over the matrices
    with these row sums in which every user has a relay, up to the mixing of the Markov chain that makes it.

    Args:
        K, H, r: users, relays (even), mean relays per user.
        d: by how much of K the halves differ from the mean size.
        seed: of the draw.

    Raises:
        TopologyError: K < 1, H odd or < 2, r not from 1 to H, or a relay that would hear < 0 or > K users.

    Ref: Hu et al. 2022, Figs. 4 and 7.
    """
    _check_counts(K, H)
    if H % 2:
        raise TopologyError(f"H={H} is odd, but half of the relays get more users than the rest. Take an even H.")
    if not 1 <= r <= H:
        raise TopologyError(f"r={r} is not between 1 and H={H}, the relays that a user can have. Change r or H.")
    if not abs(d) <= min(r / H, 1 - r / H) + 1e-9:
        raise TopologyError(
            f"d={d} with r/H={r / H:.4g} gives relays that hear {r / H + d:.4g} K and {r / H - d:.4g} K users, "
            f"outside 0 to K. Take |d| ≤ {min(r / H, 1 - r / H):.4g}."
        )
    sizes = _rounded(np.repeat([(r / H + d) * K, (r / H - d) * K], H // 2), round(r * K))
    return Topology(_uniform_cover(sizes, K, generator(seed, "heterogeneous")))


def _rounded(sizes: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Whole sizes that sum to `total`, by largest remainder; the tolerance keeps float dust out of it."""
    whole = np.floor(sizes + 1e-9).astype(np.int64)
    order = np.argsort(-(sizes - whole).round(9), kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole


def _uniform_cover(sizes: NDArray[np.int64], K: int, rng: np.random.Generator, sweeps: int = 40) -> NDArray[np.uint8]:
    """G [H, K] with row sums `sizes` [H] and no empty column.

    Gibbs sampling: given the others, a row holds the users that have no other relay, and besides them any users with
    equal chance, so it is drawn anew just so. The uniform law is stationary, and the columns are shuffled at the end,
    so that only the numbers of users per type have to mix, which takes a few sweeps.
    """
    H, total = len(sizes), int(sizes.sum())
    G = np.zeros((H, K), dtype=np.uint8)
    G[np.repeat(np.arange(H), sizes), np.arange(total) % K] = 1  # sizes ≤ K: no pair twice; total ≥ K: all covered
    degrees = G.sum(axis=0, dtype=np.int64)
    for i in list(range(H)) * sweeps:
        degrees -= G[i]
        G[i] = degrees == 0
        others = np.flatnonzero(degrees)
        G[i, rng.choice(others, sizes[i] - (K - len(others)), replace=False, shuffle=False)] = 1
        degrees += G[i]
    return rng.permutation(G, axis=1)


def geometric(K: int, H: int, radius: float, seed: int = 0) -> Topology:
    """Users and relays at uniform points of the unit square; a relay hears the users within `radius`.

    A user always has its nearest relay, however far. The points are kept as the topology's layout.

    Args:
        K, H: users, relays.
        radius: hearing radius in sides of the square.
        seed: of the points.

    Raises:
        TopologyError: K < 1, H < 1, or radius not above 0.
    """
    _check_counts(K, H)
    if not radius > 0:
        raise TopologyError(f"radius={radius} lets no relay hear anybody. Take one above 0, in sides of the square.")
    rng = generator(seed, "geometric")
    return within(radius, rng.random((K, 2)), rng.random((H, 2)))


def within(radius: float, users: NDArray[np.float64], relays: NDArray[np.float64]) -> Topology:
    """Each of the relays [H, 2] hears the users [K, 2] that are within `radius`, and those that it is nearest to."""
    distance = np.hypot(*(relays[:, None] - users).transpose(2, 0, 1))
    G = (distance <= radius).astype(np.uint8)
    G[distance.argmin(axis=0), np.arange(len(users))] = 1
    return Topology(G, layout=(users, relays))


def _from_relays(relays: NDArray[np.int64], H: int) -> NDArray[np.uint8]:
    """G [H, K] from the relays [K, r] of each user."""
    G = np.zeros((H, len(relays)), dtype=np.uint8)
    G[relays, np.arange(len(relays))[:, None]] = 1
    return G


def _check_counts(K: int, H: int) -> None:
    if not isinstance(K, int | np.integer) or K < 1:
        raise TopologyError(f"K={K} is no number of users: somebody must take part. Take a whole number from 1.")
    if not isinstance(H, int | np.integer) or H < 1:
        raise TopologyError(f"H={H} is no number of relays: somebody must hear the users. Take a whole number from 1.")
    check_size(int(K), int(H))


def _whole_degree(r: float, H: int) -> int:
    if r % 1 != 0 or r < 1:
        raise TopologyError(f"r={r} is no number of relays for each user. Take a whole number from 1 to H={H}.")
    if r > H:
        raise TopologyError(
            f"r={r} exceeds H={H}: a user cannot be heard by more relays than there are. Lower r or raise H."
        )
    return int(r)
