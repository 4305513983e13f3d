"""FedU beside a plain loop over modules and an interior-point solver; strong couplings and planted groups."""

import copy
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from problems import random_tasks
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hmtl.data import Task
from hmtl.mtl import (
    Common,
    CrossEntropy,
    FedPer,
    FedU,
    Graph,
    LocalSGD,
    Logistic,
    LowRank,
    Mean,
    NetworkAlgorithm,
    Participation,
    Problem,
    Squared,
    TaskRelationship,
    cnn,
    mlp,
)

K, D, C = 4, 16, 3
COUNTS = (7, 12, 5, 10)
WEIGHTS = np.array([[0, 1, 0.5, 0], [1, 0, 0, 2], [0.5, 0, 0, 0.3], [0, 2, 0.3, 0]])
LOSSES = {"classes": CrossEntropy(), "signs": Logistic(), "numbers": Squared()}


@pytest.fixture
def graph(tmp_path):
    """`graph(η, λ2, weights)`."""

    def graph(lam=0.2, lam2=0.1, weights=WEIGHTS):
        np.savetxt(tmp_path / "weights.csv", weights, delimiter=",")
        return Graph(lam, lam2, path=tmp_path / "weights.csv")

    return graph


def coupled(problem, solver, make, rounds=0, **options):
    """FedU after some rounds."""
    algorithm = NetworkAlgorithm(FedU(), problem, solver, make, **options)
    for round in range(rounds):
        algorithm.step(round)
    return algorithm


def double(make):
    return lambda d, C: make(d, C).double()


def plain_round(fedu, modules, kind, reduction, round, budgets, rate):
    """One round as anyone would write it first: a loop over users, each with its own module and optimizer."""
    order = fedu.solver.draw(fedu.seed, round, range(K), COUNTS).split(fedu.solver.steps(COUNTS).tolist())
    for module, task, batches, budget in zip(modules, fedu.problem.tasks, order, budgets, strict=True):
        scale = 1 if reduction == "mean" else len(task.y_train)
        optimizer = torch.optim.SGD(module.parameters(), lr=rate * scale)
        for batch in batches[:budget]:
            at = batch[batch >= 0]
            p, y = module(task.x_train[at].to(next(module.parameters()))), task.y_train[at]
            optimizer.zero_grad()
            {
                "classes": lambda p=p, y=y: F.cross_entropy(p, y),
                "signs": lambda p=p, y=y: F.soft_margin_loss(p[:, 0], y),
                "numbers": lambda p=p, y=y: F.mse_loss(p[:, 0], y.to(p)) / 2,
            }[kind]().backward()
            optimizer.step()
    old = [parameters_to_vector(module.parameters()).detach() for module in modules]
    for k, module in enumerate(modules):
        pull = 0.2 * sum(WEIGHTS[k, j] * (old[k] - old[j]) for j in range(K)) + 0.1 * old[k]
        vector_to_parameters(old[k] - rate * budgets[k] * pull, module.parameters())


@pytest.mark.parametrize(("precision", "reduction"), [("float32", "mean"), ("float64", "sum")])
@pytest.mark.parametrize("make", [nn.Linear, mlp, partial(cnn, channels=2)], ids=["linear", "mlp", "cnn"])
@pytest.mark.parametrize("kind", LOSSES)
def test_agrees_with_a_loop_over_modules(kind, make, reduction, precision, graph):
    make = make if precision == "float32" else double(make)
    step = 0.03 if reduction == "mean" else 0.003
    problem = Problem(random_tasks(LOSSES[kind], COUNTS), LOSSES[kind], graph(), reduction)
    part = Participation(low=0.3, schedule=[(1, 2)])
    fedu = coupled(problem, LocalSGD(step, 2, 4, 0.5), make, seed=3, participation=part)
    modules = [copy.deepcopy(fedu.model.module) for _ in range(K)]
    usual = torch.tensor([2 * -(-n // 4) for n in COUNTS])
    for round in range(3):
        budgets = fedu.participation.budgets(usual, 3, round)
        assert (int(budgets[2]) == 0) == (round == 1)
        plain_round(fedu, modules, kind, reduction, round, budgets.tolist(), step / (1 + 0.5 * round))
        fedu.step(round)
    want = torch.stack([parameters_to_vector(module.parameters()).detach() for module in modules], dim=1)
    assert fedu.W.dtype == getattr(torch, precision)
    assert (fedu.W - fedu.model.start[:, None]).abs().max() > 1e-3
    torch.testing.assert_close(fedu.W, want, rtol=0, atol=1e-5 if precision == "float32" else 1e-12)


@pytest.mark.parametrize("kind", ["graph", "sums", "learned"])
def test_no_coupling_is_too_strong(kind, graph):
    """From none to far beyond where one long step would diverge: the stronger, the nearer the models."""
    apart = []
    for lam in (1e-5, 1, 1000):
        regularizer = {"graph": lambda lam: graph(lam, 0.01), "sums": lambda lam: Mean(lam, 0.01), "learned": Common}
        problem = Problem(random_tasks(Logistic(), COUNTS), Logistic(), regularizer[kind](lam))
        W = coupled(problem, LocalSGD(0.1), nn.Linear, 20).W
        assert W.isfinite().all()
        assert W.abs().max() > 0.01
        apart.append(float((W - W.mean(1, keepdim=True)).norm()))
    if kind != "learned":
        assert apart == sorted(apart, reverse=True)
        assert apart[-1] < 1e-2 * apart[0]


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


@pytest.mark.parametrize("regularizer", [TaskRelationship(0.01), Common(0.05)], ids=["Ω", "common and Ω"])
@pytest.mark.parametrize("learner", [FedU(), FedPer(coupled=True)], ids=["networks", "heads"])
def test_planted_groups_are_found(learner, regularizer):
    problem = Problem(groups(), CrossEntropy(), regularizer)
    algorithm = NetworkAlgorithm(learner, problem, LocalSGD(0.1, 5), two_layers)
    for round in range(30):
        algorithm.step(round)
    Sigma = np.linalg.inv(algorithm.Omega.dense().numpy())
    correlation = Sigma / np.sqrt(np.outer(Sigma.diagonal(), Sigma.diagonal()))
    alike = np.equal.outer(np.arange(8) < 4, np.arange(8) < 4)
    assert correlation[alike].min() > correlation[~alike].max() + 0.2


def test_falling_steps_reach_the_joint_optimum(random_problem):
    """min over W and Σ is the minimum of the losses and (λ/2)‖W‖_*², which an interior-point solver finds."""
    problem = random_problem(2, regularizer=TaskRelationship(0.05, floor=1e-8), loss=Logistic()).problem
    W, losses = cp.Variable((problem.d, problem.K)), 0
    for k, task in enumerate(problem.tasks):
        margins = cp.multiply(task.y_train.numpy(), task.x_train.numpy() @ W[:, k])
        losses += cp.sum(cp.logistic(-margins)) / len(task.y_train)
    value = cp.Problem(cp.Minimize(losses + 0.025 * cp.square(cp.normNuc(W)))).solve(solver=cp.CLARABEL)
    fedu = coupled(problem, LocalSGD(0.3, 1, 100, 0.03), partial(nn.Linear, bias=False), 200)
    assert value * (1 - 1e-5) <= fedu.metrics()["primal"] <= value * (1 + 2e-3)


def test_users_who_act_on_older_sums_settle_where_the_objective_does(random_problem):
    """With steps that become short, the gradient of the objective vanishes."""
    problem = random_problem(2, regularizer=Mean(0.5, 0.2), loss=Logistic()).problem
    W = coupled(problem, LocalSGD(0.5, 1, 100, 0.1), nn.Linear, 400).W.T.double().requires_grad_()
    loss = sum(
        problem.s[k] * problem.loss(x.x_train @ W[k, :-1] + W[k, -1], x.y_train).sum()
        for k, x in enumerate(problem.tasks)
    )
    A = problem.regularizer.coupling(LowRank.multiple(1, 4)).dense()
    (gradient,) = torch.autograd.grad(loss + 0.5 * (A @ W * W).sum(), W)
    assert gradient.abs().max() < 5e-3
    assert W.abs().max() > 0.05
