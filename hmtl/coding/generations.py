"""Many users dealt into groups that are coded apart, so that the cost of coding follows the group and not K.

Shapes: H relays, n users, g groups.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hmtl.errors import CodingError

SWAPS = 8  # tries for each group


def check_sizes(max_pieces: int, generation: int) -> None:
    """Refuse what cannot be coded.

    Raises:
        CodingError: one of them is below 1.
    """
    for name, value in (("max_pieces", max_pieces), ("generation", generation)):
        if value < 1:
            raise CodingError(f"{name}={value} leaves nothing to code with. Set it to 1 or more.")


def similar_groups(G: NDArray[np.uint8], groups: int) -> list[NDArray[np.intp]]:
    """Deal users into groups of even size in which relays hear, and types have, as even a share as can be.

    Users are sorted by type (their set of relays) and dealt like cards, a round at a time, so that of each type groups
    get as many but for one. Within a round each user goes where its relays are furthest behind their share, and at last
    users of two groups are exchanged where that evens out the relays. So what relay i hears of a group is
    |N_i| / groups but for a few, and the groups' loads add up to little more than the whole's.

    Args:
        G: who hears whom [H, n].
        groups: how many groups, at most n.

    Returns:
        The users of each group, columns of G sorted by type; groups with as many users of each type have equal columns.
    """
    n = G.shape[1]
    row = np.lexsort(G)
    if groups == 1:
        return [row]
    of = np.empty(n, dtype=np.int64)  # the group of each user
    hears = G.T[row].astype(np.float64)  # [n, H]
    ahead = np.zeros((groups, len(G)))  # by how many users each relay in each group is ahead of its share
    share = hears.sum(axis=0) / n
    for start in range(0, n, groups):
        users = hears[start : start + groups]
        to = np.arange(len(users))
        if (users != users[0]).any() or len(users) < groups:
            to = _matched(ahead, users)
        of[start : start + len(users)] = to
        ahead[to] += users
        ahead -= share * len(users) / groups
    _exchange(hears, of, ahead)
    order = np.argsort(of, kind="stable")
    return np.split(row[order], np.bincount(of, minlength=groups).cumsum()[:-1])


def alike(G: NDArray[np.uint8], enough: Callable[[NDArray[np.uint8], int], bool]) -> NDArray[np.intp]:
    """Users in as many parts as can be that have as many of each type: one code serves all of them.

    Args:
        G: who hears whom [H, n], columns sorted by type.
        enough: of the columns of a part and the number of parts, whether to deal them so.

    Returns:
        The columns of each part [parts, n / parts].
    """
    starts = np.flatnonzero((G[:, 1:] != G[:, :-1]).any(axis=0)) + 1
    types = np.split(np.arange(G.shape[1]), starts)
    most = int(np.gcd.reduce([len(users) for users in types]))
    for number in range(most, 1, -1):
        if most % number == 0:
            parts = np.concatenate([users.reshape(number, -1) for users in types], axis=1)
            if enough(G[:, parts[0]], number):
                return parts
    return np.arange(G.shape[1])[None]


def _matched(ahead: NDArray[np.float64], users: NDArray[np.float64]) -> NDArray[np.int64]:
    """A group for each user, no two the same, that keeps the squares of `ahead` small."""
    from scipy.optimize import linear_sum_assignment  # here, as most networks are one group

    return np.asarray(linear_sum_assignment(users @ ahead.T)[1])


def _exchange(hears: NDArray[np.float64], of: NDArray[np.int64], ahead: NDArray[np.float64]) -> None:
    """Exchange users of the group that has the most to catch up with one that is ahead, while it helps."""
    for _ in range(SWAPS * len(ahead)):
        low, relay = np.unravel_index(ahead.argmin(), ahead.shape)
        high = int(ahead[:, relay].argmax())
        mine, its = np.flatnonzero(of == low), np.flatnonzero(of == high)
        gap = ahead[low] - ahead[high]
        a, b = hears[mine], hears[its]
        # With d what the group gains, the squares change by 2·gap·d + 2·|d|².
        change = (gap @ b.T)[None] - (gap @ a.T)[:, None] + a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - 2 * a @ b.T
        place = int(change.argmin())
        if change.flat[place] >= -1e-9:
            return
        one, other = mine[place // len(its)], its[place % len(its)]
        of[one], of[other] = high, low
        ahead[low] += hears[other] - hears[one]
        ahead[high] += hears[one] - hears[other]
