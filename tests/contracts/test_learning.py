"""Every loss with every regularizer: certified, monotone, and optimal by an independent solver."""

from functools import cache
from itertools import cycle, pairwise, product

import cvxpy as cp
import numpy as np
import pytest
import torch

from hmtl.data import Task
from hmtl.mtl import (
    MOCHA,
    SDCA,
    Clustered,
    CoCoA,
    Dense,
    Graph,
    Hinge,
    Local,
    Logistic,
    Mean,
    Participation,
    Problem,
    Ridge,
    SmoothHinge,
    Squared,
    TaskRelationship,
)
from hmtl.mtl.solvers.sdca import torch_pass

K, D = 4, 3
LOSSES = {"hinge": Hinge(), "smooth_hinge": SmoothHinge(0.5), "squared": Squared(), "logistic": Logistic()}
REGULARIZERS = ("ridge", "task_relationship", "task_relationship2", "mean", "graph", "clustered", "shared")
COVER = set(zip(cycle(LOSSES), REGULARIZERS, strict=False))
"""Pairs in which each loss and each regularizer occurs."""

pairs = [pytest.param(*pair, marks=() if pair in COVER else pytest.mark.slow) for pair in product(LOSSES, REGULARIZERS)]
every_pair = pytest.mark.parametrize(("loss", "name"), pairs)


class BatchedSDCA(SDCA):
    """SDCA that always runs the pass in torch."""

    def forward(self, loss, rows, subproblem, order, budgets):
        return torch_pass(loss, rows, subproblem, order, budgets)


@cache
def data():
    """Return rows of unequal users, one of them zeros, labels with noise, and numbers for regression."""
    rng = np.random.default_rng(7)
    X = [rng.normal(size=(n, D)) for n in (6, 7, 8, 9)]
    X[1][2] = 0
    y = [np.where(rng.random(len(x)) < 0.25, -1, 1) * np.sign(x @ rng.normal(size=D) + 0.01) for x in X]
    return X, y, [x.sum(1) + rng.normal(size=len(x)) for x in X]


def tasks(loss):
    X, labels, numbers = data()
    y = numbers if loss == "squared" else labels
    rows = [tuple(map(torch.from_numpy, row)) for row in zip(X, y, strict=True)]
    return [Task(str(k), *row, *row) for k, row in enumerate(rows)]


def spd(seed):
    root = np.random.default_rng(seed).normal(size=(K, K))
    return root @ root.T / K + 0.5 * np.eye(K)


@cache
def weights():
    a = np.random.default_rng(3).uniform(0, 2, (K, K))
    return np.triu(a, 1) + np.triu(a, 1).T


def coupling(name):
    """Return A as in the papers; None for one shared model."""
    eye = np.eye(K)
    return {
        "ridge": 0.3 * eye,
        "task_relationship": 0.3 * spd(1),
        "task_relationship2": 2 * (0.3 * spd(1) + 0.05 * eye),
        "mean": 2 * (0.3 * (eye - 1 / K) + 0.1 * eye),
        "graph": 0.3 * (np.diag(weights().sum(1)) - weights()) + 0.2 * eye,
        "clustered": 0.3 * spd(2),
        "shared": None,
    }[name]


class StartedTaskRelationship(TaskRelationship):
    def start(self, K, size):
        return Dense(torch.from_numpy(spd(1)))


class StartedClustered(Clustered):
    def start(self, K, size):
        return Dense(torch.from_numpy(spd(2)))


def mocha(loss, name, folder, reduction="mean", **others):
    """Return MOCHA for a loss and a regularizer whose Ω is far from the identity."""
    solver = others.pop("solver", SDCA(1.0))
    if name in ("shared", "ridge"):
        kind, lam = (Local, 0.3) if name == "ridge" else (CoCoA, 0.3)
        if kind is Local:  # it has no momentum
            others.pop("accelerated", None)
        return kind(Problem(tasks(loss), LOSSES[loss], Ridge(9.9), reduction), solver, lam, **others)
    np.savetxt(folder / "weights.csv", weights(), delimiter=",")
    regularizer = {
        "task_relationship": StartedTaskRelationship(0.3),
        "task_relationship2": StartedTaskRelationship(0.3, 0.05),
        "mean": Mean(0.3, 0.1),
        "graph": Graph(0.3, 0.2, path=folder / "weights.csv"),
        "clustered": StartedClustered(0.3),
    }[name]
    others.setdefault("omega_every", 0)
    return MOCHA(Problem(tasks(loss), LOSSES[loss], regularizer, reduction), solver, **others)


@cache
def optimum(loss, name, reduction="mean"):
    """Return the optimal value by an interior-point solver."""
    A = coupling(name)
    if A is None:
        w = cp.Variable(D)
        models, penalty = [w] * K, 0.15 * cp.sum_squares(w)
    else:
        W = cp.Variable((D, K))
        models, penalty = [W[:, k] for k in range(K)], 0.5 * cp.sum_squares(W @ np.linalg.cholesky(A))
    total = penalty
    for task, w in zip(tasks(loss), models, strict=True):
        x, y = task.x_train.numpy(), task.y_train.numpy()
        margin = cp.multiply(y, x @ w)
        losses = {
            "hinge": lambda m=margin: cp.pos(1 - m),
            "smooth_hinge": lambda m=margin: cp.huber(cp.pos(1 - m), 0.5),
            "squared": lambda m=x @ w - y: cp.square(m) / 2,
            "logistic": lambda m=margin: cp.logistic(-m),
        }[loss]()
        total += (1 / len(y) if reduction == "mean" else 1) * cp.sum(losses)
    return cp.Problem(cp.Minimize(total)).solve(solver=cp.CLARABEL)


def until_certified(algorithm, tolerance=5e-7, most=4000):
    """Play rounds until the relative gap is small enough; return the metrics."""
    start = 0
    while start < most:
        for round in range(start, start + 40):
            algorithm.step(round)
        start += 40
        now = algorithm.metrics()
        assert now["gap"] >= -1e-9
        if now["gap"] < tolerance * now["primal"]:
            return now
    raise AssertionError(f"gap {now['gap']} after {most} rounds")


@pytest.mark.parametrize("accelerated", [True, pytest.param(False, marks=pytest.mark.slow)])
@every_pair
def test_optimum(loss, name, accelerated, tmp_path):
    """The value of the primal is within 1e-6 of an independent solver's."""
    now = until_certified(mocha(loss, name, tmp_path, accelerated=accelerated))
    assert now["primal"] == pytest.approx(optimum(loss, name), rel=1e-6)


@every_pair
def test_dual_never_falls_by_either_pass(loss, name, tmp_path):
    """The compiled pass and the one in torch lead to the same models, and without momentum each round helps."""
    models = []
    for solver in (SDCA(0.5), BatchedSDCA(0.5)):
        algorithm = mocha(loss, name, tmp_path, solver=solver, accelerated=False)
        seen = [algorithm.metrics()]
        for round in range(15):
            algorithm.step(round)
            seen.append(algorithm.metrics())
        assert all(now["gap"] >= -1e-9 for now in seen)
        assert all(now["dual"] >= before["dual"] - 1e-12 for before, now in pairwise(seen))
        assert seen[-1]["dual"] > seen[0]["dual"]
        models.append(algorithm.W)
    torch.testing.assert_close(*models, rtol=0, atol=1e-10)


PARTICIPATIONS = {
    "stragglers": Participation(low=0.1),
    "speeds": Participation(speeds=[1.0, 0.2, 0.5, 0.1]),
    "dropout": Participation(dropout=0.1),
    "everything": Participation(0.1, 0.9, [1.0, 0.9, 0.5, 0.7], 0.3, [(round, 2) for round in range(0, 100, 2)]),
}


@pytest.mark.parametrize(
    ("loss", "name", "participation"),
    [
        ("hinge", "task_relationship", "stragglers"),
        ("squared", "shared", "speeds"),
        ("hinge", "graph", "dropout"),
        ("logistic", "mean", "everything"),
    ],
)
def test_participation_does_not_change_the_optimum(loss, name, participation, tmp_path):
    algorithm = mocha(loss, name, tmp_path, participation=PARTICIPATIONS[participation], seed=3)
    now = until_certified(algorithm, most=8000)
    assert now["primal"] == pytest.approx(optimum(loss, name), rel=1e-6)


@pytest.mark.parametrize("loss", ["hinge", "logistic"])
def test_averaged_updates_reach_the_same_optimum(loss, tmp_path):
    cocoa = mocha(loss, "shared", tmp_path, adding=False)
    assert until_certified(cocoa)["primal"] == pytest.approx(optimum(loss, "shared"), rel=1e-6)
    assert not np.ptp(cocoa.W.numpy(), axis=1).any()


def test_adding_and_averaging(tmp_path):
    """CoCoA+ adds updates made with σ′ = K, CoCoA averages updates made with σ′ = 1."""
    for adding in (True, False):
        cocoa = mocha("squared", "shared", tmp_path, adding=adding)
        users, ivs = cocoa.users.local_update(0)
        ivs = ivs[:]
        meaning = cocoa.aggregator.hold_meaning()
        models = meaning.models(users, cocoa.aggregator.update(users, meaning.total_of(users, ivs)))[:, :D]
        ivs = ivs[:, :D]
        torch.testing.assert_close(models, (ivs.sum(0) / 0.3 / (1 if adding else K)).expand(K, -1))
    averaged = mocha("squared", "shared", tmp_path, adding=False)
    X, y = data()[0][0], data()[2][0]
    averaged.solver.draw = lambda *of: torch.zeros(sum(map(len, data()[0])), dtype=torch.int64)
    averaged.solver.steps = lambda counts: torch.ones(K, dtype=torch.int64)
    _, ivs = averaged.users.local_update(0)
    ivs = ivs[:]
    # the exact step on one row of a single user: a = y/(1 + s‖x‖²/λ), s = 1/n
    want = y[0] / (1 + X[0] @ X[0] / len(y) / 0.3) * X[0] / len(y)
    np.testing.assert_allclose(ivs[0].numpy(), want, rtol=1e-10)
