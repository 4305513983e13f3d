"""Sparse rows: they learn what the same rows learn dense, in passes, runs and predictions, and are never made dense."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from hmtl import MultiTask
from hmtl.data import Preprocessing, Task, prepare
from hmtl.errors import ConfigError, DataError
from hmtl.inference.models import models_of
from hmtl.mtl import (
    MOCHA,
    SDCA,
    CoCoA,
    FedAvg,
    Graph,
    Hinge,
    Local,
    LocalSGD,
    Logistic,
    Mean,
    NetworkAlgorithm,
    Problem,
    SmoothHinge,
    Squared,
    TaskRelationship,
    mlp,
)
from hmtl.mtl.problem import Rows
from hmtl.mtl.solvers.sdca import DualSubproblem


class InTorch(SmoothHinge):
    """Another type than those with compiled steps."""


LOSSES = {"hinge": Hinge, "smooth hinge": SmoothHinge, "logistic": Logistic, "squared": Squared, "in torch": InTorch}
FORMATS = [sparse.csr_matrix, sparse.csr_array, sparse.csc_array, sparse.coo_matrix]


def twins(seed, loss, classes=2, class_weight=None, K=4, d=12):
    """The same tasks twice, sparse and dense: users of 2 to 15 rows, rows and columns of zeros, an empty test set."""
    rng, both = np.random.default_rng(seed), ([], [])
    for k in range(K):
        n, n_test = int(rng.integers(2, 16)), int(rng.integers(0, 6))
        x = rng.normal(size=(n + n_test, d)) * (rng.random((n + n_test, d)) < rng.choice([0, 0.1, 0.4]))
        x[0] = 0
        y = rng.integers(classes, size=n + n_test)
        y[:2] = [0, 1]
        y = rng.normal(size=len(y)) if loss == "squared" else 2.0 * y - 1 if classes == 2 else y
        C, as_sparse = None if classes == 2 else classes, FORMATS[rng.integers(len(FORMATS))]
        for tasks, rows in zip(both, (as_sparse, np.asarray), strict=True):
            tasks.append(Task(str(k), rows(x[:n]), y[:n], rows(x[n:]), y[n:], C, class_weight=class_weight))
    return both


cases = {
    "seed": st.integers(0, 10**6),
    "loss": st.sampled_from(list(LOSSES)),
    "classes": st.sampled_from([2, 2, 3]),
    "weight": st.sampled_from([None, "balanced"]),
}


def drawn(seed, loss, classes, weight):
    squared = loss == "squared"
    return twins(seed, loss, 2 if squared else classes, None if squared else weight)


@given(**cases, passes=st.floats(0.3, 4))
@settings(deadline=None)
def test_a_pass_takes_the_same_steps(seed, loss, classes, weight, passes):
    rng, results = np.random.default_rng(seed), []
    both = [Problem(tasks, LOSSES[loss](), Mean(0.1)) for tasks in drawn(seed, loss, classes, weight)]
    rows = both[0].rows
    W, c = torch.from_numpy(rng.normal(size=(4, 12))), torch.from_numpy(rng.uniform(0.1, 5, size=4))
    a = torch.from_numpy(rng.uniform(size=len(rows.y)))
    solver = SDCA(passes)
    order, budgets = solver.draw(seed, 0, range(4), rows.counts), solver.steps(rows.counts)
    for problem in both:
        scores = problem.scores[0]
        results.append(solver(problem.binary, scores, DualSubproblem(a * scores.y, W, c), order, budgets))
    for ours, dense in zip(*results, strict=True):
        torch.testing.assert_close(ours, dense, rtol=0, atol=1e-11)
    scores = both[0].scores[0]
    split = [each.split(rows.counts) for each in (a * scores.y, order, results[0][0])]
    for k, (own, visits, want) in enumerate(zip(*split, strict=True)):  # each user alone
        start = DualSubproblem(own, W[k : k + 1], c[k : k + 1])
        at = slice(sum(rows.counts[:k]), sum(rows.counts[: k + 1]))
        alone = Rows(scores.X[at], scores.y[at], scores.square_norms[at], rows.counts[k : k + 1], scores.s[at])
        new, dv = solver(both[0].binary, alone, start, visits, budgets[k : k + 1])
        torch.testing.assert_close(new, want, rtol=0, atol=1e-11)
        torch.testing.assert_close(dv[0], results[0][1][k], rtol=0, atol=1e-11)


@given(**cases, learner=st.sampled_from(["learned", "mean", "graph", "cocoa", "local"]), intercept=st.booleans())
def test_runs_agree(seed, loss, classes, weight, learner, intercept):
    """All figures, models, duals and predictions on raw rows."""
    results, raw = [], None
    for tasks in drawn(seed, loss, classes, weight):
        center = "task" if loss == "squared" else "none"
        prepared = prepare(tasks, Preprocessing(intercept, "none", center))
        regularizer = {"learned": TaskRelationship(0.1), "graph": Graph(0.1, neighbors=2)}.get(learner, Mean(0.1, 0.2))
        problem = Problem(prepared, LOSSES[loss](), regularizer)
        options = {"seed": seed}
        if learner in ("cocoa", "local"):
            algorithm = {"cocoa": CoCoA, "local": Local}[learner](problem, SDCA(2), 0.1, **options)
        else:
            algorithm = MOCHA(problem, SDCA(2), omega_every=3, **options)
        for round in range(5):
            algorithm.step(round)
        raw = raw or [np.asarray(task.x_train.toarray()) for task in tasks]
        models = models_of(algorithm)
        scores = [models.scores(task.name, x) for task, x in zip(tasks, raw, strict=True)]
        if problem.is_sparse:
            own = [models.scores(task.name, task.x_train) for task in tasks]
            for ours, dense in zip(own, scores, strict=True):
                np.testing.assert_allclose(ours, dense, rtol=0, atol=1e-12 * (1 + abs(dense).max()))
        results.append((algorithm.metrics(), algorithm.W, algorithm.a, scores))
    (figures, *ours), (dense_figures, *dense) = results
    assert figures.keys() == dense_figures.keys()
    ties = loss != "squared" and any(
        (abs(each) < 1e-9).any() for each in results[1][3]
    )  # their class is left to rounding
    for name, value in figures.items():
        if not (ties and "error" in name):
            assert value == pytest.approx(dense_figures[name], rel=1e-9, abs=1e-9, nan_ok=True), name
    torch.testing.assert_close(ours[:2], dense[:2], rtol=1e-9, atol=1e-9)
    for mine, other in zip(ours[2], dense[2], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-9)


def close(ours, dense):
    if ours.dtype.kind == "U":
        assert ours.tolist() == dense.tolist()
    else:
        np.testing.assert_allclose(ours, dense, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["two", "three", "numbers"])
def test_the_estimator(kind):
    rng = np.random.default_rng(1)
    X = [sparse.random_array((n, 40), density=0.2, rng=rng, format="coo") for n in (12, 30, 21)]
    some = rng.normal(size=12) if kind == "numbers" else np.array(["a", "b", "c"])[: 2 + (kind == "three")]
    y = [np.resize(some, x.shape[0]) for x in X]
    ours = MultiTask(0.1, standardize="none", rounds=20).fit(X, y)
    dense = MultiTask(0.1, standardize="none", rounds=20).fit([x.toarray() for x in X], y)
    assert ours.primal_ == pytest.approx(dense.primal_, rel=1e-12)
    for mine, other, same in zip(
        ours.predict(X), dense.predict([x.toarray() for x in X]), dense.predict(X), strict=True
    ):
        close(mine, other)
        close(same, other)
    scaled = MultiTask(0.1).fit([x.toarray() for x in X], y)  # models that scale and center predict on sparse rows, too
    for mine, other in zip(scaled.predict(X), scaled.predict([x.toarray() for x in X]), strict=True):
        close(mine, other)


@pytest.mark.slow
def test_no_dense_copy_of_the_rows():
    """Two users × 100,000 rows × 1,000,000 features would take 1.6 TB."""
    rng, n, d = np.random.default_rng(0), 10**5, 10**6
    x = sparse.csr_array((rng.normal(size=n), rng.integers(1000, size=n), np.arange(n + 1)), shape=(n, d))
    y = np.where(x.sum(1) > 0, "yes", "no")
    model = MultiTask(0.01, regularizer=Mean(0.001, 0.001), standardize="none", rounds=1).fit([x, x], [y, y])
    assert model.score([x, x], [y, y]) > 0.9


def test_bad_sparse_rows():
    x, y = sparse.csr_array(np.eye(3)), np.array([1.0, -1.0, 1.0])
    bad, nan = x.copy(), x.copy()
    bad.indices[1], nan.data[2] = 3, np.nan
    with pytest.raises(DataError, match="x_train is not a valid sparse array"):
        Task("a", bad, y, x, y)
    with pytest.raises(DataError, match="x_test is NaN or infinite in row 2"):
        Task("a", x, y, nan, y)
    with pytest.raises(DataError, match=r"x_train has shape \[3, 3\], y_train \[2\]"):
        Task("a", x, y[:2], x, y)
    with pytest.raises(DataError, match="square may overflow"):
        Task("a", x * 1e200, y, x, y)
    tasks = [Task(name, x, y, x[:0], y[:0]) for name in "ab"]
    with pytest.raises(DataError, match="'c' has dense rows"):
        Problem([*tasks, Task("c", x.toarray(), y, x.toarray(), y)], Hinge(), Mean(0.1))
    for scope in ("task", "all"):
        with pytest.raises(DataError, match=f"sparse, and standardize={scope}.*Set standardize=none"):
            prepare(tasks, Preprocessing(standardize=scope))
    with pytest.raises(DataError, match="Set standardize=none"):
        MultiTask().fit([x, x], [y, y])
    with pytest.raises(DataError, match="single csr_array"):
        MultiTask().fit([x, x], x)
    with pytest.raises(ConfigError, match="FedAvg needs dense rows"):
        NetworkAlgorithm(FedAvg(), Problem(tasks, Hinge(), Mean(0.1)), LocalSGD(), mlp)


def test_numbers_of_one_column_are_added():
    """In CSR, a row may name a column twice, and in any order; norms and steps are those of the sum."""
    csr = sparse.csr_array((np.array([5.0, 1, 2]), np.array([2, 0, 2]), np.array([0, 3, 3])), shape=(2, 3))
    y = np.array([1.0, -1.0])
    results = []
    for x in (csr, csr.toarray()):
        mocha = MOCHA(Problem([Task("a", x, y, x, y)], Squared(), Mean(0.1)), SDCA(1.0))
        mocha.step(0)
        assert mocha.problem.rows.square_norms.tolist() == [50, 0]
        results.append((mocha.a, mocha.W))
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)
