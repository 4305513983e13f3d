"""ε by other ways than the accountant's: integrals over all outcomes, and small federations with all their samples."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp

from hmtl.errors import ConfigError
from hmtl.mtl import Participation
from hmtl.mtl.privacy import Privacy

pytest.importorskip("dp_accounting", reason="needs hmtl[privacy]")
from hmtl.training.accountant import ORDERS, Accountant, divergences, least_noise


def renyi(p: np.ndarray, q: np.ndarray, step: float, order: int) -> float:
    """The Rényi divergence of densities whose logarithms are given on a fine grid."""
    return float(logsumexp(order * p - (order - 1) * q) + np.log(step)) / (order - 1)


def run(
    noise: float, *, K: int = 1000, fraction: float = 0.1, least: int = 100, epsilon: float | None = None
) -> Accountant:
    return Accountant(Privacy(1.0, noise, least), Participation(fraction=fraction), K, 0, 1e-5, epsilon)


@pytest.mark.parametrize(
    ("noise", "fraction", "rounds", "n"), [(2.0, 0.1, 100, 100), (1.2, 0.02, 400, 25), (5.0, 0.5, 60, 450)]
)
def test_epsilon_by_numerical_integration(noise: float, fraction: float, rounds: int, n: int) -> None:
    """With probability n/K, a user's term is in a sum, otherwise another one's, at a distance of 2C; in units of C."""
    least = round(fraction * 1000)
    sigma, x, step = noise * (n / least) ** 0.5, *np.linspace(-150, 250, 40_001, retstep=True)
    other, own = (stats.norm.logpdf(x, mean, sigma) for mean in (0, 2))
    mixture = np.logaddexp(np.log1p(-n / 1000) + other, np.log(n / 1000) + own)
    orders = np.arange(2, 40)
    each = np.array([max(renyi(mixture, other, step, a), renyi(other, mixture, step, a)) for a in orders])
    # Canonne et al. 2020, proposition 12
    epsilons = rounds * each + np.log1p(-1 / orders) - (np.log(1e-5) + np.log(orders)) / (orders - 1)
    accountant = run(noise, fraction=fraction, least=least)
    assert accountant.spent([n] * rounds) == pytest.approx(epsilons.min(), rel=1e-4)
    assert accountant.spent([n, 0] * rounds) == accountant.spent([n] * rounds), "a round without users tells something"


@settings(max_examples=15)
@given(
    terms=st.lists(st.sampled_from([-1.0, -0.6, 0.0, 0.3, 1.0]), min_size=5, max_size=5),
    B=st.integers(1, 4),
    sigma=st.sampled_from([0.8, 2.0, 5.0]),
    order=st.sampled_from([2, 3, 8]),
)
def test_no_federation_tells_more(terms: list[float], B: int, sigma: float, order: int) -> None:
    """B of five users with terms in [−1, 1], and B of the last four: all samples, exactly."""
    x, step = np.linspace(-80, 80, 16_001, retstep=True)

    def density(users: list[float]) -> np.ndarray:
        sums = [sum(sample) for sample in combinations(users, B)]
        return logsumexp([stats.norm.logpdf(x, each, sigma) for each in sums], axis=0) - np.log(len(sums))

    with_user, without = density(terms), density(terms[1:])
    bound = divergences(sigma / 2, B / 5)[ORDERS.index(order)]
    assert renyi(with_user, without, step, order) <= bound * (1 + 1e-6) + 1e-9
    assert renyi(without, with_user, step, order) <= bound * (1 + 1e-6) + 1e-9


def test_half_the_sensitivity_would_be_too_little() -> None:
    """A user in the place of another one whose term is the opposite."""
    x, step = np.linspace(-80, 80, 16_001, retstep=True)
    other, own = stats.norm.logpdf(x, -1, 2), stats.norm.logpdf(x, 1, 2)
    mixture = np.logaddexp(np.log(0.9) + other, np.log(0.1) + own)
    assert divergences(2.0, 0.1)[0] < renyi(mixture, other, step, 2) <= divergences(1.0, 0.1)[0] * (1 + 1e-6)


def test_without_sampling_and_with_a_known_sample() -> None:
    """Gaussian mechanisms with sensitivity C: order α costs α/(2σ²) a round."""
    accountant = run(4.0, K=50, fraction=1.0, least=50)
    orders = np.array(ORDERS)
    gaussian = 30 * orders / (2 * 4.0**2) + np.log1p(-1 / orders) - (np.log(1e-5) + np.log(orders)) / (orders - 1)
    assert accountant.spent([50] * 30) == pytest.approx(gaussian.min())
    assert accountant.spent_by_known([50] * 30) == pytest.approx(gaussian.min())
    sampled = run(4.0, K=50, fraction=0.2, least=10)
    most = max(np.bincount(np.concatenate([sampled.participation.sample(0, t, 50) for t in range(30)])))
    gaussian = most * orders / (2 * 4.0**2) + np.log1p(-1 / orders) - (np.log(1e-5) + np.log(orders)) / (orders - 1)
    assert sampled.spent_by_known([10] * 30) == pytest.approx(gaussian.min())
    assert sampled.spent_by_known([]) == sampled.spent([]) == 0


@pytest.mark.parametrize(("epsilon", "least"), [(8.0, 100), (1.0, 100), (8.0, 80)])
def test_the_least_noise_keeps_epsilon_to_the_last_round(epsilon: float, least: int) -> None:
    noise = least_noise(lambda noise: run(noise, least=least, epsilon=epsilon), 50)
    accountant = run(noise, least=least, epsilon=epsilon)
    assert accountant.allows([100] * 49)
    assert accountant.allows([least] * 49)
    assert not accountant.allows([100] * 51) or not accountant.allows([least] * 51)
    less = run(0.99 * noise, least=least)
    assert max(less.spent([n] * 50) for n in (100, least)) > epsilon


def test_an_epsilon_that_one_round_exceeds() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        least_noise(lambda noise: run(noise, epsilon=1e-6), 10)
