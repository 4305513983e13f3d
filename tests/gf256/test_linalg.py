"""Inverses multiplied by their matrices, and minors of Cauchy matrices."""

import numpy as np
import torch
from coding_oracles import product, regular
from hypothesis import given
from hypothesis import strategies as st

from hmtl.gf256 import cauchy, inverses

seeds = st.integers(0, 2**32 - 1)


@given(n=st.integers(1, 14), shuffled=st.booleans(), seed=seeds)
def test_inverse(n, shuffled, seed):
    """Triangular matrices with shuffled or reversed rows have a zero at nearly every expected pivot."""
    rng = np.random.default_rng(seed)
    values = np.triu(rng.integers(0, 256, (n, n)), 1) + np.diag(rng.integers(1, 256, n))
    values = (rng.permutation(values) if shuffled else values[::-1]).astype(np.uint8)
    (inverse,) = inverses([torch.from_numpy(values)])
    np.testing.assert_array_equal(product(values, inverse.numpy()), np.eye(n))


@given(sizes=st.lists(st.integers(0, 25), max_size=3), seed=seeds, elements=st.sampled_from((2, 256)))
def test_many_at_once(sizes, seed, elements):
    """Sizes within and across panels; None if one matrix is singular, as most with few elements are."""
    rng = np.random.default_rng(seed)
    matrices = [rng.integers(0, elements, (n, n)).astype(np.uint8) for n in sizes]
    results = inverses([torch.from_numpy(A) for A in matrices])
    assert (results is not None) == all(map(regular, matrices))
    for A, result in zip(matrices, results or (), strict=False):
        np.testing.assert_array_equal(product(A, result.numpy()), np.eye(len(A)))


def test_inverse_of_a_cycle_pivots_at_every_step():
    cycle = np.roll(np.eye(9, dtype=np.uint8), 1, axis=1)
    (inverse,) = inverses([torch.from_numpy(cycle)])
    np.testing.assert_array_equal(inverse.numpy(), cycle.T)


def test_no_matrices():
    assert inverses([]) == []


@given(n=st.integers(1, 128), m=st.integers(1, 128), size=st.integers(1, 10), seed=seeds)
def test_square_submatrices_of_cauchy_are_invertible(n, m, size, seed):
    A = cauchy(n, m).numpy()
    assert A.shape == (n, m)
    rng = np.random.default_rng(seed)
    size = min(n, m, size)
    assert regular(A[np.ix_(rng.choice(n, size, replace=False), rng.choice(m, size, replace=False))])
