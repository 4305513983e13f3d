"""ε by other ways than the accountant's: integrals over all outcomes, and small federations with all their samples."""

from itertools import combinations

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp

from hmtl.errors import ConfigError
from hmtl.mtl import Participation
from hmtl.mtl.privacy import Privacy
from hmtl.training.accountant import ORDERS, Accountant, divergences, least_noise

# dp-accounting 0.6.0, for each row:
#   accountant = rdp.RdpAccountant((*range(2, 65), 80, 96, 128, 256, 512))
#   event = dp_accounting.GaussianDpEvent(noise)
#   accountant.compose(event if share == 1 else dp_accounting.PoissonSampledDpEvent(share, event), rounds)
#   accountant.get_epsilon(delta)
RECORDED = [  # noise, share, rounds, delta, ε
    (2.0, 0.1, 100, 1e-05, 2.586652178),
    (1.0, 0.01, 1000, 1e-06, 2.436693803),
    (0.6, 0.005, 50, 1e-05, 3.338082422),
    (4.0, 0.5, 20, 1e-05, 2.627286253),
    (4.0, 1.0, 20, 1e-05, 5.377728337),
    (8.0, 1.0, 1, 1e-03, 0.3067021494),
    (30.0, 0.3, 500, 1e-07, 1.12345653),
    (0.5, 1.0, 3, 1e-05, 22.1266311),
]


def epsilon_of(divergences: np.ndarray, orders: np.ndarray, delta: float) -> float:
    """Canonne et al. 2020, proposition 12."""
    return float((divergences + np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)).min())


def renyi(p: np.ndarray, q: np.ndarray, step: float, order: int) -> float:
    """The Rényi divergence of densities whose logarithms are given on a fine grid."""
    return float(logsumexp(order * p - (order - 1) * q) + np.log(step)) / (order - 1)


def run(noise: float, *, K: int = 1000, fraction: float = 0.1, least: int = 100, **options) -> Accountant:
    return Accountant(Privacy(1.0, noise, least), Participation(fraction=fraction), K, 1e-5, **options)


def after(accountant: Accountant, *rounds: list[int]) -> tuple[float, float]:
    """ε against those who do not know the samples, and against those who do, after rounds in which these counted."""
    for users in rounds:
        accountant.record(np.array(users, dtype=np.int64))
    spent = accountant.spent()
    return spent["epsilon"], spent["epsilon_sample_known"]


@pytest.mark.parametrize(("noise", "share", "rounds", "delta", "expected"), RECORDED)
def test_epsilon_as_dp_accounting_reports_it(
    noise: float, share: float, rounds: int, delta: float, expected: float
) -> None:
    assert epsilon_of(rounds * divergences(noise, share), np.array(ORDERS), delta) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("noise", "fraction", "rounds", "n"), [(2.0, 0.1, 100, 100), (1.2, 0.02, 400, 25), (5.0, 0.5, 60, 450)]
)
def test_epsilon_by_numerical_integration(noise: float, fraction: float, rounds: int, n: int) -> None:
    """For a user who was not sampled, another one is among the sample of 999, in the place of a third, 2C away.

    Who counts of the sample is known, so that fewer who count hide nobody.
    """
    least = round(fraction * 1000)
    sigma, x, step = noise * (n / least) ** 0.5, *np.linspace(-150, 250, 40_001, retstep=True)
    other, own = (stats.norm.logpdf(x, mean, sigma) for mean in (0, 2))
    mixture = np.logaddexp(np.log1p(-least / 999) + other, np.log(least / 999) + own)
    orders = np.arange(2, 40)
    each = np.array([max(renyi(mixture, other, step, a), renyi(other, mixture, step, a)) for a in orders])
    accountant = run(noise, fraction=fraction, least=least)
    users = list(range(n))
    expected = epsilon_of(rounds * each, orders, 1e-5)
    assert after(accountant, *[users] * rounds)[0] == pytest.approx(expected, rel=1e-4)
    assert after(accountant, *[[]] * rounds)[0] == pytest.approx(expected, rel=1e-4), "a round without users counts"


@examples(15)
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


def test_a_user_who_was_not_sampled() -> None:
    """One of two users counts in each round: the other one knows that it is the first one's term."""
    expected = epsilon_of(20 * np.array(ORDERS) * 2**2 / (2 * 8.0**2), np.array(ORDERS), 1e-5)
    assert after(run(8.0, K=2, fraction=0.5, least=1), *[[0], [1]] * 10)[0] == pytest.approx(expected)


def test_without_sampling_and_with_a_known_sample() -> None:
    """Gaussian mechanisms with sensitivity C: order α costs α/(2σ²) for each round in which a user counted."""
    orders = np.array(ORDERS)
    expected = epsilon_of(30 * orders / (2 * 4.0**2), orders, 1e-5)
    everybody = list(range(50))
    assert after(run(4.0, K=50, fraction=1.0, least=50), *[everybody] * 30) == pytest.approx((expected, expected))
    generator = np.random.default_rng(0)
    rounds = [generator.permutation(50)[:n].tolist() for n in generator.integers(5, 11, 30)]  # some of ten drop out
    precision = max(sum(10 / len(users) / 4.0**2 for users in rounds if k in users) for k in range(50))
    expected = epsilon_of(precision * orders / 2, orders, 1e-5)
    assert after(run(4.0, K=50, fraction=0.2, least=10), *rounds)[1] == pytest.approx(expected)
    assert after(run(4.0)) == (0, 0)


@pytest.mark.parametrize(("epsilon", "least"), [(8.0, 100), (1.0, 100), (8.0, 80)])
@pytest.mark.parametrize("against", ["everyone", "outsiders"])
def test_the_least_noise_keeps_epsilon_to_the_last_round(epsilon: float, least: int, against: str) -> None:
    def accountant(noise: float) -> Accountant:
        return run(noise, least=least, limit=epsilon, against=against)

    noise, generator = least_noise(accountant, 50), np.random.default_rng(0)
    for n in (100, least):
        whole = accountant(noise)
        for _ in range(50):
            assert whole.allows()
            whole.record(generator.permutation(1000)[:n])
        spent = whole.spent()
        assert (max(spent.values()) if against == "everyone" else spent["epsilon"]) <= epsilon
    if against == "outsiders":
        less = [run(0.99 * noise, least=least) for _ in range(2)]
        assert max(after(each, *[list(range(n))] * 50)[0] for each, n in zip(less, (100, least), strict=True)) > epsilon


def test_training_ends_before_a_known_sample_tells_too_much() -> None:
    """The same hundred users are drawn again and again, far more often than can be expected."""
    accountant = run(6.0, limit=4.0)
    users = np.arange(100)
    while accountant.allows():
        accountant.record(users)
    spent = accountant.spent()
    assert spent["epsilon"] < spent["epsilon_sample_known"] <= 4
    assert after(accountant, list(users))[1] > 4


def test_what_was_recorded_continues() -> None:
    stopped, resumed = (run(4.0, K=20, fraction=0.5, least=10) for _ in range(2))
    after(stopped, [0, 1, 2], [1, 2])
    resumed.load_state_dict(stopped.state_dict())
    assert after(resumed, [2, 3]) == after(stopped, [2, 3])


@pytest.mark.parametrize("randomness", ["system", "seed"])
def test_only_samples_of_the_seed_can_be_repeated(randomness: str) -> None:
    part = Participation(fraction=0.1)
    drawn = [
        [part.secret_sample(100) if randomness == "system" else part.sample(3, t, 100) for t in range(200)]
        for _ in "12"
    ]
    samples = [[sample.tolist() for sample in each] for each in drawn]
    assert (samples[0] == samples[1]) == (randomness == "seed")
    counts = np.bincount(np.ravel(samples[0]), minlength=100)
    assert {len(set(sample)) for sample in samples[0]} == {10}
    assert stats.chisquare(counts).pvalue > 1e-6, "some users are drawn more often than others"


def test_an_epsilon_that_one_round_exceeds() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        least_noise(lambda noise: run(noise, limit=1e-6), 10)
