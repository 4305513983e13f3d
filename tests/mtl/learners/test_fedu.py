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
from torch.utils.data import TensorDataset

from hmtl import Federation
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
        pull = 0.2 * sum(WEIGHTS[k, j] * (old[k] - old[j]) for j in range(K)) + 0.1 * (old[k] - fedu.model.start)
        vector_to_parameters(old[k] - rate * budgets[k] * pull, module.parameters())


@pytest.mark.parametrize(("precision", "reduction"), [("float32", "mean"), ("float64", "sum")])
@pytest.mark.parametrize("make", [nn.Linear, mlp, partial(cnn, channels=2)], ids=["linear", "mlp", "cnn"])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.slow
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


def best_coupling(lam, changes):
    """λΣ⁻¹ for the best Σ of changes [K, m], K ≤ m, of trace 1; its eigenvalues are at least 1 % of the largest."""
    s, V = np.linalg.eigh(changes @ changes.T)
    s = np.sqrt(np.maximum(s, 1e-4 * s[-1]))
    return lam * (V * (s.sum() / s)) @ V.T


@pytest.mark.parametrize("personal", [None, "2"], ids=["FedU", "FedPer"])
def test_learned_relations_are_those_of_changes_from_pretrained_networks(personal):
    """A pretrained network stays where it is, whatever λ is: the public call beside a loop and numpy."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, C))
    with torch.no_grad():
        first[2].weight.mul_(10)
    data = [TensorDataset(torch.randn(n, 6), torch.arange(n) % C) for n in COUNTS]
    learner = FedPer(personal, coupled=True) if personal else FedU()
    federation = Federation(
        first, data, algorithm=learner, solver=LocalSGD(0.2, 2, 100), regularizer=TaskRelationship(5.0)
    )
    modules = [copy.deepcopy(first) for _ in data]
    shares, x = torch.tensor(COUNTS) / sum(COUNTS), 0.2 * 2
    for _ in range(3):
        for module, rows in zip(modules, data, strict=True):
            optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(module(rows.tensors[0]), rows.tensors[1]).backward()
                optimizer.step()
        parts = [each[2] if personal else each for each in modules]
        start = parameters_to_vector((first[2] if personal else first).parameters()).detach().double()
        D = torch.stack([parameters_to_vector(part.parameters()).detach().double() for part in parts]) - start
        D = np.linalg.solve(np.eye(K) + x * best_coupling(5.0, D.numpy()), D.numpy())
        for part, change in zip(parts, torch.from_numpy(D), strict=True):
            vector_to_parameters((start + change).float(), part.parameters())
        if personal:
            shared = [parameters_to_vector(each[0].parameters()).detach() for each in modules]
            for each in modules:
                vector_to_parameters(torch.stack(shared).T @ shares, each[0].parameters())
    for got, want in zip(federation.train(3), modules, strict=True):
        torch.testing.assert_close(
            parameters_to_vector(got.parameters()), parameters_to_vector(want.parameters()), rtol=0, atol=1e-5
        )
    assert (parameters_to_vector(got[2].parameters()) - parameters_to_vector(first[2].parameters())).abs().max() < 0.3


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
    """min over W and Σ is that of the losses and (λ/2)‖W − W_start‖_*², which an interior-point solver finds."""
    problem = random_problem(2, regularizer=TaskRelationship(0.05, floor=1e-8), loss=Logistic()).problem
    W, losses = cp.Variable((problem.d, problem.K)), 0
    for k, task in enumerate(problem.tasks):
        margins = cp.multiply(task.y_train.numpy(), task.x_train.numpy() @ W[:, k])
        losses += cp.sum(cp.logistic(-margins)) / len(task.y_train)
    fedu = coupled(problem, LocalSGD(0.3, 1, 100, 0.03), partial(nn.Linear, bias=False), 200)
    changes = W - np.outer(fedu.model.start.numpy(), np.ones(problem.K))
    value = cp.Problem(cp.Minimize(losses + 0.025 * cp.square(cp.normNuc(changes)))).solve(solver=cp.CLARABEL)
    assert value * (1 - 1e-5) <= fedu.metrics()["primal"] <= value * (1 + 2e-3)


def test_users_who_act_on_older_sums_settle_where_the_objective_does(random_problem):
    """With steps that become short, the gradient of the objective vanishes."""
    problem = random_problem(2, regularizer=Mean(0.5, 0.2), loss=Logistic()).problem
    fedu = coupled(problem, LocalSGD(0.5, 1, 100, 0.1), nn.Linear, 400)
    W = fedu.W.T.double().requires_grad_()
    loss = sum(
        problem.s[k] * problem.loss(x.x_train @ W[k, :-1] + W[k, -1], x.y_train).sum()
        for k, x in enumerate(problem.tasks)
    )
    A = problem.regularizer.coupling(LowRank.multiple(1, 4)).dense()
    change = W - fedu.model.start
    (gradient,) = torch.autograd.grad(loss + 0.5 * (A @ change * change).sum(), W)
    assert gradient.abs().max() < 5e-3
    assert W.abs().max() > 0.05
