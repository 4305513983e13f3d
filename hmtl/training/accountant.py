"""What a run's differentially private sums tell about a user: ε at a given δ, by Rényi accounting.

K users, of whom n count in a round; σ is the standard deviation of the noise in a sum, C the largest norm of a term.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtrc, gammaln, logsumexp

from hmtl.errors import ConfigError
from hmtl.mtl import Participation
from hmtl.mtl.privacy import Privacy

ORDERS = (*range(2, 65), 80, 96, 128, 256, 512)
"""Orders of the Rényi divergence; of the ε that follow from them, the least counts."""
MIN_NOISE, MAX_NOISE = 0.05, 1e4
"""The range of σ/C that is searched."""
UNLIKELY = 0.01
"""Probability with which some user is sampled more often than `least_noise` expects, so that a run stops earlier."""


@cache
def divergences(noise: float, share: float) -> NDArray[np.float64]:
    """Return the Rényi divergences, of all ORDERS, of a Gaussian mechanism on a Poisson sample of the users.

    Args:
        noise: standard deviation of the noise, as a multiple of the sensitivity.
        share: probability with which a user is among them.

    Ref: Mironov, Talwar, Zhang 2019, *Rényi differential privacy of the sampled Gaussian mechanism*, section 3.3.
    """
    if share == 1:
        return np.array(ORDERS) / (2 * noise**2)

    def log_moment(order: int) -> float:
        k = np.arange(order + 1)
        log_binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        log_terms = k * math.log(share) + (order - k) * math.log1p(-share) + k * (k - 1) / (2 * noise**2)
        return float(logsumexp(log_binomial + log_terms))

    return np.array([log_moment(order) / (order - 1) for order in ORDERS])


@dataclass
class Accountant:
    """ε of a run, which follows from who was sampled and who counted in each round.

    `epsilon_sample_known` is for those who know who took part in which round, as relays and server always do. A user's
    term is compared with noise alone: the sensitivity is C, and only rounds in which the user counted tell about it.
    Of all users, the one with most rounds counts.

    `epsilon` is for those who see all models, but do not know who else was sampled: outsiders, and each other user. The
    run is compared with one in which another user, drawn from those who were not sampled, stands in for the user. Of P
    users who can take part as far as anybody knows, s are sampled. A user who was not sampled knows that the s are
    among the other P−1, so that the user is one of them with probability s/(P−1), also if some drop out later; the sums
    then differ by at most 2C. Thus the divergences are those of Poisson sampling with sensitivity 2C (by joint
    convexity, over the other terms). If users keep state that enters their terms, who is sampled changes other users'
    later terms, too; then, and without sampling, `epsilon` is `epsilon_sample_known`.

    A round counts from before its terms are sent, and stays counted if the run goes back to an older state, since noise
    and samples are then others. With `randomness=seed`, they are the same again, and nothing further is released.

    Attributes:
        privacy: how users clip and add noise; n users have σ² = (noise·C)²·n/least.
        participation: who takes part in rounds.
        K: number of users.
        delta: δ.
        limit: ε at which training stops; None: never.
        against: whom the limit is for: `everyone`, or `outsiders`, who do not know the samples.
        remembers: whether users keep state that enters their terms, see `Algorithm.remembers`.
        hidden: divergences of all ORDERS, summed over rounds, for those who do not know the samples.
        precision: C²/σ², summed over the rounds in which each user counted [K].
    """

    privacy: Privacy
    participation: Participation
    K: int
    delta: float
    limit: float | None = None
    against: str = "everyone"
    remembers: bool = False
    hidden: NDArray[np.float64] = field(init=False)
    precision: NDArray[np.float64] = field(init=False)
    _before: tuple[NDArray[np.float64], NDArray[np.float64]] = field(init=False)  # before the present round
    _share: float = field(init=False)  # probability with which a user is in the present round

    def __post_init__(self) -> None:
        self.hidden, self.precision = self._before = np.zeros(len(ORDERS)), np.zeros(self.K)
        self._share = self._usual

    def begin(self, sample: NDArray[np.int64], reachable: NDArray[np.int64]) -> None:
        """Record a round whose terms are about to be sent, as if no more users than planned for dropped out.

        Args:
            sample: the users who are sampled.
            reachable: the users who can take part, as far as anybody can compute.
        """
        drawn = np.intersect1d(sample, reachable)
        self._before = self.hidden, self.precision
        self._share = min(1.0, max(self._usual, len(drawn) / max(1, len(reachable) - 1)))
        self._add(drawn, min(len(drawn), self.privacy.least))

    def record(self, users: NDArray[np.int64]) -> None:
        """Record which users counted in the round that began."""
        self.hidden, self.precision = self._before
        self._add(users, len(users))
        self._before, self._share = (self.hidden, self.precision), self._usual

    def _add(self, users: NDArray[np.int64], n: int) -> None:
        """Add a round with the noise of n users, in which these counted."""
        if n:
            self.hidden, self.precision = self.hidden + self._round(n, self._share), self.precision.copy()
            self.precision[users] += self._precision(n)

    def spent(self) -> dict[str, float]:
        """Return both ε after the recorded rounds, by name."""
        return self._spent(self.hidden, self.precision.max())

    def allows(self, rounds: int = 1) -> bool:
        """Return whether ε would be kept after further rounds, unless more users drop out than are planned for."""
        return self._fits(rounds, rounds)

    def keeps(self, rounds: int) -> bool:
        """Return whether ε is kept in further rounds, but with a chance of 1 % that some user is sampled too often."""
        share = self.participation.sampled(self.K) / self.K
        most = 1 + next(m for m in range(rounds) if self.K * bdtrc(m, rounds - 1, share) <= UNLIKELY)
        return self._fits(rounds, most)

    def describe(self) -> dict[str, Any]:
        """Return what `summary.json` reports about privacy."""
        described = {"clip": self.privacy.clip, "noise": self.privacy.noise, "delta": self.delta}
        return described | {"against": self.against, "randomness": self.privacy.randomness} | self.spent()

    def state_dict(self) -> dict[str, Any]:
        """Return what was recorded."""
        return {"hidden": torch.from_numpy(self.hidden), "precision": torch.from_numpy(self.precision)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the rounds of `state_dict`, and after those recorded here that were played since then."""
        hidden, precision = state["hidden"].numpy(), state["precision"].numpy()
        if self.privacy.randomness == "system":
            hidden, precision = np.maximum(hidden, self.hidden), np.maximum(precision, self.precision)
        self.hidden, self.precision = self._before = hidden, precision

    @property
    def _usual(self) -> float:
        """The probability with which a user is sampled, if nobody is known to be absent."""
        return min(1.0, self.participation.sampled(self.K) / max(1, self.K - 1))

    def _precision(self, n: int) -> float:
        """Return C²/σ² of a sum of n terms."""
        return self.privacy.least / (n * self.privacy.noise**2)

    def _round(self, n: int, share: float) -> NDArray[np.float64]:
        """Return the divergences of all ORDERS of a sum of n terms, if each user is sampled with this probability."""
        return divergences(self._precision(n) ** -0.5 / 2, share)  # noise as a multiple of 2C

    def _fits(self, rounds: int, most: int) -> bool:
        """Return whether ε is kept in further rounds, in `most` of which a user counts, unless too many drop out."""
        for n in (self.privacy.least, self.participation.sampled(self.K)):
            hidden = self.hidden + rounds * self._round(n, self._usual)
            spent = self._spent(hidden, self.precision.max() + most * self._precision(n))
            most_spent = spent["epsilon"] if self.against == "outsiders" else max(spent.values())
            if self.limit is not None and most_spent > self.limit:
                return False
        return True

    def _spent(self, hidden: NDArray[np.float64], precision: float) -> dict[str, float]:
        known = self._epsilon(precision * divergences(1.0, 1.0))
        gains = not self.remembers and self.participation.sampled(self.K) < self.K
        return {"epsilon": self._epsilon(hidden) if gains else known, "epsilon_sample_known": known}

    def _epsilon(self, spent: NDArray[np.float64]) -> float:
        """Return ε for these divergences of all ORDERS (Canonne, Kamath, Steinke 2020, proposition 12)."""
        orders = np.array(ORDERS)
        bounds = spent + np.log1p(-1 / orders) - (math.log(self.delta) + np.log(orders)) / (orders - 1)
        return max(0.0, float(bounds.min())) if spent.any() else 0.0


def least_noise(accountant: Callable[[float], Accountant], rounds: int) -> float:
    """Return the least noise, σ/C, with which ε is kept in all rounds, to three digits.

    Args:
        accountant: returns the accountant of a run with this noise.
        rounds: number of rounds.

    Raises:
        ConfigError: ε is too small.
    """
    low, high = MIN_NOISE, MAX_NOISE
    if not accountant(high).keeps(rounds):
        run = accountant(high)
        raise ConfigError(
            f"privacy.epsilon={run.limit} cannot be kept for rounds={rounds} with delta={run.delta:g}, even with "
            f"noise={high:g}. Raise privacy.epsilon or privacy.delta."
        )
    while high > 1.0005 * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if accountant(middle).keeps(rounds) else (middle, high)
    return high
