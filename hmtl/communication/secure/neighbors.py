"""Whose masks meet: each user has k neighbors, which hold shares of its secrets, any t of which reveal one.

n of K users take part in a round, in random order on a circle; neighbors are those at most k/2 places away (a Harary
graph). A share γ of the K users may collude, and a share of the n may drop out. k and t are chosen so that, except with
probability 2^-40, no user's neighbors include t colluders, and the others remain connected; and so that, except with
probability 2^-20 in a round, each user keeps t neighbors that answer.

A *lone* user is one whom a single relay hears, while others have several. If that relay lies, nobody contradicts it, so
lone users hold no shares, and count as colluders of their relay where the others have to remain connected.

Ref: Bell et al. 2020, whose bounds for connectivity and thresholds these follow.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import ceil, comb, floor, log2

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from hmtl.coding.shamir import MAX_SHARES
from hmtl.errors import ConfigError

DROPPED = 0.3  # share of the users that may drop out between the first and the last step of a round
PRIVACY, CORRECTNESS = -40, -20  # log2 of probabilities
HONEST = 2  # users behind a sum who do not collude, at least


@dataclass(frozen=True)
class Degree:
    """k, the neighbors of each user, and t, the shares that reveal a secret."""

    neighbors: int
    threshold: int

    def readers(self, holders: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many of a user's neighbors that hold shares have to read them, given how many these are.

        t of 2t − 1 are honest, and one alone prevents nothing.
        """
        return np.maximum(self.threshold, np.minimum(2 * self.threshold - 1, holders - 1))


def lone(G: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the links of lone users [H, K], for those of all users; none if no user has several relays."""
    relays = G.sum(axis=0)
    return np.asarray(G * ((relays == 1) & (relays.max() > 1)))


@lru_cache(64)
def degree(n: int, colluders: int, alone: tuple[int, ...] = ()) -> Degree | None:
    """Return the least k, with its t, for n users some of whom may collude; None if there is none.

    Args:
        n: number of users.
        colluders: how many may collude.
        alone: how many of the n are lone users of each relay.
    """
    removed, holders = (colluders + max(alone, default=0)) / n + DROPPED if n else 1.0, n - sum(alone)
    for k in (*range(2, min(n - 1, MAX_SHARES), 2), *([n - 1] if 2 <= n <= MAX_SHARES + 1 else [])):
        complete = k == n - 1
        # The others remain connected unless two runs of k/2 users are all removed, which cut the circle.
        if not complete and (removed >= 1 or 2 * log2(n) - 1 + k * log2(removed) > PRIVACY):
            continue
        t = threshold(n, colluders, k)
        if not 1 <= t <= min(k, holders - 1):
            continue
        hold = -np.diff(_at_least(n - 1, holders - 1, k))  # the probabilities that 0, ..., k neighbors hold shares
        missing = hold @ bdtr(np.minimum(t - 1, np.arange(k + 1)), np.arange(k + 1), 1 - DROPPED)
        if complete or n * missing <= 2**CORRECTNESS:
            return Degree(k, t)
    return None


def threshold(n: int, colluders: int, k: int) -> int:
    """Return the least t for k neighbors; above k if there is none."""
    return int(np.flatnonzero(n * _at_least(n - 1, min(colluders, n - 1), k) <= 2**PRIVACY)[0])


@lru_cache(64)
def _at_least(n: int, T: int, k: int) -> NDArray[np.float64]:
    """Return the probabilities that 0, 1, ..., k + 1 or more of k users, drawn from n, are among T of these."""
    ways = [comb(T, x) * comb(n - T, k - x) for x in range(k + 1)]
    return np.array([*[more / comb(n, k) for more in accumulate(reversed(ways))][::-1], 0.0])


def circle(n: int, k: int) -> NDArray[np.int64]:
    """Return the k neighbors of each of n places on a circle [n, k]; if k = n − 1, these are all others.

    If j is number q in row i, then i is number k − 1 − q in row j.
    """
    offsets = np.arange(1, n) if k == n - 1 else np.r_[-(k // 2) : 0, 1 : k // 2 + 1]
    return np.asarray((np.arange(n)[:, None] + offsets) % n)


@dataclass(frozen=True)
class Secure:
    """Settings of secure sums.

    Args:
        colluding: γ, the largest share of all users that may collude with relays and server.
        least: how few users may be behind a sum. There are always those that may collude, and two others.
        sampled: how many users are drawn for a round, so that no node can influence who they are; None: no such draw.
    """

    colluding: float = 0.1
    least: int | None = None
    sampled: int | None = None

    def check(self, K: int, G: NDArray[np.uint8]) -> None:
        """Raise ConfigError if K users with links G [H, K], or those sampled for a round, are too few.

        It does so, too, if too many may collude, or have only one relay.
        """
        n = K if self.sampled is None else self.sampled
        if not 0 <= self.colluding < 1:
            raise ConfigError(f"colluding={self.colluding} is not in [0, 1). Give the share of users that may collude.")
        if self.colluding and not self._most(n, K):
            raise ConfigError(
                f"secure=true: colluding={self.colluding:g} of K={K} users is nobody, so one user who colludes could "
                f"read all terms. Take more users, or set colluding={ceil(1000 / K) / 1000:g}, or 0 if nobody does."
            )
        links = lone(G).sum(axis=1)
        alone = tuple(np.ceil(links * n / K).astype(int).tolist())
        fewest = max(self.fewest(n, K, alone), self._most(n, K) + HONEST)
        if self.degree(n, K, alone) is None or fewest > n:
            users = f"K={K} users" if self.sampled is None else f"{n} of K={K} users in a round"
            of_one = f", since only one relay hears {links.sum()} of K={K}, who hold no shares" * bool(links.any())
            raise ConfigError(
                f"secure=true: {users} are too few for colluding={self.colluding} and sums over at least {fewest} "
                f"users{of_one}. Take more users, let more of them reach two relays, or lower colluding or least."
            )

    def describe(self, K: int, G: NDArray[np.uint8]) -> dict[str, int]:
        """Return what a round of K users with links G [H, K] promises: k and t, T, and how few users a sum may have."""
        alone = tuple(lone(G).sum(axis=1).tolist())
        chosen = self.degree(K, K, alone)
        assert chosen is not None, "there are enough users"
        secret = {"neighbors": chosen.neighbors, "threshold": chosen.threshold}
        return secret | {"colluding": self.colluders(K, K), "fewest": self.fewest(K, K, alone)}

    def colluders(self, n: int, K: int) -> int:
        """Return T, how many of n users who take part may collude, of K: all who may, but at most n − 2."""
        return max(0, min(self._most(n, K), n - HONEST))

    def degree(self, n: int, K: int, alone: tuple[int, ...] = ()) -> Degree | None:
        """Return k and t if n of K users advertised keys; None if these are too few.

        `alone` says how many of the n are lone users of each relay.
        """
        return degree(n, self.colluders(n, K), alone)

    def accepted(self, n: int, K: int, k: int) -> Degree | None:
        """Return k and t for a user who knows n and k; None if they cannot be right."""
        least = self.degree(n, K) if 0 < n <= K else None
        if least is None or not least.neighbors <= k <= min(n - 1, MAX_SHARES):
            return None
        t = threshold(n, self.colluders(n, K), k)
        return Degree(k, t) if t <= k else None

    def fewest(self, n: int, K: int, alone: tuple[int, ...] = ()) -> int:
        """Return how few users may be behind a sum if n of K users advertised keys; see `degree`.

        If not all n are neighbors, they are those of whom the masks are known to connect.
        """
        least = max(self.least or 0, self.colluders(n, K) + max(alone, default=0) + HONEST)
        chosen = self.degree(n, K)
        return max(least, ceil((1 - DROPPED) * n)) if chosen and chosen.neighbors < n - 1 else least

    def _most(self, n: int, K: int) -> int:
        """Return how many of K users may collude; among those sampled, more do so with probability 2^-40."""
        T = floor(self.colluding * K + 1e-9)  # 0.29 · 100 is below 29
        if self.sampled is None or n > self.sampled:
            return T
        return min(T, int(np.flatnonzero(_at_least(K, T, self.sampled) <= 2**PRIVACY)[0]) - 1)
