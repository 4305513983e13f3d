"""FedU and FedAvg: a plain loop over modules, an interior-point solver, coupling, state, messages, refusals."""

import copy
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hmtl.data import Task
from hmtl.errors import ConfigError
from hmtl.mtl import (
    SDCA,
    CrossEntropy,
    FedAvg,
    FedU,
    Graph,
    LocalSGD,
    Logistic,
    Mean,
    Participation,
    Problem,
    Ridge,
    Squared,
    cnn,
    mlp,
)

K, D, C = 4, 16, 3
COUNTS = (7, 12, 5, 10)
WEIGHTS = np.array([[0, 1, 0.5, 0], [1, 0, 0, 2], [0.5, 0, 0, 0.3], [0, 2, 0.3, 0]])
LOSSES = {"classes": CrossEntropy(), "signs": Logistic(), "numbers": Squared()}


def tasks(kind, d=D, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for k, n in enumerate(COUNTS):
        x = rng.normal(size=(n + 6, d))
        scores = x @ rng.normal(size=(d, C)) + rng.normal(size=(n + 6, C))
        y = {"classes": scores.argmax(1), "signs": np.sign(scores[:, 0]), "numbers": scores[:, 0]}[kind]
        y[:2] = 0, 1
        if kind == "signs":
            y[:2] = 1, -1
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        made.append(Task(str(k), x[:n], y[:n], x[n:], y[n:], C if kind == "classes" else None))
    return made


@pytest.fixture
def graph(tmp_path):
    """`graph(η, λ2, weights)`."""

    def graph(lam=0.2, lam2=0.1, weights=WEIGHTS):
        np.savetxt(tmp_path / "weights.csv", weights, delimiter=",")
        return Graph(lam, lam2, path=tmp_path / "weights.csv")

    return graph


def rounds(algorithm, first, last):
    for round in range(first, last):
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
    problem, part = Problem(tasks(kind), LOSSES[kind], graph(), reduction), Participation(low=0.3, schedule=[(1, 2)])
    fedu = FedU(problem, LocalSGD(step, 2, 4, 0.5), make, seed=3, participation=part)
    modules = [copy.deepcopy(fedu.model.module) for _ in range(K)]
    usual = torch.tensor([2 * -(-n // 4) for n in COUNTS])
    for round in range(3):
        budgets = fedu.participation.budgets(usual, 3, round)
        assert (int(budgets[2]) == 0) == (round == 1)
        plain_round(fedu, modules, kind, reduction, round, budgets.tolist(), step / (1 + 0.5 * round))
        rounds(fedu, round, round + 1)
    want = torch.stack([parameters_to_vector(module.parameters()).detach() for module in modules], dim=1)
    assert fedu.W.dtype == getattr(torch, precision)
    assert (fedu.W - fedu.model.start[:, None]).abs().max() > 1e-3
    torch.testing.assert_close(fedu.W, want, rtol=0, atol=1e-5 if precision == "float32" else 1e-12)


def optimum(problem, eta, lam2, reduction="mean"):
    """Models and value at the optimum, by an interior-point solver; the penalty written as the papers do."""
    W = cp.Variable((D // 4, K))
    total = lam2 / 2 * cp.sum_squares(W)
    total += sum(eta / 4 * WEIGHTS[k, j] * cp.sum_squares(W[:, k] - W[:, j]) for k in range(K) for j in range(K))
    for k, task in enumerate(problem.tasks):
        margins = cp.multiply(task.y_train.numpy(), task.x_train.numpy() @ W[:, k])
        total += cp.sum(cp.logistic(-margins)) / (len(task.y_train) if reduction == "mean" else 1)
    value = cp.Problem(cp.Minimize(total)).solve(solver=cp.CLARABEL)
    return W.value, value


@pytest.mark.parametrize(
    ("solver", "participation", "reduction"),
    [
        (LocalSGD(0.3, 1, 100, 0.02), Participation(), "mean"),
        pytest.param(LocalSGD(0.05, 2, 3, 0.1), Participation(), "sum", marks=pytest.mark.slow),
        pytest.param(LocalSGD(0.3, 4, 100, 0.05), Participation(0.3, dropout=0.2), "mean", marks=pytest.mark.slow),
    ],
    ids=["gradient descent", "minibatches", "local steps, stragglers and dropouts"],
)
def test_falling_steps_reach_the_optimum(solver, participation, reduction, graph):
    problem = Problem(tasks("signs", D // 4), Logistic(), graph(0.2, 0.1), reduction)
    W, value = optimum(problem, 0.2, 0.1, reduction)
    fedu = FedU(problem, solver, partial(nn.Linear, bias=False), participation=participation)
    far = fedu.metrics()["primal"]
    near = rounds(fedu, 0, 400).metrics()["primal"]
    assert far > 1.05 * value
    assert value * (1 - 1e-6) <= near <= value * (1 + 1e-3)
    np.testing.assert_allclose(fedu.W.numpy(), W, rtol=0, atol=0.05 * abs(W).max())


def test_coupling_is_real(graph):
    """Another weight gives another result, and more of it brings models closer; the uncoupled user is untouched."""

    def models(lam, weights=WEIGHTS):
        problem = Problem(tasks("classes"), CrossEntropy(), graph(lam, 0.01, weights))
        return rounds(FedU(problem, LocalSGD(0.05), nn.Linear), 0, 10).W.T

    def apart(W):
        return float(torch.cdist(W, W)[0, 1])

    weak, strong = models(0.01), models(1.0)
    assert apart(strong) < 0.7 * apart(weak)
    other = WEIGHTS.copy()
    other[0, 1] = other[1, 0] = 3
    assert (models(0.1, other) - models(0.1)).abs().max() > 1e-3
    alone = WEIGHTS.copy()
    alone[3] = alone[:, 3] = 0
    assert torch.equal(models(0.1, alone)[3], models(1.0, alone)[3])
    assert not torch.equal(models(0.1, alone)[0], models(1.0, alone)[0])


def test_no_coupling_is_too_strong(graph):
    """From none to far beyond where one long step would diverge: the stronger, the nearer the models."""
    apart = []
    for lam in (1e-5, 0.1, 1, 10, 100):
        problem = Problem(tasks("signs"), Logistic(), graph(lam, 0.01))
        W = rounds(FedU(problem, LocalSGD(0.1), nn.Linear), 0, 60).W
        assert W.isfinite().all()
        assert W.abs().max() > 0.01
        apart.append(float((W - W.mean(1, keepdim=True)).norm()))
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 1e-3 * apart[0]


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        pytest.param("classes", partial(cnn, channels=4), id="cnn", marks=pytest.mark.slow),
        pytest.param("signs", mlp, id="mlp"),
        pytest.param("numbers", nn.Linear, id="linear"),
    ],
)
def test_networks_learn(kind, make):
    fedu = FedU(Problem(tasks(kind), LOSSES[kind], Ridge(1e-3)), LocalSGD(0.05, 20, 4), make)
    before, after = fedu.metrics(), rounds(fedu, 0, 4).metrics()
    assert after["primal"] < 0.4 * before["primal"]
    assert after["train_error"] < 0.2 if kind != "numbers" else after["train_error"] < 0.2 * before["train_error"]
    figures = {f"{split}_{what}" for split in ("train", "test") for what in ("error", "error_worst")}
    r2 = {"train_r2", "test_r2"} if kind == "numbers" else {"test_balanced_error", "train_balanced_error_median"}
    assert set(after) >= {"primal"} | figures | r2


@pytest.mark.parametrize("kind", LOSSES)
def test_metrics(kind, graph):
    """Objective and errors as a loop over modules finds them."""
    fedu = rounds(FedU(Problem(tasks(kind), LOSSES[kind], graph()), LocalSGD(), mlp), 0, 2)
    now, errors, loss = fedu.metrics(), {"train": [], "test": []}, 0.0
    for k, task in enumerate(fedu.problem.tasks):
        module = copy.deepcopy(fedu.model.module)
        vector_to_parameters(fedu.W[:, k].contiguous(), module.parameters())
        for split in errors:
            x, y = getattr(task, f"x_{split}").float(), getattr(task, f"y_{split}")
            p = module(x).detach().numpy().astype(float)
            wrong = {
                "classes": lambda p=p, y=y: p.argmax(1) != y.numpy(),
                "signs": lambda p=p, y=y: np.sign(p[:, 0]) != y.numpy(),
                "numbers": lambda p=p, y=y: (p[:, 0] - y.numpy()) ** 2,
            }[kind]()
            errors[split].append(np.mean(wrong))
            if split == "train":
                y = y.numpy()
                loss += {
                    "classes": lambda p=p, y=y: np.log(np.exp(p).sum(1)) - p[np.arange(len(y)), y],
                    "signs": lambda p=p, y=y: np.log1p(np.exp(-y * p[:, 0])),
                    "numbers": lambda p=p, y=y: (p[:, 0] - y) ** 2 / 2,
                }[kind]().mean()
    W = fedu.W.numpy().astype(float)
    pull = sum(0.05 * WEIGHTS[k, j] * np.sum((W[:, k] - W[:, j]) ** 2) for k in range(K) for j in range(K))
    assert now["primal"] == pytest.approx(loss + pull + 0.05 * np.sum(W**2), rel=1e-5)
    for split, each in errors.items():
        assert now[f"{split}_error"] == pytest.approx(np.mean(each), rel=1e-5)
        assert now[f"{split}_error_worst"] == pytest.approx(np.max(each), rel=1e-5)


def test_steps_are_told(graph):
    """The aggregator learns by message who did how much, whatever anybody had agreed on."""
    problem = Problem(tasks("signs"), Logistic(), graph())
    slow = FedU(problem, LocalSGD(), mlp, participation=Participation(low=0.2, high=0.4))
    plain = FedU(problem, LocalSGD(), mlp)
    usual = slow.solver.steps(COUNTS)
    for round in range(3):
        users, ivs = slow.users.local_update(round)
        steps = ivs[:, -1].long()
        assert torch.equal(steps, slow.participation.budgets(usual, 0, round))
        assert (steps < usual).all()
        assert torch.equal(slow.aggregator.update(users, ivs), plain.aggregator.update(users, ivs.clone()))


def test_descriptions(graph):
    """FedAvg says nothing of a regularizer, which plays no part in it."""
    problem = Problem(tasks("signs"), Logistic(), graph())
    common = {"loss": "logistic", "error_measure": "share misclassified"}
    described = FedU(problem, LocalSGD(), mlp).describe()
    assert described == {"algorithm": "fedu", "regularizer": "graph", "lam": 0.2, **common}
    assert FedAvg(problem, LocalSGD(), mlp).describe() == {"algorithm": "fedavg", **common}
    assert FedU(Problem(tasks("signs"), Logistic(), Mean(0.1)), LocalSGD(), mlp).setup() is None


def with_dropout(d, C, share=0.3):
    return nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Dropout(share), nn.Linear(8, C))


def test_the_seed_decides():
    def models(seed, make=with_dropout):
        state = torch.random.get_rng_state()
        problem = Problem(tasks("classes"), CrossEntropy(), Mean(0.1))
        W = rounds(FedU(problem, LocalSGD(), make, seed=seed), 0, 2).W
        assert torch.equal(state, torch.random.get_rng_state())
        return W

    assert torch.equal(models(1), models(1))
    assert not torch.equal(models(1), models(2))
    assert not torch.equal(models(1), models(1, partial(with_dropout, share=0.0)))


class SameOrder(LocalSGD):
    """Visits the rows in the same order in each round."""

    def draw(self, seed, round, *of):
        return super().draw(seed, 0, *of)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_each_round_drops_others(share):
    make = partial(with_dropout, share=share)
    fedu = FedU(Problem(tasks("classes"), CrossEntropy(), Mean(0.1)), SameOrder(), make)
    (_, first), (_, second) = fedu.users.local_update(0), fedu.users.local_update(1)
    assert torch.equal(first, second) == (share == 0)


def sized(d, C):
    return nn.Linear(d, C + 1)


def normalised(d, C):
    return nn.Sequential(nn.Linear(d, C), nn.BatchNorm1d(C))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sized, r"shape \(2, 2\) for 2 rows, not \(2, 1\)"),
        (normalised, "BatchNorm"),
        (nn.Conv2d, "kernel_size"),
        (nn.Linear(D, 1), "_partial_"),
        (lambda d, C: cnn(d - 1, C), "d=15 is not side²"),
        (lambda d, C: nn.Identity(), "d="),
        (lambda d, C: nn.Linear(d + 1, C), "d="),
    ],
)
def test_refused_models(make, message):
    with pytest.raises(ConfigError, match=message):
        FedU(Problem(tasks("signs"), Logistic(), Ridge(0.1)), LocalSGD(), make)


def test_refusals(graph):
    problem = Problem(tasks("signs"), Logistic(), graph())
    with pytest.raises(ConfigError, match="solver=sgd"):
        FedU(problem, SDCA(), nn.Linear)
    with pytest.raises(ConfigError, match="2 numbers for K=4"):
        FedU(problem, LocalSGD(), nn.Linear, participation=Participation(speeds=[1.0, 0.5]))


def ring(size, hops=1):
    """Each user next to the one before and the one after, by weights drawn."""
    rng, a = np.random.default_rng(0), np.zeros((size, size))
    for k in range(size):
        for hop in range(1, hops + 1):
            a[k, (k + hop) % size] = rng.uniform(0.1, 2)
    return np.maximum(a, a.T) * (1 - np.eye(size))


def on_graph(weights, lam, lam2, tmp_path):
    """FedU of as many users as the graph has, coupled by it."""
    np.savetxt(tmp_path / "ring.csv", weights, delimiter=",")
    many = [tasks("signs")[0] for _ in weights]
    problem = Problem(many, Logistic(), Graph(lam, lam2, path=tmp_path / "ring.csv"))
    return FedU(problem, LocalSGD(0.05, epochs=2, batch=4), nn.Linear)


@pytest.mark.parametrize("lam", [0.2, 2.0, 3e8])
def test_a_coupling_step_is_a_product(lam, tmp_path):
    """The models are (I − D A)^parts W, by dense matrices, also if A has few entries or there are very many parts."""
    learner = on_graph(ring(40), lam, 0.1, tmp_path)
    users, ivs = learner.users.local_update(0)
    steps, W, A = ivs[:, -1].double(), ivs[:, :-1].double(), learner.aggregator.descent.A
    longest = 0.05 * float(steps.max()) * float(torch.linalg.eigvalsh(A)[-1])
    parts = int(np.ceil(longest)) if longest >= 2 else 1
    part = torch.eye(40, dtype=torch.float64) - 0.05 * steps[:, None] / parts * A
    expected = torch.linalg.matrix_power(part, parts) @ W
    torch.testing.assert_close(learner.aggregator.update(users, ivs).double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "lam"),
    [(ring(24), 0.2), (ring(24), 1000.0), (ring(23), 0.2), (ring(12, hops=4), 0.2)],
    ids=["few", "few in many parts", "some", "many"],
)
def test_the_penalty_for_few_and_many_entries(weights, lam, tmp_path):
    """The penalty is exact even if the models are close to each other, where squares cancel."""
    aggregator = on_graph(weights, lam, 1e-9, tmp_path).aggregator
    noise = np.random.default_rng(1).normal(size=(len(weights), 7)).astype(np.float32)
    for W in (noise, 1 + np.float32(1e-3) * noise):
        distances = np.square(W[:, None].astype(float) - W).sum(2)
        want = lam / 4 * (weights * distances).sum() + 5e-10 * np.square(W, dtype=float).sum()
        assert float(aggregator.structure.penalty(torch.from_numpy(W))) == pytest.approx(want, rel=1e-6)
