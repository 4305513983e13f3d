"""Every regularizer: R, its gradient, its inverse coupling, its Ω update; and messages for what cannot be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from hmtl.errors import ConfigError
from hmtl.mtl import Regularizer, Ridge, TaskRelationship

REGULARIZERS = [Ridge(0.3), TaskRelationship(0.3), TaskRelationship(0.3, 0.05)]


def random_state(seed, K, d):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(K, K))
    return torch.from_numpy(rng.normal(size=(d, K))), torch.from_numpy(root @ root.T + 0.1 * np.eye(K))


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=["ridge", "task_relationship", "task_relationship2"])
@given(seed=st.integers(0, 10**6), K=st.integers(1, 6), d=st.integers(1, 5))
@settings(deadline=None, max_examples=15)
def test_contract(regularizer, seed, K, d):
    W, Omega = random_state(seed, K, d)
    A = regularizer.coupling(Omega)
    W.requires_grad_()
    value = regularizer(W, Omega)
    value.backward()
    w, a = W.detach().numpy(), A.numpy()
    assert value.item() == pytest.approx(0.5 * np.trace(w @ a @ w.T), rel=1e-12)
    np.testing.assert_allclose(W.grad.numpy(), w @ a, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(regularizer.inverse_coupling(Omega).numpy() @ a, np.eye(K), atol=1e-8)


@given(seed=st.integers(0, 10**6), K=st.integers(1, 6))
@settings(deadline=None, max_examples=25)
def test_penalties_as_written_in_the_papers(seed, K):
    W, Omega = random_state(seed, K, 4)
    coupled = float(torch.einsum("dk,kl,dl->", W, Omega, W))
    norm = float(W.square().sum())
    assert float(Ridge(0.3)(W, Omega)) == pytest.approx(0.15 * norm)
    assert float(TaskRelationship(0.3)(W, Omega)) == pytest.approx(0.15 * coupled)
    assert float(TaskRelationship(0.3, 0.05)(W, Omega)) == pytest.approx(0.3 * coupled + 0.05 * norm)


@given(seed=st.integers(0, 10**6), K=st.integers(1, 6))
@settings(deadline=None, max_examples=25)
def test_omega_update_is_the_closed_form_and_the_best(seed, K):
    W, Omega = random_state(seed, K, 8)
    regularizer = TaskRelationship(0.3)
    new = regularizer.update_omega(W, Omega)
    root = np.real(sqrtm(W.numpy().T @ W.numpy()))
    np.testing.assert_allclose(np.linalg.inv(new.numpy()), root / np.trace(root), rtol=0, atol=1e-7)
    other = Omega * torch.linalg.inv(Omega).trace()  # any other Σ of trace 1
    assert float(regularizer(W, new)) <= float(regularizer(W, other)) * (1 + 1e-9)


def test_omega_update_of_zero_and_of_low_rank():
    Omega = TaskRelationship(0.1).start_omega(5)
    torch.testing.assert_close(Omega, 5 * torch.eye(5, dtype=torch.float64))
    assert TaskRelationship(0.1).update_omega(torch.zeros(3, 5).double(), Omega) is Omega
    assert Ridge(0.1).update_omega(torch.ones(3, 5).double(), Omega) is Omega
    new = TaskRelationship(0.1).update_omega(torch.ones(3, 5).double(), Omega)
    assert float(torch.linalg.inv(new).trace()) == pytest.approx(1)
    assert torch.linalg.eigvalsh(new)[0] > 0


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, math.inf])
def test_strength_must_be_positive(lam):
    for build in (Ridge, TaskRelationship, lambda lam: TaskRelationship(0.1, lam)):
        with pytest.raises(ConfigError, match="must be a finite number above 0"):
            build(lam)


class Given(Regularizer):
    def __init__(self, A):
        super().__init__(1.0)
        self.A = torch.tensor(A, dtype=torch.float64)

    def coupling(self, Omega):
        return self.A


@pytest.mark.parametrize(
    ("A", "message"),
    [
        ([[1.0, 2.0], [2.0, 1.0]], "Given.*not positive definite.*ridge"),
        ([[1.0, -1.0], [-1.0, 1.0]], "Given.*not positive definite"),
        ([[1.0, 0.5], [0.0, 1.0]], "Given.*not symmetric"),
        ([[1.0]], r"Given.*shape \(1, 1\), not \(2, 2\)"),
        ([[math.nan, 0.0], [0.0, 1.0]], "Given"),
    ],
)
def test_a_coupling_that_cannot_be(A, message):
    with pytest.raises(ConfigError, match=message):
        Given(A).inverse_coupling(torch.eye(2, dtype=torch.float64))
