"""Exact samples of the discrete Gaussian, P(x) ∝ exp(−x²/(2σ²)) on the whole numbers, many at once.

Samples are exact, since rounding a continuous Gaussian leaves traces in the last bits from which the number below the
noise may be read. A test whether a uniform number is below exp(−γ) is done in floating point if rounding errors cannot
change its outcome, and otherwise, about once in 2^45 tests, in as many digits as it takes.

Ref: Canonne, Kamath, Steinke 2020, *The discrete Gaussian for differential privacy*, algorithms 1 to 3.
"""

import os
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

DrawWords = Callable[[int], NDArray[np.uint64]]
"""Returns that many independent, uniform words of 64 bits."""

SURE = 2.0**-48
"""Relative difference from which on floating point decides; rounding errors are below a tenth of it."""
MAX_SIGMA = 2**54
"""The largest σ: samples and their parts fit in 64 bits."""


def system_words(n: int) -> NDArray[np.uint64]:
    """Return words from the random source of the operating system, which nobody can repeat."""
    return np.frombuffer(os.urandom(8 * n), np.uint64)


def repeatable_words(rng: np.random.Generator) -> DrawWords:
    """Return a source of words that follow from the generator's seed."""
    return lambda n: rng.integers(0, 2**64, n, dtype=np.uint64)


def discrete_gaussian(sigma: int, n: int, words: DrawWords) -> NDArray[np.int64]:
    """Return n independent samples.

    Args:
        sigma: σ, a whole number in 1..LARGEST.
        n: number of samples.
        words: where randomness comes from.
    """
    parts, missing = [np.empty(0, np.int64)], n
    while missing > 0:
        parts.append(_accepted(sigma, 2 * missing + 16, words)[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts)


def _accepted(sigma: int, n: int, words: DrawWords) -> NDArray[np.int64]:
    """Return those of n candidates ±(u + σv) that rejection leaves, for u uniform in 0..σ−1 and P(v) ∝ exp(−v).

    They are candidates of the discrete Laplace distribution of scale σ (algorithm 2). Its test, exp(−u/σ), and that of
    the discrete Gaussian, exp(−(u + σv − σ)²/(2σ²)) (algorithm 3 with t = σ), are done as one.
    """
    first = words(n)
    u = (first & np.uint64((1 << (sigma - 1).bit_length()) - 1)).astype(np.int64)
    inside = u < sigma
    u, negative = u[inside], (first >> np.uint64(63)).astype(bool)[inside]
    v, going = np.zeros(len(u), np.int64), np.arange(len(u))
    while len(going):
        going = going[below_exp(np.ones(len(going)), lambda i: Fraction(1), words)]
        v[going] += 1

    def exponent(i: int) -> Fraction:
        a, b = int(u[i]), int(v[i])
        return Fraction(a, sigma) + Fraction((a + sigma * (b - 1)) ** 2, 2 * sigma**2)

    x = u / sigma
    accepted = below_exp(x + (x + v - 1) ** 2 / 2, exponent, words)
    accepted &= ~(negative & (u == 0) & (v == 0))  # zero has one sign
    samples: NDArray[np.int64] = np.where(negative, -1, 1)[accepted] * (u + sigma * v)[accepted]
    return samples


def below_exp(
    gamma: NDArray[np.float64], exact: Callable[[int], Fraction], words: DrawWords, sure: float = SURE
) -> NDArray[np.bool_]:
    """Return whether each of n uniform numbers is below exp(−γ), with exactly that probability.

    Args:
        gamma: γ [n], with an error of at most 16 units in the last place of 1 + γ.
        exact: returns the exact γ of a number.
        words: where randomness comes from.
        sure: see `SURE`.
    """
    drawn, p = words(len(gamma)), np.exp(-gamma)
    uniform = drawn * 2.0**-64
    below: NDArray[np.bool_] = uniform < p
    unsure = np.abs(uniform - p) <= sure * (uniform + (1 + gamma) * p) + 2.0**-63
    for i in np.flatnonzero(unsure).tolist():
        below[i] = _below_exp(int(drawn[i]), exact(i), words)
    return below


def _below_exp(word: int, gamma: Fraction, words: DrawWords) -> bool:
    """Return whether a uniform number that begins with this word is below exp(−γ); draw more of it if need be."""
    bits = 64
    while True:
        context = Context(prec=bits)  # in decimal digits: more than three times as many bits
        p = context.exp(context.divide(Decimal(-gamma.numerator), Decimal(gamma.denominator)))
        exact, error = Fraction(p) * 2**bits, Fraction(2**bits, 8**bits)
        if word + 1 <= exact - error:
            return True
        if word >= exact + error:
            return False
        word, bits = (word << 64) + int(words(1)[0]), bits + 64
