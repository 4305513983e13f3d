"""FedU with a learned Ω: its step beside numpy, the joint optimum, planted groups, and the same bits everywhere."""

from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hmtl.communication import CodedHierarchical, Uncoded
from hmtl.data import Task
from hmtl.errors import RangeError
from hmtl.mtl import Common, CrossEntropy, FedPer, FedU, LocalSGD, Logistic, Participation, Problem, TaskRelationship
from hmtl.mtl.algorithms.fedu import FedUAggregator, LearnedPenalty
from hmtl.testing.topologies import topologies

KINDS = {"Ω": TaskRelationship, "common and Ω": Common}


def best_sigma(U, floor):
    """Σ ∝ (UᵀU)^½ with floored eigenvalues, for U [m, K], and the trace 1, in the span of U if m < K."""
    m, K = U.shape
    _, s, V = np.linalg.svd(U)
    floored = np.maximum(np.pad(s, (0, K - len(s))), floor**0.5 * s[0])
    return (V.T * (floored / floored[: min(m, K)].sum())) @ V


@given(
    kind=st.sampled_from(list(KINDS)),
    K=st.integers(2, 6),
    m=st.integers(1, 9),
    lam=st.sampled_from((1e-3, 0.3, 50.0)),
    seed=st.integers(0, 10**6),
)
def test_a_step_is_that_of_numpy(kind, K, m, lam, seed):
    """w′ + X A w′ = w with the best Ω for w, for users with any numbers of steps, and some who were not heard."""
    rng, regularizer = np.random.default_rng(seed), KINDS[kind](lam)
    start, trained = torch.from_numpy(rng.normal(size=m)).expand(K, m), rng.normal(size=(K, m)) + rng.normal(size=m)
    aggregator = FedUAggregator(start, LearnedPenalty(regularizer, K, m), LocalSGD(0.5, decay=1.0))
    W, Sigma, w0 = start.numpy(), np.eye(K) / K, 0.0
    for round in range(3):
        heard = np.flatnonzero(rng.random(K) < 0.8)
        steps = np.zeros(K)
        steps[heard] = rng.integers(1, 20, len(heard))
        W = W.copy()
        W[heard] = trained[heard] * (1 + round)
        ivs = torch.from_numpy(np.column_stack([W, steps])[heard])
        models = aggregator.update(heard, ivs).numpy()
        B = np.zeros((K, K))
        if kind != "Ω":
            pull = lam * np.linalg.inv(Sigma).sum(1)
            w0, B = pull @ W / (0.1 + pull.sum()), np.full((K, K), 1 / 0.1)
        Sigma = best_sigma((W - w0).T, 1e-4)
        A = np.linalg.inv(B + Sigma / lam)
        left = models + (0.5 / (1 + round) * steps)[:, None] * (A @ models)
        np.testing.assert_allclose(left, W, rtol=0, atol=1e-5 * np.abs(W).max())
        penalty = float(aggregator.structure.penalty(torch.from_numpy(models)))
        assert penalty == pytest.approx(0.5 * np.trace(models.T @ A @ models), rel=1e-5)
        W = models


def test_falling_steps_reach_the_joint_optimum(random_problem):
    """min over W and Σ is the minimum of the losses and (λ/2)‖W‖_*², which an interior-point solver finds."""
    problem = random_problem(2, regularizer=TaskRelationship(0.05, floor=1e-8), loss=Logistic()).problem
    W, losses = cp.Variable((problem.d, problem.K)), 0
    for k, task in enumerate(problem.tasks):
        margins = cp.multiply(task.y_train.numpy(), task.x_train.numpy() @ W[:, k])
        losses += cp.sum(cp.logistic(-margins)) / len(task.y_train)
    value = cp.Problem(cp.Minimize(losses + 0.025 * cp.square(cp.normNuc(W)))).solve(solver=cp.CLARABEL)
    fedu = FedU(problem, LocalSGD(0.3, 1, 100, 0.03), partial(nn.Linear, bias=False))
    for round in range(200):
        fedu.step(round)
    assert value * (1 - 1e-5) <= fedu.metrics()["primal"] <= value * (1 + 2e-3)


def groups(seed=0, K=8, n=40):
    """Tasks of K users with three classes; the second half of the users has other names for them."""
    rng, tasks = np.random.default_rng(seed), []
    w = rng.normal(size=(5, 3))
    for k in range(K):
        x = rng.normal(size=(n, 5))
        y = ((x @ w + 0.2 * rng.normal(size=(n, 3))).argmax(1) + (k >= K // 2)) % 3
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        tasks.append(Task(str(k), x, y, x, y, 3))
    return tasks


def two_layers(d, C):
    return nn.Sequential(nn.Linear(d, 6), nn.Tanh(), nn.Linear(6, C)).double()


@pytest.mark.parametrize("regularizer", [TaskRelationship(0.01), Common(0.05)], ids=list(KINDS))
@pytest.mark.parametrize("kind", [FedU, partial(FedPer, coupled=True)], ids=["networks", "heads"])
def test_planted_groups_are_found(kind, regularizer):
    learner = kind(Problem(groups(), CrossEntropy(), regularizer), LocalSGD(0.1, 5), two_layers)
    for round in range(30):
        learner.step(round)
    Sigma = np.linalg.inv(learner.Omega.numpy())
    correlation = Sigma / np.sqrt(np.outer(Sigma.diagonal(), Sigma.diagonal()))
    alike = np.equal.outer(np.arange(8) < 4, np.arange(8) < 4)
    assert correlation[alike].min() > correlation[~alike].max() + 0.2


@settings(max_examples=8)
@given(
    t=topologies(max_H=4, max_K=7),
    gone=st.sampled_from((0.0, 0.4)),
    wire=st.sampled_from((None, "float32", "int8")),
    seed=st.integers(0, 1000),
)
def test_every_transport_gives_the_same_bits(t, gone, wire, seed):
    """Also for users and relays that drop out and return: relays hand on Ω with the rest of the state."""
    rng = np.random.default_rng(seed)
    always = int(np.flatnonzero(t.G.any(axis=1))[0])
    away = [set(np.flatnonzero(rng.random(t.H) < gone).tolist()) - {always} for _ in range(4)]
    communicators = [Uncoded(t, wire=wire), CodedHierarchical(t, wire=wire, aggregators="all")]
    if not gone:  # in a round without its aggregators, no IV counts
        communicators.append(CodedHierarchical(t, wire=wire))
    results = []
    for communicator in communicators:
        problem = Problem(groups(K=t.K, n=9), CrossEntropy(), Common(0.1))
        learner = FedU(problem, LocalSGD(0.1, 1), nn.Linear, participation=Participation(0.4, dropout=gone))
        for round, absent in enumerate(away):
            communicator.round(round, learner.users, learner.aggregator, absent)
        results.append((learner.W, learner.Omega, learner.metrics()))
    for W, Omega, figures in results[1:]:
        assert torch.equal(W, results[0][0])
        assert torch.equal(Omega, results[0][1])
        assert figures == results[0][2]


@pytest.mark.parametrize("lam", [1e-6, 1.0, 1e6])
def test_no_coupling_is_too_strong(lam):
    learner = FedU(Problem(groups(), CrossEntropy(), Common(lam)), LocalSGD(0.1), two_layers)
    for round in range(5):
        learner.step(round)
    assert learner.W.isfinite().all()
    users, ivs = learner.users.local_update(5)
    with pytest.raises(RangeError, match=r"solver\.step"):
        learner.aggregator.update(users, ivs / 0)
