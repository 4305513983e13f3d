"""Rank, inverse and independent rows, against galois."""

import galois
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import linalg
from hmtl.errors import CodingError

GF = galois.GF(2**8, irreducible_poly=0x11D)
seeds = st.integers(0, 2**32 - 1)


@given(n=st.integers(1, 14), m=st.integers(1, 14), bound=st.integers(0, 14), sparse=st.booleans(), seed=seeds)
def test_rank_and_independent_rows(n, m, bound, sparse, seed):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((n, m)) < (0.7 if sparse else 0), 0, rng.integers(0, 256, (n, m)))
    if 0 < bound < min(n, m):
        values = np.array(GF(values[:, :bound]) @ GF(rng.integers(0, 256, (bound, m))))
    A = torch.from_numpy(values.astype(np.uint8))
    rank = int(np.linalg.matrix_rank(GF(values)))
    assert linalg.rank(A) == rank
    rows = linalg.independent_rows(A).tolist()
    assert len(rows) == rank
    assert rows == sorted(set(rows))
    assert rank == 0 or np.linalg.matrix_rank(GF(values[rows])) == rank


@given(n=st.integers(1, 14), shuffled=st.booleans(), seed=seeds)
def test_inverse(n, shuffled, seed):
    """Triangular matrices with shuffled or reversed rows have a zero where nearly every pivot is looked for."""
    rng = np.random.default_rng(seed)
    values = np.triu(rng.integers(0, 256, (n, n)), 1) + np.diag(rng.integers(1, 256, n))
    values = rng.permutation(values) if shuffled else values[::-1].copy()
    found = linalg.inverse(torch.from_numpy(values.astype(np.uint8)))
    np.testing.assert_array_equal(found.numpy(), np.linalg.inv(GF(values)))


def test_inverse_of_a_cycle_pivots_at_every_step():
    cycle = np.roll(np.eye(9, dtype=np.uint8), 1, axis=1)
    np.testing.assert_array_equal(linalg.inverse(torch.from_numpy(cycle)).numpy(), cycle.T)


def test_empty_matrices():
    empty = torch.zeros(0, 0, dtype=torch.uint8)
    assert linalg.inverse(empty).shape == (0, 0)
    assert linalg.rank(torch.zeros(3, 0, dtype=torch.uint8)) == 0
    assert len(linalg.independent_rows(torch.zeros(0, 3, dtype=torch.uint8))) == 0


@pytest.mark.parametrize(
    ("A", "message"),
    [(torch.ones(3, 3, dtype=torch.uint8), "rank 1 < n=3"), (torch.ones(2, 3, dtype=torch.uint8), r"not \[2, 3\]")],
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
