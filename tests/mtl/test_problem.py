"""Primal and dual against numpy; rows in memory once; tasks that do not fit."""

import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hmtl import MultiTask
from hmtl.data import Task
from hmtl.errors import ConfigError, DataError
from hmtl.mtl import (
    MOCHA,
    SDCA,
    CrossEntropy,
    Dense,
    FedAvg,
    Hinge,
    LocalSGD,
    Logistic,
    Loss,
    Mean,
    NetworkAlgorithm,
    Problem,
    Ridge,
    Squared,
    TaskRelationship,
)

draw = {
    "seed": st.integers(0, 10**6),
    "K": st.integers(1, 6),
    "reduction": st.sampled_from(["mean", "sum"]),
}


@given(**draw)
@examples(12)
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
    a = torch.from_numpy(np.concatenate([bk * y for bk, y in zip(b, case.y, strict=True)]))[:, None]
    problem, W, Omega = case.problem, torch.from_numpy(W), Dense(torch.from_numpy(Omega))
    losses = problem.losses(problem.predictions(W, "train")).sum()
    assert float(losses + problem.regularizer(W, Omega)) == pytest.approx(primal, rel=1e-12)
    conjugates = problem.conjugates(a).sum() + problem.regularizer.inverse(Omega).quadratic(problem.combined(a).T)
    assert -float(conjugates) == pytest.approx(dual, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_in_memory_once(dtype):
    x, y = torch.randn(3, 2, 4, dtype=dtype), torch.tensor([1.0, -1.0])
    problem = Problem([Task(str(k), rows, y, rows, y) for k, rows in enumerate(x)], Hinge(), Ridge(0.1))
    rows = problem.rows_in(dtype)
    assert torch.equal(rows.X, x.flatten(0, 1))
    for tasks in (problem.tasks, problem.everybody, problem.regularized(Ridge(1.0)).tasks):
        assert all(task.x_train.data_ptr() == own.data_ptr() for task, own in zip(tasks, rows.X[::2], strict=True))


def uneven(counts, dtype=torch.float64, d=50):
    """Tasks of ±1 with these numbers of rows of d features, and a few rows to test on."""
    draw = torch.Generator().manual_seed(0)
    for k, n in enumerate(counts):
        x = torch.randn(n, d, dtype=dtype, generator=draw)
        yield Task(str(k), x, x[:, 0].sign(), x[:5].clone(), x[:5, 0].sign())


def learner(kind, tasks):
    if kind == "networks":
        return NetworkAlgorithm(FedAvg(), Problem(tasks, Logistic(), Ridge(0.1)), LocalSGD(1e-5, epochs=1), nn.Linear)
    return MOCHA(Problem(tasks, Hinge(), Mean(0.1)), SDCA(2))


def held():
    """Bytes of all tensors."""
    gc.collect()
    storages = [each.untyped_storage() for each in gc.get_objects() if type(each) is torch.Tensor]
    return sum({each.data_ptr(): each.nbytes() for each in storages if each.device.type == "cpu"}.values())


@pytest.mark.parametrize(("kind", "dtype"), [("duals", torch.float64), ("networks", torch.float32)])
def test_a_user_with_many_rows_costs_no_memory_for_those_with_few(kind, dtype):
    counts, before = [3000] + [10] * 60, held()
    made = learner(kind, list(uneven(counts, dtype)))
    made.step(0)
    made.metrics()
    assert held() - before < 1.5 * sum(counts) * 50 * dtype.itemsize


def source(kind, counts, dtype, d=50):
    """What a user has: tasks; or one table in which rows of all tasks are mixed, targets and the task of each row."""
    if kind != "estimator":
        return list(uneven(counts, dtype, d))
    rng = np.random.default_rng(0)
    X = rng.standard_normal((sum(counts), d), dtype=str(dtype).removeprefix("torch."))
    return X, np.sign(X[:, 0]), rng.permutation(np.repeat(np.arange(len(counts)), counts))


def play(kind, data):
    if kind == "estimator":
        X, y, groups = data
        MultiTask(0.1, rounds=1).fit(X, y, groups=groups)
        return
    made = learner(kind, data)
    made.step(0)
    made.metrics()


FOLDERS = [str(folder) for folder in Path(__file__).parents[:2]]
PEAK = """
import resource, sys
import torch
sys.path[:0] = {folders!r}
from test_problem import play, source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

counts, d = [60_000] + [100] * 50, 250
play({kind!r}, source({kind!r}, [20, 10], torch.{dtype}))
data = source({kind!r}, counts, torch.{dtype}, d)
before = peak()
play({kind!r}, data)
print((peak() - before) / (sum(counts) * d * torch.{computed}.itemsize))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype", "computed"),
    [
        ("duals", "float64", "float64"),
        ("networks", "float32", "float32"),
        ("estimator", "float64", "float64"),
        ("estimator", "float32", "float64"),
    ],
)
def test_peak_of_memory_of_unequal_users(kind, dtype, computed):
    """Beyond what the rows of the caller and imports take, relative to the rows in the type of the computation."""
    script = PEAK.format(folders=FOLDERS, kind=kind, dtype=dtype, computed=computed)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.5


def task(name, d=3, labels=(1.0, -1.0)):
    x, y = torch.ones(len(labels), d), torch.tensor(labels)
    return Task(name, x, y, x, y)


class AnyNumber(Loss):
    labels = None

    def forward(self, prediction, y):
        return (prediction - y).square()


def test_tasks_that_do_not_fit():
    good = task("good")
    for tasks, named in (
        ([], "K"),
        ([good, task("wide", d=4)], "wide"),
        ([good, task("zeros", labels=(0.0, 1.0))], "zeros"),
    ):
        with pytest.raises(DataError, match=named):
            Problem(tasks, Hinge(), Ridge(1.0))
    with pytest.raises(ConfigError, match="reduction"):
        Problem([good], Hinge(), Ridge(1.0), "max")
    assert Problem([task("heights", labels=(0.0, 7.5))], AnyNumber(), Ridge(1.0)).K == 1


def test_labels_that_do_not_fit_a_loss():
    classes = Task("classes", torch.ones(3, 2), torch.arange(3), torch.ones(3, 2), torch.arange(3), 3)
    more = Task("more", torch.ones(3, 2), torch.arange(3), torch.ones(3, 2), torch.arange(3), 4)
    for tasks, loss, remedy in (
        ([classes], Squared(), "dataset.kind=regression"),
        ([task("heights", labels=(0.5, 7.0))], CrossEntropy(), "choose loss=squared"),
        ([classes, more], Hinge(), "classes=4"),
    ):
        with pytest.raises(DataError, match=remedy):
            Problem(tasks, loss, Ridge(1.0))


def test_cross_entropy_numbers_two_classes():
    """With scores 0 and p, it is the logistic loss of p."""
    W, signs = torch.tensor([[0.5], [-2.0], [1.0]], dtype=torch.float64), replace(task("signs"), labels=("no", "yes"))
    logistic, entropy = (Problem([signs], loss, Ridge(1.0)) for loss in (Logistic(), CrossEntropy()))
    scores = torch.cat([torch.zeros_like(W), W])
    ours, theirs = (p.losses(p.predictions(w, "train")) for p, w in ((entropy, scores), (logistic, W)))
    torch.testing.assert_close(ours, theirs)
    assert (entropy.outputs, entropy.everybody[0].labels) == (2, ("no", "yes"))
    for name in ("train_error", "train_auc"):
        assert (
            entropy.measure("train", entropy.predictions(scores, "train"))[name]
            == (logistic.measure("train", logistic.predictions(W, "train"))[name])
        )


def test_constant_labels_have_no_r2():
    y = torch.full((3,), 0.1, dtype=torch.float64)  # its mean differs from 0.1 by rounding
    problem = Problem([Task("a", torch.eye(3), y, torch.eye(3), y)], Squared(), Ridge(0.1))
    assert "train_error" in problem.figures("train", measured := {"train_error": torch.tensor([0.25])})
    assert "train_r2" not in problem.figures("train", measured)
