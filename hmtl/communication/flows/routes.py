"""Routes over access links: which relay forwards each user's row, and which sends it its model, in the least time.

A node sends to one receiver after another, first what takes longest to receive, and goes on when all that it needs has
arrived. Computing takes no time. Shapes: K users, H relays, n batches of rows between two nodes.
"""

from collections.abc import Iterator
from functools import cached_property
from itertools import chain, combinations, permutations, product

import numpy as np
from numpy.typing import NDArray

from hmtl.communication.accounting.access import Access
from hmtl.topology import balanced

MOST, WORK = 200, 8000  # choices that a search tries, and these times users
CLOSE = 0.005  # relative distance from the bound at which a search ends

Relays = NDArray[np.int64]
Seconds = NDArray[np.float64]


class Trip:
    """Users' rows on their way to the server, or models on their way back, each through one relay.

    Args:
        access: the links.
        G: which relay may carry which user's row [H, K]; users without relay have none.
        bits: of a row.
        up: whether rows go to the server.
        here: for models, the relays that compute them, and need none from the server [H]; None: no relay does.

    Attributes:
        cost, start: n rows through relay i take at least start + n·cost seconds [H].
    """

    def __init__(
        self,
        access: Access,
        G: NDArray[np.uint8],
        bits: float,
        up: bool,
        here: NDArray[np.bool_] | None = None,
    ) -> None:
        H, end = len(G), int(not up)  # hosts send up, column 0 of links, or receive, column 1
        self.users, self.up, self.links, self._shape = np.flatnonzero(G.any(axis=0)), up, access.links, G.shape
        self.G, self.homes = G[:, self.users], access.homes[self.users]
        self.relays, self.hosts = np.split(np.arange(1, len(access.links)), [H])  # their links
        server, relay, self._host = access.links[0], access.links[self.relays], access.links[self.hosts]
        self._inner: Seconds = bits * (np.ones(H) if here is None else np.asarray(~here, np.float64))
        self._outer = bits
        hops = self._outer / relay[:, 1 - end], self._inner / np.minimum(relay[:, end], server[1 - end])
        self.cost = hops[0] + hops[1]
        self.wait = server[2] + relay[:, 2]
        self._latency = (1 + 2 * up) * self.wait, relay[:, 2], self._host[:, 2].min()
        self.start: Seconds = self._latency[0] + self._latency[1] + self._latency[2]
        self._active = G.any(axis=1)
        own = self._outer * np.bincount(self.homes, minlength=len(self.hosts)) / self._host[:, end]
        self._own, self._server = own.max(), (self._inner[:, None] * self.G).max(axis=0).sum() / server[1 - end]
        # All nodes wait for a frame of each active relay, which leaves behind rows even if it is empty.
        most = [each[self._active].max(initial=0) for each in (relay[:, 2] + self.wait, 2 * up * self.wait)]
        self._bare = sum(most) + self._host[:, 2].max()
        first = (own + self._host[:, 2]).max() if up else self._server + self._host[:, 2].max()
        self._frames = first + most[0], most[1]

    @cached_property
    def bound(self) -> float:
        """The seconds that every choice of relays takes at least."""
        n, hosts, server = np.bincount(self._even, minlength=len(self.G)), self._own, self._server
        relays = (self.start + n * self.cost)[n > 0].max()
        others = sum(each.min() for each in self._latency) + (hosts + server if self.up else max(hosts, server))
        return float(max(others, relays, self._bare))

    def seconds(self, serving: Relays) -> float:
        """Return the time if these relays carry the rows of `users`."""
        relay, rows = np.unique(serving, return_counts=True)
        pairs, n = np.unique(serving * len(self.hosts) + self.homes, return_counts=True)
        i, host = divmod(pairs, len(self.hosts))
        inner, outer = self._inner[relay] * rows, np.asarray(self._outer * n, np.float64)
        server, now = np.zeros_like(relay), np.zeros(len(i))
        if self.up:
            heard = carried(self.hosts[host], self.relays[i], outer, now, self.links)[self.relays] + self.wait
            came = carried(self.relays[relay], server, inner, self.wait[relay], self.links)[0]
            return float(max(heard[relay].max(), self._frames[0]) + max(came, self._frames[1]))
        came = carried(server, self.relays[relay], inner, now[: len(relay)], self.links)[self.relays]
        sent = (came + self._outer * np.bincount(serving, minlength=len(self.G)) / self.links[self.relays, 0])[relay]
        emptied = (sent + self.links[self.relays[relay], 2]).max() + self._host[:, 2].max()
        ends = carried(self.relays[i], self.hosts[host], outer, came[i], self.links)
        return float(max(ends.max(), emptied, self._frames[0]))

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
        for _ in range(min(MOST, WORK // len(self.users))):
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
        """The relays of users with the least time of the slowest relay."""
        return balanced(self.G, 1 / self.cost, self.start)

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


def carried(a: Relays, b: Relays, bits: Seconds, ready: Seconds, links: Seconds) -> Seconds:
    """Return when each link has received all batches that are sent to it; 0 without any.

    Args:
        a, b: links of sender and receiver of each batch [n].
        bits: of the batch [n].
        ready: when the sender can begin [n].
        links: rates up and down, and latency.
    """
    order = np.lexsort((-bits / links[b, 1], a))
    a, b, bits, ready = a[order], b[order], bits[order], ready[order]
    time, taking = bits / links[a, 0], bits / links[b, 1]
    begin = np.cumsum(time) - time
    first = ready + begin - begin[np.searchsorted(a, a)] + links[a, 2] + links[b, 2]
    order = np.lexsort((first, b))
    b, first, last, taking = b[order], first[order], (first + time)[order], taking[order]
    new, taken = np.flatnonzero(np.diff(b, prepend=-1)), np.cumsum(taking)
    end, done = np.append(new[1:], len(b)) - 1, np.zeros(len(links))
    waits = np.maximum.reduceat(first - taken + taking, new) + taken[end]
    done[b[new]] = np.maximum(waits, np.maximum.reduceat(last, new))
    return done
