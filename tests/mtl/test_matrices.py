"""σ′ against its defining inequality, and symmetry to the last bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.mtl import sigma_prime
from hmtl.mtl.matrices import gram


@given(seed=st.integers(0, 10**6), K=st.integers(1, 8))
@settings(max_examples=12)
def test_sigma_prime_makes_adding_safe(seed, K):
    """σ′ Σ_k B_kk‖v_k‖² ≥ tr(V B Vᵀ) for all V; 1 without coupling, K if all users share one model."""
    rng = np.random.default_rng(seed)
    root, V = rng.normal(size=(K, K)), rng.normal(size=(3, K))
    B = root @ root.T + 1e-3 * np.eye(K)
    sigma = sigma_prime(torch.from_numpy(B))
    assert sigma == pytest.approx(max(sum(map(abs, row)) / row[k] for k, row in enumerate(B.tolist())))
    assert sigma * np.sum(np.diag(B) * V**2) >= np.trace(V @ B @ V.T) * (1 - 1e-12)
    assert sigma_prime(torch.eye(K)) == 1
    assert sigma_prime(torch.ones(K, K)) == K


def test_gram_is_symmetric_to_the_last_bit():
    half = torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram(half), half @ half.T)
    assert torch.equal(gram(half), gram(half).T)
