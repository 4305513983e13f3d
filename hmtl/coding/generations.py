"""Division of users into groups, so that the work of coding a user is bounded.

Shapes: H relays, n users, g groups.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def similar_groups(G: NDArray[np.uint8], groups: int) -> list[NDArray[np.intp]]:
    """Divide users into equal groups, such that each relay hears its share of each group.

    Users are sorted by type (their set of relays) and dealt to the groups in turns, one user per group and turn, so
    that groups have nearly equal numbers of each type. Within a turn, users are matched to the groups in which their
    relays are furthest behind their share. Relay i then hears about |N_i| / groups users of each group, and the groups'
    loads add up to little more than the undivided load.

    Returns:
        The users of each group, as columns of G [H, n] sorted by type.
    """
    n = G.shape[1]
    row = np.lexsort(G)
    if groups == 1:
        return [row]
    from scipy.optimize import linear_sum_assignment  # here, because most networks have one group

    group_of = np.empty(n, dtype=np.int64)
    hears = G.T[row].astype(np.float64)  # [n, H]
    ahead = np.zeros((groups, len(G)))  # users of each group that each relay hears beyond its share
    share = hears.sum(axis=0) / n
    for start in range(0, n, groups):
        users = hears[start : start + groups]
        chosen = np.arange(len(users))
        if (users != users[0]).any() or len(users) < groups:
            chosen = linear_sum_assignment(users @ ahead.T)[1]  # keeps the squares of `ahead` small
        group_of[start : start + len(users)] = chosen
        ahead[chosen] += users
        ahead -= share * len(users) / groups
    order = np.argsort(group_of, kind="stable")
    return np.split(row[order], np.bincount(group_of, minlength=groups).cumsum()[:-1])


def uniform_parts(G: NDArray[np.uint8], acceptable: Callable[[NDArray[np.uint8], int], bool]) -> NDArray[np.intp]:
    """Split users into as many parts with equal numbers of each type as acceptable, so that one code fits all parts.

    Args:
        G: which relay hears which user [H, n], columns sorted by type.
        acceptable: says from the columns of a part and the number of parts whether to split them.

    Returns:
        The columns of each part [parts, n / parts].
    """
    starts = np.flatnonzero((G[:, 1:] != G[:, :-1]).any(axis=0)) + 1
    types = np.split(np.arange(G.shape[1]), starts)
    most = int(np.gcd.reduce([len(users) for users in types]))
    for number in range(most, 1, -1):
        if most % number == 0:
            parts = np.concatenate([users.reshape(number, -1) for users in types], axis=1)
            if acceptable(G[:, parts[0]], number):
                return parts
    return np.arange(G.shape[1])[None]
