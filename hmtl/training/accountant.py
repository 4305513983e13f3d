"""What a run's differentially private sums tell about a user: ε at a given δ, by Rényi accounting.

K users, of whom n count in a round; σ is the standard deviation of the noise in a sum, C the largest norm of a term.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.errors import ConfigError
from hmtl.mtl import Participation
from hmtl.mtl.privacy import Privacy

ORDERS = (*range(2, 65), 80, 96, 128, 256, 512)
"""Orders of the Rényi divergence; of the ε that follow from them, the least counts."""
LEAST_NOISE, MOST_NOISE = 0.05, 1e4
"""The range of σ/C that is searched."""


@cache
def divergences(noise: float, share: float) -> NDArray[np.float64]:
    """Return the Rényi divergences, of all ORDERS, of a Gaussian mechanism on a random share of the users.

    Args:
        noise: standard deviation of the noise, as a multiple of the sensitivity.
        share: probability with which a user is among them.
    """
    events, rdp = _library()
    accountant = rdp.RdpAccountant(ORDERS)
    event = events.GaussianDpEvent(noise)
    accountant.compose(event if share == 1 else events.PoissonSampledDpEvent(share, event))
    return np.array(accountant.rdp)


@dataclass(frozen=True)
class Accountant:
    """ε of a run, which follows from how many users counted in each round.

    With client sampling, ε bounds what somebody learns who sees all models, and does not know who took part in which
    round. A user's part is compared with a federation without it, of which as many users are sampled. With probability
    n/K the user is one of the n; then another user's term would otherwise be in its place, and the sums differ by at
    most 2C. Thus the divergences are those of Poisson sampling with sensitivity 2C (by joint convexity, over the other
    n−1). Who counts has to be a uniform sample given n: drop-outs must hit all users alike.

    Without sampling, or for somebody who knows who took part (relays, the server, and all who know the seed), a user's
    term is compared with noise alone: the sensitivity is C, and only rounds in which the user took part tell about it.

    Attributes:
        privacy: how users clip and add noise; n users have σ² = (noise·C)²·n/least.
        participation: who takes part in rounds.
        K: number of users.
        seed: seed of participation.
        delta: δ.
        epsilon: ε at which training stops; None: never.

    Raises:
        ConfigError: dp-accounting is not installed.
    """

    privacy: Privacy
    participation: Participation
    K: int
    seed: int
    delta: float
    epsilon: float | None = None

    def __post_init__(self) -> None:
        _library()  # so that a run without it does not begin

    def spent(self, users: Sequence[int]) -> float:
        """Return ε after rounds in which these numbers of users counted."""
        rounds = Counter(n for n in users if n)
        return self._epsilon(sum((count * self._divergences(n) for n, count in rounds.items()), np.zeros(len(ORDERS))))

    def allows(self, users: Sequence[int]) -> bool:
        """Return whether ε would still be kept after another round, unless more users drop out than are planned for."""
        return self.epsilon is None or all(self.spent([*users, n]) <= self.epsilon for n in self.planned)

    @property
    def planned(self) -> tuple[int, int]:
        """The least and the largest number of users who are expected to count in a round."""
        return self.privacy.least, self.participation.sampled(self.K)

    def spent_by_known(self, users: Sequence[int]) -> float:
        """Return ε for somebody who knows who took part, of the user who took part most."""
        precision = np.zeros(self.K)  # C²/σ², summed over a user's rounds
        for round, n in enumerate(users):
            if n:
                precision[self.participation.sample(self.seed, round, self.K)] += self._noise(n) ** -2
        largest = float(precision.max())
        return self._epsilon(divergences(largest**-0.5, 1.0)) if largest else 0.0

    def describe(self, users: Sequence[int]) -> dict[str, Any]:
        """Return what `summary.json` reports about privacy, after rounds in which these numbers of users counted."""
        described = {"clip": self.privacy.clip, "noise": self.privacy.noise, "delta": self.delta}
        return described | {"epsilon_sample_known": self.spent_by_known(users), "randomness": self.privacy.randomness}

    def _noise(self, n: int) -> float:
        """Return σ/C of a sum of n terms."""
        return self.privacy.noise * math.sqrt(n / self.privacy.least)

    def _divergences(self, n: int) -> NDArray[np.float64]:
        if self.participation.sampled(self.K) == self.K:
            return divergences(self._noise(n), 1.0)
        return divergences(self._noise(n) / 2, n / self.K)

    def _epsilon(self, spent: NDArray[np.float64]) -> float:
        _, rdp = _library()
        return float(rdp.compute_epsilon(ORDERS, spent, self.delta)[0]) if spent.any() else 0.0


def least_noise(accountant: Callable[[float], Accountant], rounds: int) -> float:
    """Return the least noise, σ/C, with which ε is kept in all rounds, to three digits.

    Args:
        accountant: returns the accountant of a run with this noise.
        rounds: number of rounds.

    Raises:
        ConfigError: ε is too small.
    """

    def keeps(noise: float) -> bool:
        run = accountant(noise)
        return all(run.allows([n] * (rounds - 1)) for n in run.planned)

    low, high = LEAST_NOISE, MOST_NOISE
    if not keeps(high):
        run = accountant(high)
        raise ConfigError(
            f"privacy.epsilon={run.epsilon} cannot be kept for rounds={rounds}: with delta={run.delta:g}, one round "
            f"spends {run.spent([run.planned[1]]):.2g} even with noise={high:g}. Raise privacy.epsilon or "
            "privacy.delta."
        )
    while high > 1.0005 * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


def _library() -> Any:
    """Return dp-accounting's events and its Rényi accountant."""
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError as error:
        raise ConfigError(
            "Differential privacy needs the package dp-accounting. Install it: pip install 'hmtl[privacy]'."
        ) from error
    return dp_accounting, rdp
