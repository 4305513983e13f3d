"""Routes over access links: which relay forwards each user's row, and which sends it its model, in the least time.

The time is that of `Access.seconds`, without overhead and latencies, which depend on no route, in seconds for each bit
of a row. K users, H relays.
"""

from collections.abc import Iterator
from functools import cached_property
from itertools import chain, combinations, permutations, product

import numpy as np
from numpy.typing import NDArray

from hmtl.communication.accounting.access import Access
from hmtl.io.arrays import Floats
from hmtl.topology import balanced

MAX_CHOICES_TRIED, MAX_ROUTE_WORK = 200, 8000  # choices that a search tries, and these times users
CLOSE = 0.005  # relative distance from the bound at which a search ends

Relays = NDArray[np.int64]


class Trip:
    """Users' rows on their way to the server, or models on their way back, each through one relay.

    Args:
        access: the links.
        G: which relay may carry which user's row [H, K]; users without relay have none.
        up: whether rows go to the server.
        here: for models, the relays that compute them, and need none from the server [H]; None: no relay does.

    Attributes:
        users: users with a relay [n].
        outer, inner: the time in which each relay carries a row between users and itself, and between itself and the
            server [H].
        ends: the time of the busiest host, and of the server, whichever relays carry the rows.
    """

    def __init__(
        self,
        access: Access,
        G: NDArray[np.uint8],
        up: bool,
        here: NDArray[np.bool_] | None = None,
    ) -> None:
        end = int(not up)  # hosts send up, column 0 of links, or receive, column 1
        self.users, self._shape = np.flatnonzero(G.any(axis=0)), G.shape
        self.G = G[:, self.users]
        server, relays, hosts = np.split(access.links, [1, 1 + len(G)])
        passes = np.ones(len(G)) if here is None else np.asarray(~here, np.float64)
        self.outer: Floats = 1 / relays[:, 1 - end]
        self.inner: Floats = passes / relays[:, end]
        own = np.bincount(access.homes[self.users], minlength=len(hosts)) / hosts[:, end]
        passing = (passes[:, None] * self.G).max(axis=0).sum() / server[0, 1 - end]
        self.ends = float(own.max()), float(passing)

    @property
    def cost(self) -> Floats:
        """The time in which each relay carries a row from one end to the other [H]."""
        return self.outer + self.inner

    @cached_property
    def bound(self) -> float:
        """The seconds that every choice of relays takes at least."""
        return max(sum(self.ends), float((self.cost * np.bincount(self._even, minlength=len(self.G))).max()))

    def seconds(self, serving: Relays) -> float:
        """Return the time if these relays carry the rows of `users`."""
        n = np.bincount(serving, minlength=len(self.G))
        return max(self.ends[0], float((n * self.outer).max())) + max(self.ends[1], float((n * self.inner).max()))

    def fastest(self) -> Relays:
        """Return the relay of each user [K]: the better of what is found from even loads and from fast relays."""
        routes = np.full(self._shape[1], -1)
        if len(self.users):
            alone = np.where(self.G == 1, self.cost[:, None], np.inf).argmin(axis=0)
            routes[self.users] = min(map(self._improved, (self._even, alone)), key=self.seconds)
        return routes

    def _improved(self, serving: Relays) -> Relays:
        """Return better choices, found by letting many users, or any two, change relays while this saves time."""
        time, moves = self.seconds(serving), self._moves(serving)
        for _ in range(min(MAX_CHOICES_TRIED, MAX_ROUTE_WORK // len(self.users))):
            move = next(moves, None)
            if move is None or time <= self.bound * (1 + CLOSE):
                break
            changed = serving.copy()
            changed[move[0]] = move[1]
            if (sooner := self.seconds(changed)) < time * (1 - 1e-9):
                serving, time, moves = changed, sooner, self._moves(changed)
        return serving

    @cached_property
    def _even(self) -> Relays:
        """The relays of users with the least time of the slowest relay, from one end to the other."""
        return balanced(self.G, 1 / self.cost)

    def _moves(self, serving: Relays) -> Iterator[tuple[Relays, Relays]]:
        """Yield users and other relays for them, first users of relays that take long."""
        H, load = len(self.G), self.cost * np.bincount(serving, minlength=len(self.G))
        for i, j in sorted(permutations(range(H), 2), key=lambda pair: load[pair[1]] - load[pair[0]]):
            able = np.flatnonzero((serving == i) & (self.G[j] == 1))
            while len(able):
                yield able, np.array(j)
                able = able[: len(able) // 2]
        free = np.flatnonzero(self.G.sum(axis=0) > 1)
        for users in chain(combinations(free, 1), combinations(free, 2)):
            for relays in product(*(np.flatnonzero(self.G[:, k]) for k in users)):
                yield np.array(users), np.array(relays)
