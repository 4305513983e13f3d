"""Primal, dual and gap against plain numpy; σ′ against its defining inequality; refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.data import Task
from hmtl.errors import ConfigError, DataError
from hmtl.mtl import Hinge, Loss, Problem, Ridge, Squared, TaskRelationship, sigma_prime

draw = {
    "seed": st.integers(0, 10**6),
    "K": st.integers(1, 6),
    "reduction": st.sampled_from(["mean", "sum"]),
}


@given(**draw)
@settings(deadline=None, max_examples=30)
def test_primal_and_dual(random_problem, seed, K, reduction):
    case = random_problem(seed, K=K, reduction=reduction, regularizer=TaskRelationship(0.2))
    W = case.rng.normal(size=(case.d, K))
    root = case.rng.normal(size=(K, K))
    Omega = root @ root.T + 0.1 * np.eye(K)
    b = [case.rng.uniform(size=len(y)) for y in case.y]
    loss = sum(s * np.maximum(0, 1 - y * (x @ w)).sum() for s, x, y, w in zip(case.s, case.X, case.y, W.T, strict=True))
    primal = loss + 0.1 * np.trace(W @ Omega @ W.T)
    V = np.stack([s * (bk * y) @ x for s, bk, y, x in zip(case.s, b, case.y, case.X, strict=True)], axis=1)
    dual = sum(s * bk.sum() for s, bk in zip(case.s, b, strict=True)) - 2.5 * np.trace(V @ np.linalg.inv(Omega) @ V.T)
    a = torch.zeros_like(case.problem.rows.y)
    for k in range(K):
        a[k, : len(b[k])] = torch.from_numpy(b[k] * case.y[k])
    got = case.problem.primal(torch.from_numpy(W), torch.from_numpy(Omega))
    assert got == pytest.approx(primal, rel=1e-12)
    got = case.problem.dual(a, torch.from_numpy(Omega))
    assert got == pytest.approx(dual, rel=1e-9)
    assert got <= primal + 1e-9


@given(**draw)
@settings(deadline=None, max_examples=20)
def test_errors(random_problem, seed, K, reduction):
    case = random_problem(seed, K=K, reduction=reduction)
    W = case.rng.normal(size=(case.d, K))
    wrong = [np.mean(np.sign(x @ w) != y) for x, y, w in zip(case.X, case.y, W.T, strict=True)]
    for split in ("train", "test"):
        assert case.problem.errors(torch.from_numpy(W), split).tolist() == pytest.approx(wrong)


@given(seed=st.integers(0, 10**6), K=st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_sigma_prime_makes_adding_safe(seed, K):
    """σ′ Σ_k B_kk‖v_k‖² ≥ tr(V B Vᵀ) for all V; 1 without coupling, K when all users share one model."""
    rng = np.random.default_rng(seed)
    root, V = rng.normal(size=(K, K)), rng.normal(size=(3, K))
    B = root @ root.T + 1e-3 * np.eye(K)
    sigma = sigma_prime(torch.from_numpy(B))
    assert sigma == pytest.approx(max(sum(map(abs, row)) / row[k] for k, row in enumerate(B.tolist())))
    assert sigma * np.sum(np.diag(B) * V**2) >= np.trace(V @ B @ V.T) * (1 - 1e-12)
    assert sigma_prime(torch.eye(K)) == 1
    assert sigma_prime(torch.ones(K, K)) == K


def test_a_users_rows_alone_are_a_view_without_padding(random_problem):
    case = random_problem(3)
    for k in range(case.K):
        rows = case.problem.rows.of(k)
        np.testing.assert_array_equal(rows.X[0].numpy(), case.X[k])
        np.testing.assert_array_equal(rows.y[0].numpy(), case.y[k])
        assert rows.counts == (len(case.y[k]),)
        assert rows.X.untyped_storage().data_ptr() == case.problem.rows.X.untyped_storage().data_ptr()


def task(name, d=3, labels=(1.0, -1.0)):
    x, y = torch.ones(len(labels), d), torch.tensor(labels)
    return Task(name, x, y, x, y)


class AnyNumber(Loss):
    labels = None

    def forward(self, prediction, y):
        return (prediction - y).square()


def test_refusals():
    good = task("good")
    with pytest.raises(DataError, match="no tasks"):
        Problem([], Hinge(), Ridge(1.0))
    with pytest.raises(DataError, match="'wide' has 4 columns, task 'good' has 3"):
        Problem([good, task("wide", d=4)], Hinge(), Ridge(1.0))
    with pytest.raises(DataError, match=r"'zeros' has the label 0, Hinge takes \(-1.0, 1.0\) only"):
        Problem([good, task("zeros", labels=(0.0, 1.0))], Hinge(), Ridge(1.0))
    with pytest.raises(ConfigError, match="reduction='max'"):
        Problem([good], Hinge(), Ridge(1.0), "max")
    assert Problem([task("heights", labels=(0.0, 7.5))], AnyNumber(), Ridge(1.0)).K == 1


def test_of_a_number_that_nowhere_varies_there_is_an_error_and_no_r2():
    y = torch.full((3,), 0.1, dtype=torch.float64)  # whose mean is not 0.1, by rounding
    problem = Problem([Task("a", torch.eye(3), y, torch.eye(3), y)], Squared(), Ridge(0.1))
    assert set(problem.figures("train", torch.tensor([0.25]))) == {"train_error", "train_error_worst"}
