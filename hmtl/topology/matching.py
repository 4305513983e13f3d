"""Balanced assignment of users to relays.

Shapes: K users, H relays, G [H, K].
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order


def balanced(G: NDArray[np.uint8], speeds: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """Assign users to relays that hear them so that the last relay ends soonest, after load / speed.

    Users move along chains of relays, from the slowest relay to one that stays faster even with one more user. If no
    chain leads to such a relay, the users of all reachable relays have no other relays, so the assignment is optimal.

    Args:
        G: which relay hears which user [H, K].
        speeds: of the relays [H], positive, in any unit; None: all equal.

    Returns:
        [K] the relay of each user; -1 for users that no relay hears.
    """
    present = np.flatnonzero(G.any(axis=0))
    if len(present) < G.shape[1]:
        relays = np.full(G.shape[1], -1)
        relays[present] = balanced(G[:, present], speeds)
        return relays
    H, K = G.shape
    speed = np.ones(H) if speeds is None else speeds
    turn = np.arange(K) % G.sum(axis=0, dtype=np.int64)  # user k starts at the (k mod r_k)-th of its relays
    serving: NDArray[np.int64] = np.argmax(G.cumsum(axis=0, dtype=np.int32) > turn, axis=0)
    movable = np.stack([G[:, serving == i].sum(axis=1, dtype=np.int64) for i in range(H)])  # i serves, j hears too
    while True:
        load = movable.diagonal()
        source = int((load / speed).argmax())
        reachable, previous = breadth_first_order(csr_array(movable > 0), source)
        target = min(reachable.tolist(), key=lambda j: (load[j] + 1) / speed[j])
        if (load[target] + 1) / speed[target] >= load[source] / speed[source]:
            return serving
        a, b = speed[source], speed[target]
        excess = (load[source] * b - load[target] * a) / (a + b)
        chain = [target]
        while chain[0] != source:
            chain.insert(0, int(previous[chain[0]]))
        steps = list(pairwise(chain))
        amount = min(max(1, int(excess)), *(int(movable[step]) for step in steps))
        for i, j in steps:
            users = np.flatnonzero((serving == i) & (G[j] == 1))[:amount]
            hearing = G[:, users].sum(axis=1, dtype=np.int64)
            movable[i] -= hearing
            movable[j] += hearing
            serving[users] = j
