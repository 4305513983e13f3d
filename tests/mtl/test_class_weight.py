"""Weights of classes: the certified optimum is that of scikit-learn, and rare classes are found."""

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_sample_weight
from torch import nn

from hmtl.data import Task
from hmtl.errors import DataError
from hmtl.mtl import (
    MOCHA,
    SDCA,
    CrossEntropy,
    FedU,
    Hinge,
    LocalSGD,
    Logistic,
    LowRank,
    Mean,
    NetworkAlgorithm,
    Problem,
    Ridge,
    SmoothHinge,
    Squared,
    TaskRelationship,
)
from hmtl.rng import generator

LAM = 0.05
VALUES = {"hinge": lambda m: np.maximum(0, 1 - m), "logistic": lambda m: np.log1p(np.exp(-m))}


class InTorch(Logistic):
    """Another type than those with compiled steps."""


def unequal_tasks(seed, classes=2, K=3, d=4):
    """Users with unequal numbers of rows, and classes that are rare by chance or missing."""
    rng, tasks = np.random.default_rng(seed), []
    for k in range(K):
        n = int(rng.integers(8, 30))
        y = rng.choice(classes, size=n, p=rng.dirichlet(np.full(classes, 0.5)))
        y[: min(2, classes)] = [0, 1]
        x = rng.normal(size=(n, d)) + 0.5 * y[:, None]
        y = 2.0 * y - 1 if classes == 2 else y
        tasks.append(Task(str(k), x, y, x, y, None if classes == 2 else classes, class_weight="balanced"))
    return tasks


def solved(tasks, loss, regularizer):
    """An algorithm whose gap, which is never negative, has fallen to a hundred-thousandth of the objective."""
    mocha = MOCHA(Problem(tasks, loss, regularizer), SDCA(10), omega_every=0)
    for round in range(300):
        mocha.step(round)
        if round % 5 == 0:
            now = mocha.metrics()
            assert now["gap"] > -1e-12
            if now["gap"] < 1e-5 * now["primal"]:
                return mocha
    raise AssertionError(f"the gap does not vanish: {now}")


def primal(tasks, W, loss):
    total = 0.0
    for task, w in zip(tasks, W.T.numpy(), strict=True):
        y = task.y_train.numpy()
        total += np.mean(compute_sample_weight("balanced", y) * loss(y * (task.x_train.numpy() @ w)))
    return total


def between(mocha, optimum):
    """Whether an optimum that is known from elsewhere lies between dual and primal."""
    now = mocha.metrics()
    return now["dual"] <= optimum * (1 + 1e-6) and optimum <= now["primal"] * (1 + 1e-6)


@pytest.mark.parametrize("loss", ["hinge", "logistic"])
@examples(8)
@given(seed=st.integers(0, 2**32 - 1))
def test_without_coupling_the_optimum_is_that_of_liblinear(loss, seed):
    tasks, optimum = unequal_tasks(seed), 0.0
    mocha = solved(tasks, Hinge() if loss == "hinge" else Logistic(), Ridge(LAM))
    for task in tasks:
        x, y = task.x_train.numpy(), task.y_train.numpy()
        options = {"C": 1 / (LAM * len(y)), "fit_intercept": False, "class_weight": "balanced", "tol": 1e-9}
        if loss == "hinge":
            model = LinearSVC(loss="hinge", max_iter=10**6, random_state=0, **options)
        else:
            model = LogisticRegression(max_iter=10**4, **options)
        w = model.fit(x, y).coef_[0]
        optimum += primal([task], torch.from_numpy(w)[:, None], VALUES[loss]) + LAM / 2 * w @ w
    assert between(mocha, optimum)


@examples(8)
@given(seed=st.integers(0, 2**32 - 1))
def test_several_classes_are_weighed_by_row(seed):
    tasks, optimum = unequal_tasks(seed, classes=3), 0.0
    mocha = solved(tasks, Hinge(), Ridge(LAM))
    for task in tasks:
        x, y = task.x_train.numpy(), task.y_train.numpy()
        weights = compute_sample_weight("balanced", y)
        for c in range(3):
            signs = np.where(y == c, 1, -1)
            svm = LinearSVC(loss="hinge", C=1 / (LAM * len(y)), fit_intercept=False, tol=1e-9, max_iter=10**6)
            # a copy of weight 0 with the other sign, as there may be one class only
            svm.fit(np.vstack([x, x[:1]]), np.append(signs, -signs[0]), np.append(weights, 1e-12))
            w = svm.coef_[0]
            optimum += np.mean(weights * VALUES["hinge"](signs * (x @ w))) + LAM / 2 * w @ w
    assert between(mocha, optimum)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (Hinge(), VALUES["hinge"]),
        (SmoothHinge(0.5), lambda m: np.where(m < 0.5, 0.75 - m, np.maximum(0, 1 - m) ** 2)),
        pytest.param(InTorch(), VALUES["logistic"], marks=pytest.mark.slow),
    ],
)
@examples(5)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_gap_certifies_coupled_models(loss, value, seed):
    tasks = unequal_tasks(seed)
    mocha = solved(tasks, loss, Mean(0.3, LAM))
    W = mocha.W
    A = Mean(0.3, LAM).coupling(LowRank.multiple(1, 3)).dense()
    expected = primal(tasks, W, value) + float(0.5 * (W @ A * W).sum())
    assert mocha.metrics()["primal"] == pytest.approx(expected, rel=1e-9)


@examples(8)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_step_on_all_rows_follows_the_gradient(seed):
    tasks = unequal_tasks(seed, classes=3)
    problem = Problem(tasks, CrossEntropy(), Ridge(1e-9))
    fedu = NetworkAlgorithm(FedU(), problem, LocalSGD(0.1, 1, 1000), nn.Linear, seed=1)
    start = fedu.W.clone()
    _, changes = fedu.users.local_update(0)
    loss = 0.0
    for k, task in enumerate(tasks):
        own = start[:, k].clone().requires_grad_()
        weights = torch.from_numpy(compute_sample_weight("balanced", task.y_train.numpy()))
        p = (task.x_train.float() @ own[:12].view(3, 4).T + own[12:]).log_softmax(1)
        objective = -(weights * p.gather(1, task.y_train[:, None])[:, 0]).mean()
        objective.backward()
        torch.testing.assert_close(changes[k, :15], -0.1 * own.grad, rtol=1e-4, atol=1e-6)
        loss += float(objective.detach())
    assert fedu.metrics()["primal"] == pytest.approx(loss, rel=1e-5)


def rare_positives(class_weight, K=12, n=500, d=9):
    """Related users with 6 % positives that overlap with the rest, as in the detection of land mines."""
    rng, tasks = generator(5, "rare positives"), []
    common = rng.normal(size=d) / np.sqrt(d)
    for k in range(K):
        y = np.where(np.arange(n) % 50 < 3, 1.0, -1.0)
        shift = 2.3 * common + 0.3 * rng.normal(size=d) / np.sqrt(d)
        x = np.hstack([rng.normal(size=(n, d)) + np.where(y[:, None] > 0, shift, 0), np.ones((n, 1))])
        half = n // 2
        tasks.append(Task(str(k), x[:half], y[:half], x[half:], y[half:], class_weight=class_weight))
    return tasks


def recall(predictions, y):
    return float((predictions[y > 0] > 0).mean())


def test_rare_positives_are_found():
    results = {}
    for class_weight in (None, "balanced"):
        problem = Problem(rare_positives(class_weight), Hinge(), TaskRelationship(0.01), measures={"recall": recall})
        mocha = MOCHA(problem, SDCA(10), rounds=60)
        for round in range(60):
            mocha.step(round)
        results[class_weight] = figures = mocha.metrics()
        assert 0 <= figures["gap"] < 0.02 * figures["primal"]
    plain, balanced = results.values()
    assert plain["test_error"] < 0.07  # as good as calling all rows negative
    assert plain["test_recall"] < 0.05
    assert balanced["test_recall"] > 0.6
    assert balanced["test_balanced_error"] < plain["test_balanced_error"] - 0.1


def test_numbers_have_no_classes():
    y = torch.tensor([0.5, 2.0])
    with pytest.raises(DataError, match="class_weight=null"):
        Problem([Task("a", torch.eye(2), y, torch.eye(2), y, class_weight="balanced")], Squared(), Ridge(1.0))
