"""Inverses, against galois."""

import galois
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.errors import CodingError
from hmtl.gf256 import linalg

GF = galois.GF(2**8, irreducible_poly=0x11D)
seeds = st.integers(0, 2**32 - 1)


@given(n=st.integers(1, 14), shuffled=st.booleans(), seed=seeds)
def test_inverse(n, shuffled, seed):
    """Triangular matrices with shuffled or reversed rows have a zero where nearly every pivot is looked for."""
    rng = np.random.default_rng(seed)
    values = np.triu(rng.integers(0, 256, (n, n)), 1) + np.diag(rng.integers(1, 256, n))
    values = rng.permutation(values) if shuffled else values[::-1].copy()
    found = linalg.inverse(torch.from_numpy(values.astype(np.uint8)))
    np.testing.assert_array_equal(found.numpy(), np.linalg.inv(GF(values)))


@given(sizes=st.lists(st.integers(0, 25), max_size=3), seed=seeds)
def test_many_at_once(sizes, seed):
    """Of different sizes, panels within and across; None as soon as one is singular."""
    rng = np.random.default_rng(seed)
    values = [rng.integers(0, 256, (n, n)).astype(np.uint8) for n in sizes]
    regular = [np.linalg.matrix_rank(GF(A)) == len(A) for A in values]
    found = linalg.inverses([torch.from_numpy(A) for A in values])
    assert (found is not None) == all(regular)
    for A, inverse in zip(values, found or (), strict=False):
        np.testing.assert_array_equal(GF(A) @ GF(inverse.numpy()), np.eye(len(A), dtype=np.uint8))


def test_inverse_of_a_cycle_pivots_at_every_step():
    cycle = np.roll(np.eye(9, dtype=np.uint8), 1, axis=1)
    np.testing.assert_array_equal(linalg.inverse(torch.from_numpy(cycle)).numpy(), cycle.T)


def test_empty_matrices():
    empty = torch.zeros(0, 0, dtype=torch.uint8)
    assert linalg.inverse(empty).shape == (0, 0)
    assert linalg.inverses([]) == []


@pytest.mark.parametrize(
    ("A", "message"),
    [(torch.ones(3, 3, dtype=torch.uint8), "singular.*n=3"), (torch.ones(2, 3, dtype=torch.uint8), r"not \[2, 3\]")],
)
def test_matrices_without_inverse(A, message):
    with pytest.raises(CodingError, match=message):
        linalg.inverse(A)


@given(n=st.integers(1, 128), m=st.integers(1, 128), size=st.integers(1, 10), seed=seeds)
def test_square_submatrices_of_cauchy_are_invertible(n, m, size, seed):
    A = linalg.cauchy(n, m).numpy()
    assert A.shape == (n, m)
    rng = np.random.default_rng(seed)
    size = min(n, m, size)
    minor = A[np.ix_(rng.choice(n, size, replace=False), rng.choice(m, size, replace=False))]
    assert np.linalg.matrix_rank(GF(minor)) == size


def test_cauchy_beyond_the_field():
    assert linalg.cauchy(56, 200).all()
    with pytest.raises(CodingError, match="n \\+ m = 257 exceeds 256"):
        linalg.cauchy(57, 200)
