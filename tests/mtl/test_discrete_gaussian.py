"""The discrete Gaussian: its probabilities at every scale, and tests that rounding cannot decide."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hmtl.mtl import discrete_gaussian as subject
from hmtl.mtl.discrete_gaussian import below_exp, discrete_gaussian, repeatable_words, system_words
from hmtl.rng import generator


@pytest.mark.parametrize("exactly", [False, True], ids=["floating point", "all digits"])
@pytest.mark.parametrize("sigma", [1, 2, 3, 5, 8])
@pytest.mark.slow
def test_probabilities(sigma: int, exactly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 2000 if exactly else 200_000
    if exactly:
        monkeypatch.setattr(below_exp, "__defaults__", (2.0,))  # nothing is sure
    samples = discrete_gaussian(sigma, n, repeatable_words(generator(1, "test", sigma)))
    x = np.arange(-60 * sigma, 60 * sigma + 1)
    p = np.exp(-(x**2) / (2 * sigma**2))
    p *= n / p.sum()
    common = p >= 5
    counts = np.array([np.sum(samples == each) for each in x])
    observed, expected = ([*each[common], each[~common].sum()] for each in (counts, p))
    assert stats.chisquare(observed, expected).pvalue > 1e-4
    assert sum(observed) == n


@pytest.mark.parametrize("sigma", [2**20 - 1, 2**40 + 12345, 2**54])
def test_large_scales(sigma: int) -> None:
    samples = discrete_gaussian(sigma, 50_000, repeatable_words(generator(2, "test", sigma)))
    assert stats.kstest(samples / sigma, stats.norm.cdf).pvalue > 1e-4
    lowest = np.bincount(samples % 16, minlength=16)  # no bits are lost
    assert stats.chisquare(lowest).pvalue > 1e-4


def test_nobody_can_repeat_the_noise_of_the_system() -> None:
    drawn = np.concatenate([discrete_gaussian(2**40, 1000, system_words) for _ in range(3)])
    assert len(set(drawn.tolist())) == 3000
    assert stats.kstest(drawn / 2**40, stats.norm.cdf).pvalue > 1e-6


@given(
    gamma=st.fractions(0, 30, max_denominator=2**60),
    agreeing=st.integers(0, 3),
    apart=st.sampled_from([-3, -1, 1, 3]),
    sure=st.sampled_from([subject.SURE, 2.0]),
)
def test_a_uniform_number_just_beside_the_limit(gamma: Fraction, agreeing: int, apart: int, sure: float) -> None:
    """Its first 64, 128, ... bits are those of exp(−γ), and what follows makes it smaller or larger."""
    bits = 64 * (agreeing + 1)
    with mpmath.workprec(600):
        limit = int(mpmath.floor(mpmath.exp(mpmath.mpf(-gamma.numerator) / gamma.denominator) * 2**bits))
    number = limit + apart
    if not 0 <= number < 2**bits:
        return
    words = [number >> (bits - 64 * (i + 1)) & (2**64 - 1) for i in range(agreeing + 1)]
    drawn = iter([*words, *[2**63] * 9])

    def scripted(n: int) -> np.ndarray:
        return np.array([next(drawn) for _ in range(n)], np.uint64)

    below = below_exp(np.array([float(gamma)]), lambda i: gamma, scripted, sure)
    assert below.tolist() == [apart < 0]
