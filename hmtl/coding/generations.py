"""Many users dealt into groups that are coded apart, so that the cost of coding follows the group and not K.

Shapes: H relays, T types (distinct sets of relays that hear a user), n users.
"""

import numpy as np
from numpy.typing import NDArray


def similar_groups(G: NDArray[np.uint8], groups: int) -> list[NDArray[np.intp]]:
    """Deal users into groups of even size in which relays hear, and types have, as even a share as can be.

    Users are put in a row such that any stretch of it is like the whole; then it is cut. Next in the row is always a
    user of the type whose relays, and which itself, are furthest behind their shares of the row so far. So what relay i
    hears of a group is |N_i| / groups but for a fraction, and the groups' loads add up to little more than the whole's.

    Args:
        G: who hears whom [H, n].
        groups: how many groups, at most n.

    Returns:
        The users of each group, columns of G in ascending order.
    """
    n = G.shape[1]
    types, kind, left = np.unique(G.T, axis=0, return_inverse=True, return_counts=True)
    hears, type_share = types.astype(np.float64), left / n
    degrees, relay_share = hears.sum(axis=1), left @ hears / n
    of_type = np.split(np.argsort(kind.ravel(), kind="stable"), left.cumsum()[:-1])
    # How far ahead of its share each relay and type is; adding a user of type t changes the sum of squares by `cost`.
    relays, own = np.zeros(len(G)), np.zeros(len(types))
    row = np.empty(n, dtype=np.intp)
    for place in range(n):
        relays -= relay_share
        own -= type_share
        cost = 2 * (hears @ relays) + degrees + 2 * own
        cost[left == 0] = np.inf
        t = int(cost.argmin())
        left[t] -= 1
        relays += hears[t]
        own[t] += 1
        row[place] = of_type[t][left[t]]
    return [np.sort(group) for group in np.array_split(row, groups)]
