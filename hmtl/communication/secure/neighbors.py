"""Whose masks meet: each user has k neighbours, which hold shares of its secrets, any t of which reveal one.

n users in random order on a circle; neighbours are those at most k/2 places away (a Harary graph). A share γ of the
users may collude, and a share of them may drop out. k and t are chosen so that, except with probability 2^-40, no
user's neighbours include t colluders, and the others remain connected; and so that, except with probability 2^-20 in a
round, each user keeps t neighbours that answer.

Ref: Bell et al. 2020, whose bounds for connectivity and thresholds these follow.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, comb, floor, log2

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.shamir import MOST_SHARES
from hmtl.errors import ConfigError

DROPPED = 0.3  # share of the users that may drop out between the first and the last step of a round
PRIVACY, CORRECTNESS = -40, -20  # log2 of probabilities
HONEST = 2  # users behind a sum who do not collude, at least


@dataclass(frozen=True)
class Degree:
    """k, the neighbours of each user, and t, the shares that reveal a secret."""

    neighbors: int
    threshold: int


@lru_cache(64)
def degree(n: int, colluding: float) -> Degree | None:
    """Return the least k, with its t, for n users of whom a share γ may collude; None if there is none."""
    removed = colluding + DROPPED
    for k in (*range(2, min(n - 1, MOST_SHARES), 2), *([n - 1] if 2 <= n <= MOST_SHARES + 1 else [])):
        complete = k == n - 1
        # The others remain connected unless two runs of k/2 users are all removed, which cut the circle.
        if not complete and (removed >= 1 or 2 * log2(n) - 1 + k * log2(removed) > PRIVACY):
            continue
        colluders = np.array(_at_least(n - 1, floor(colluding * n), k))
        t = int(np.flatnonzero(n * colluders <= 2**PRIVACY)[0])
        missing = sum(comb(k, x) * (1 - DROPPED) ** x * DROPPED ** (k - x) for x in range(t))
        if 1 <= t <= k and (complete or n * missing <= 2**CORRECTNESS):
            return Degree(k, t)
    return None


def _at_least(n: int, T: int, k: int) -> list[float]:
    """Return the probabilities that 0, 1, ..., k + 1 or more of k users, drawn from n, are among T of these."""
    ways = [comb(T, x) * comb(n - T, k - x) for x in range(k + 1)]
    return [sum(ways[x:]) / comb(n, k) for x in range(k + 2)]


@dataclass(frozen=True)
class Circle:
    """n places on a circle, and the k neighbours of each; if k = n − 1, these are all others."""

    n: int
    k: int

    @property
    def around(self) -> NDArray[np.int64]:
        """The neighbours of each place [n, k]. If j is number q in row i, then i is number k − 1 − q in row j."""
        n, k = self.n, self.k
        offsets = np.arange(1, n) if k == n - 1 else np.r_[-(k // 2) : 0, 1 : k // 2 + 1]
        return np.asarray((np.arange(n)[:, None] + offsets) % n)


@dataclass(frozen=True)
class Secure:
    """Settings of secure sums.

    Args:
        colluding: γ, the largest share of a round's users that may collude with relays and server.
        least: how few users may be behind a sum. There are always those that may collude, and two others.
    """

    colluding: float = 0.1
    least: int | None = None

    def check(self, K: int) -> None:
        """Raise ConfigError if K users are too few, or too many may collude."""
        if not 0 <= self.colluding < 1:
            raise ConfigError(f"colluding={self.colluding} is not in [0, 1). Give the share of users that may collude.")
        if degree(K, self.colluding) is None or self.fewest(K) > K:
            raise ConfigError(
                f"secure=true: K={K} users are too few for colluding={self.colluding} and sums over at least "
                f"{self.fewest(K)} users. Take more users, or lower colluding or least."
            )

    def fewest(self, n: int) -> int:
        """Return how few users may be behind a sum if n advertised keys.

        If not all n are neighbours, they are those of whom the masks are known to connect.
        """
        least = max(self.least or 0, floor(self.colluding * n) + HONEST)
        k = degree(n, self.colluding)
        return max(least, ceil((1 - DROPPED) * n)) if k and k.neighbors < n - 1 else least
