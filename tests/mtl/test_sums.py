"""Grid and forms: sums with the same bits in any order, no overflow, and the matrices that forms stand for."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.errors import ConfigError, RangeError
from hmtl.mtl.sums import Grid, WeightedChanges, fitting, from_digits, to_digits


@given(data=st.data(), bits=st.integers(0, 60), K=st.integers(1, 50), seed=st.integers(0, 10**6))
def test_any_order_gives_the_same_bits_and_nothing_wraps(data: st.DataObject, bits: int, K: int, seed: int) -> None:
    rng, grid = np.random.default_rng(seed), Grid(bits, K)
    limit = 2.0 ** (61 - bits) / K
    x = torch.from_numpy(rng.uniform(-1, 1, (K, 5)) * limit * data.draw(st.sampled_from((1.0, 1e-3, 1e-9))))
    terms = grid.rounded(x)
    exact = [sum(int(term) for term in column) for column in terms.T]
    assert terms.sum(0).tolist() == exact
    assert terms[torch.from_numpy(rng.permutation(K))].sum(0).tolist() == exact
    assert (grid.values(terms) - x).abs().max() <= 2.0 ** -(bits + 1) + 1e-16 * limit
    assert (grid.rounded(x) - grid.rounded(-x)).sum(0).tolist() == [2 * s for s in exact], "differences fit, too"


@given(
    counts=st.lists(st.integers(1, 10**9), min_size=1, max_size=20),
    copies=st.sampled_from((1, 50)),
    bits=st.sampled_from((0, 40, 60)),
    seed=st.integers(0, 10**6),
)
def test_weighted_terms_fit_whatever_the_weights_are(counts: list[int], copies: int, bits: int, seed: int) -> None:
    """Any numbers up to 2^(60 - bits) do, and S/P is their weighted mean to half a step of the grid for each user."""
    counts, total = counts * copies, sum(counts) * copies
    K, p = len(counts), torch.tensor(counts, dtype=torch.float64)[:, None] * fitting(total)
    assert 0.5 < float(p.sum()) <= 1
    limit, grid = 2.0 ** (60 - bits), Grid(bits, K)
    x = torch.from_numpy(np.random.default_rng(seed).choice([-limit, limit, 0.3 * limit], (K, 2)))
    x[0, 0] = limit
    terms = grid.rounded(x, p)
    exact = [sum(int(term) for term in column) for column in terms.T]
    assert terms.sum(0).tolist() == exact
    want = [sum(n * Fraction(v) for n, v in zip(counts, column, strict=True)) / total for column in x.T.tolist()]
    for s, mean in zip(exact, want, strict=True):
        in_double = K * Fraction(limit) / 2**52  # a product with a weight has 53 bits
        assert abs(s / Fraction(float(p.sum())) / 2**bits - mean) <= Fraction(K, 2**bits) + in_double
    with pytest.raises(RangeError, match="fraction_bits"):
        grid.rounded(1.01 * x, p)


@pytest.mark.parametrize(
    ("wrong", "remedy"), [(1.01, "fraction_bits"), (float("inf"), "solver.step"), (float("nan"), "solver.step")]
)
def test_an_error_never_a_wrap(wrong: float, remedy: str) -> None:
    grid = Grid(40, 10)
    limit = 2.0**21 / 10
    grid.rounded(torch.tensor([limit, -limit], dtype=torch.float64))
    with pytest.raises(RangeError, match=remedy):
        grid.rounded(torch.tensor([0.0, -wrong * limit]))
    full = torch.full((1, 2), 2**61)
    assert grid.added(full, -full).tolist() == [[0, 0]]
    with pytest.raises(RangeError, match="fraction_bits"):
        grid.added(full, torch.tensor([[0, 2**62]]))
    with pytest.raises(ConfigError, match="fraction_bits=61"):
        Grid(61, 10)


def test_the_sign_of_sums_far_below_the_grid() -> None:
    grid = Grid(40, 4)
    for x in (1e-20, -1e-20, 3.0, -3.0):
        r = torch.tensor([1.0, -1.0, x, 0.0], dtype=torch.float64)
        assert grid.positive(grid.fine(r).sum(0)) == (x > 0)
    assert not grid.positive(grid.fine(torch.zeros(4)).sum(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shared", [True, False])
def test_weighted_changes_are_those_of_the_grid(dtype: torch.dtype, shared: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    new, last = torch.randn(2, 7, 5000, generator=rng, dtype=torch.float64).to(dtype)
    last, weights = last[:1].expand(7, -1) if shared else last, torch.rand(7, 1, generator=rng, dtype=torch.float64) / 7
    terms, grid = WeightedChanges(Grid(40, 7), new, last, weights), Grid(40, 7)
    expected = grid.rounded(new.double() - last, weights)
    assert terms.shape == (7, 5000)
    assert torch.equal(terms[:], expected)
    assert torch.equal(terms[2:4], expected[2:4])
    assert torch.equal(terms[7:], expected[:0])
    for columns in (slice(0, 1), slice(4090, 4100), slice(4999, 5000)):
        assert torch.equal(terms[1:5, columns], expected[1:5, columns])
    assert torch.equal(terms.sum(), expected.sum(0, keepdim=True))
    for wrong in (math.inf, math.nan, 2.0**22):
        new = new.double().clone()
        new[3, 4999] = wrong
        with pytest.raises(RangeError):
            WeightedChanges(grid, new, last.double(), weights)[3:]


@given(st.lists(st.floats(-(2.0**60), 2.0**60).filter(lambda x: x == 0 or abs(x) > 2.0**-8), min_size=1, max_size=40))
def test_sums_of_figures_are_rounded_once(numbers: list[float]) -> None:
    """A sum of multiples of 2^-60 is exact, and rounded once, like that of `math.fsum`."""
    digits = to_digits(torch.tensor(numbers, dtype=torch.float64)[:, None])
    assert from_digits(digits.sum(0)).tolist() == [math.fsum(numbers)]
