"""Matrices of low rank: Ω of more users than numbers in a model, and its optimum; without memory for K²."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import planted

from hmtl.mtl import (
    MOCHA,
    SDCA,
    Clustered,
    LowRank,
    Mean,
    Problem,
    Regularizer,
    Ridge,
    SharedModel,
    Squared,
    TaskRelationship,
)

MAKERS = [lambda: TaskRelationship(0.3), lambda: TaskRelationship(0.3, 0.05), lambda: Clustered(0.3, clusters=2)]


def models(seed: int, d: int, K: int) -> torch.Tensor:
    """Return W [d, K] of any rank up to d, with users whose models differ in size by orders of magnitude."""
    rng = np.random.default_rng(seed)
    rank = rng.integers(1, d + 1)
    return torch.from_numpy(rng.normal(size=(d, rank)) @ rng.normal(size=(rank, K)) * 10.0 ** rng.uniform(-3, 0, K))


@given(seed=st.integers(0, 10**6), d=st.integers(1, 5), more=st.integers(1, 30), make=st.sampled_from(MAKERS))
def test_everything_agrees_with_dense_matrices(seed, d, more, make):
    """Ω, R, R*, B and c of a spectrum, against eigenvalues, inverses and traces of the matrix that it stands for."""
    K = d + more
    regularizer, W, V = make(), models(seed, d, K), models(seed + 1, d, K)
    Omega = regularizer.start(K, d)
    torch.testing.assert_close(Omega.dense(), regularizer.start(K, K).dense())
    for _ in range(2):
        A = regularizer.coupling(Omega).dense().numpy()
        B = np.linalg.inv(A)
        assert float(regularizer(W, Omega)) == pytest.approx(np.trace(W.numpy() @ A @ W.T.numpy()) / 2, rel=1e-8)
        assert float(regularizer.inverse(Omega).quadratic(V.T)) == pytest.approx(
            np.trace(V.numpy() @ B @ V.T.numpy()) / 2, rel=1e-8
        )
        form = regularizer.inverse(Omega)
        np.testing.assert_allclose(form @ V.T, B @ V.T.numpy(), rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(form.diagonal(), np.diag(B), rtol=1e-8)
        c = form.dominating().numpy()
        assert np.linalg.eigvalsh(np.diag(c) - B)[0] >= -1e-9 * c.max(), "adding all updates is not safe"
        assert c.sum() <= 1.5 * np.abs(B).sum(), "c is much larger than diagonal dominance"
        old, Omega = Omega, regularizer.update_omega(W, Omega)
        eigenvalues = np.linalg.eigvalsh(Omega.dense())
        s = np.sort(np.append(np.linalg.svd(W, compute_uv=False), np.zeros(K - d)))
        s = np.maximum(s, 0.01 * s[-1])
        if isinstance(regularizer, TaskRelationship):  # the trace is that in the span of W
            np.testing.assert_allclose(eigenvalues, np.sort(s[K - d :].sum() / s), rtol=1e-7)
        else:
            M = regularizer.eta * (1 + regularizer.eta) / eigenvalues - regularizer.eta
            assert M.min() > -1e-9
            assert M.max() < 1 + 1e-9
            assert M.sum() == pytest.approx(regularizer.clusters)
        # only the floor may raise R
        assert float(regularizer(W, Omega)) <= float(regularizer(W, old)) * (1 + 0.01 * d) + 1e-12
    assert regularizer.update_omega(0 * W, Omega) is Omega


def optimum(X: np.ndarray, y: np.ndarray, lam: float) -> float:
    """Return the least loss + (λ/2)‖W‖_*², by exact steps in W and in D = (W Wᵀ)^½ / tr (W Wᵀ)^½ [d, d] in turn.

    ‖W‖_*² is the least tr(Wᵀ D⁻¹ W) over D with trace 1, so that each task is a ridge regression.
    """
    _, n, d = X.shape
    H, b = np.einsum("knd,kne->kde", X, X) / n, np.einsum("knd,kn->kd", X, y) / n
    D = np.eye(d) / d
    for _ in range(200):
        W = np.linalg.solve(H + lam * np.linalg.inv(D), b[..., None])[..., 0]
        U, s, _ = np.linalg.svd(W.T, full_matrices=False)
        D = (U * (s / s.sum() + 1e-9)) @ U.T
    return float(0.5 * np.square(np.einsum("knd,kd->kn", X, W) - y).sum() / n + lam / 2 * s.sum() ** 2)


@pytest.mark.parametrize("lam", [0.01, 2.0])
def test_mocha_nearly_reaches_the_joint_optimum(lam):
    """The joint primal falls to within 2 % of the optimum; primal, dual and gap agree with dense algebra."""
    X, y, users = planted(K=120, d=4, n=8, common=0.0)
    joint = []
    mocha = MOCHA(Problem(users, Squared(), TaskRelationship(lam)), SDCA(10))
    for round in range(99):
        mocha.step(round)
        if round % 5 == 3:  # the last round before Ω changes
            joint.append(mocha.metrics()["joint_primal"])
    assert all(new <= old * (1 + 1e-3) for old, new in pairwise(joint))
    best = optimum(X, y, lam)
    assert best * (1 - 1e-6) <= joint[-1] <= 1.02 * best

    figures, Omega, W = mocha.metrics(), mocha.Omega.dense().numpy(), mocha.W.numpy()
    loss = 0.5 * np.square(np.einsum("knd,dk->kn", X, W) - y).sum() / 8
    assert figures["primal"] == pytest.approx(loss + lam / 2 * np.trace(W @ Omega @ W.T), rel=1e-9)
    a = mocha.a.view(y.shape).numpy()
    V = np.einsum("kn,knd->dk", a, X) / 8
    dual = np.sum(a * y - a**2 / 2) / 8 - np.trace(V @ np.linalg.inv(lam * Omega) @ V.T) / 2
    assert figures["dual"] == pytest.approx(dual, rel=1e-9)
    assert 0 <= figures["gap"] < 1e-3 * figures["primal"]

    copy = MOCHA(Problem(users, Squared(), TaskRelationship(lam)), SDCA(10))
    copy.load_state_dict(mocha.state_dict())
    for each in (mocha, copy):
        each.step(99)
    assert torch.equal(mocha.W, copy.W)


FIXED = [Ridge(0.3), Mean(0.3, 0.05), SharedModel(0.2)]


@pytest.mark.parametrize("regularizer", [TaskRelationship(0.3), Clustered(0.3), *FIXED], ids=str)
def test_a_hundred_thousand_users(regularizer: Regularizer):
    """A matrix of all pairs of users would take 80 GB."""
    W = torch.randn(4, 100_000, dtype=torch.float64)
    Omega = regularizer.update_omega(W, regularizer.start(100_000, 4))
    B = regularizer.inverse(Omega)
    # R*(V) = R(V B), since R is a quadratic form
    assert float(regularizer((B @ W.T).T, Omega)) == pytest.approx(float(B.quadratic(W.T)), rel=1e-8)


def test_two_sums_for_each_coordinate() -> None:
    rng = np.random.default_rng(0)
    U, V = torch.from_numpy(rng.normal(size=(6, 2))), torch.from_numpy(rng.normal(size=(6, 3)))
    B = LowRank(torch.tensor(0.7).double(), U, torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=torch.float64))
    some = torch.tensor([1, 4])
    torch.testing.assert_close(B.models(V[some], B.terms(V).sum(0), some), (B.dense() @ V)[some])
    torch.testing.assert_close(B.inverse().dense(), torch.linalg.inv(B.dense()))
    with pytest.raises(ArithmeticError):
        LowRank(B.delta, U, -B.C).inverse()
