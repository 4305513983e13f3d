"""Primal, dual and errors against numpy; rows in memory once; tasks that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.data import Task
from hmtl.errors import ConfigError, DataError
from hmtl.mtl import CrossEntropy, Hinge, Loss, Problem, Ridge, Squared, TaskRelationship

draw = {
    "seed": st.integers(0, 10**6),
    "K": st.integers(1, 6),
    "reduction": st.sampled_from(["mean", "sum"]),
}


@given(**draw)
@settings(max_examples=12)
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
    problem, W, Omega = case.problem, torch.from_numpy(W), torch.from_numpy(Omega)
    losses = problem.losses(problem.predictions(W, "train")).sum()
    assert float(losses + problem.regularizer(W, Omega)) == pytest.approx(primal, rel=1e-12)
    conjugates = problem.conjugates(a).sum() + problem.regularizer.conjugate(problem.combined(a), Omega)
    assert -float(conjugates) == pytest.approx(dual, rel=1e-9)


@given(**draw)
@settings(max_examples=8)
def test_errors(random_problem, seed, K, reduction):
    case = random_problem(seed, K=K, reduction=reduction)
    W = case.rng.normal(size=(case.d, K))
    wrong = [np.mean(np.sign(x @ w) != y) for x, y, w in zip(case.X, case.y, W.T, strict=True)]
    for split in ("train", "test"):
        measured = case.problem.measure(split, case.problem.predictions(torch.from_numpy(W), split))
        assert measured[f"{split}_error"].tolist() == pytest.approx(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_in_memory_once(dtype):
    x, y = torch.randn(3, 2, 4, dtype=dtype), torch.tensor([1.0, -1.0])
    problem = Problem([Task(str(k), rows, y, rows, y) for k, rows in enumerate(x)], Hinge(), Ridge(0.1))
    rows = problem.padded(dtype)
    assert torch.equal(rows.X, x)
    for tasks in (problem.tasks, problem.everybody, problem.regularized(Ridge(1.0)).tasks):
        assert all(task.x_train.data_ptr() == own.data_ptr() for task, own in zip(tasks, rows.X, strict=True))


def test_rows_of_one_user(random_problem):
    case = random_problem(3)
    whole = case.problem.rows
    for k in range(case.K):
        rows = whole.of(k)
        np.testing.assert_array_equal(rows.X[0].numpy(), case.X[k])
        np.testing.assert_array_equal(rows.y[0].numpy(), case.y[k])
        assert rows.counts == (len(case.y[k]),)
        assert rows.X.untyped_storage().data_ptr() == whole.X.untyped_storage().data_ptr()


def test_the_gram_matrix_is_computed_once_for_all_that_share_the_rows(random_problem):
    rows = random_problem(3).problem.rows
    assert rows.gram() is replace(rows, y=-rows.y).gram()
    torch.testing.assert_close(rows.of(1).gram()[0], rows.X[1, : rows.counts[1]] @ rows.X[1, : rows.counts[1]].T)
    assert rows.of(1).gram().untyped_storage().data_ptr() == rows.gram().untyped_storage().data_ptr()


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
        ([task("signs")], CrossEntropy(), "choose loss=hinge"),
        ([task("heights", labels=(0.5, 7.0))], CrossEntropy(), "choose loss=squared"),
        ([classes, more], Hinge(), "classes=4"),
    ):
        with pytest.raises(DataError, match=remedy):
            Problem(tasks, loss, Ridge(1.0))


def test_constant_labels_have_no_r2():
    y = torch.full((3,), 0.1, dtype=torch.float64)  # its mean differs from 0.1 by rounding
    problem = Problem([Task("a", torch.eye(3), y, torch.eye(3), y)], Squared(), Ridge(0.1))
    assert "train_error" in problem.figures("train", measured := {"train_error": torch.tensor([0.25])})
    assert "train_r2" not in problem.figures("train", measured)
