"""The estimator: the optimum by another solver, labels and numbers as given, and scikit-learn's conventions."""

import copy
import subprocess
import sys
import warnings

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss, r2_score, roc_auc_score

from hmtl import MultiTask
from hmtl.errors import ConfigError, DataError
from hmtl.mtl import Hinge, Mean, Ridge, Squared

K, D = 4, 5


def drawn(seed):
    rng = np.random.default_rng(seed)
    X = [rng.normal(2, 3, size=(n, D)) for n in (12, 15, 20, 9)]
    w = rng.normal(size=D)
    return X, [x @ (w + 0.3 * rng.normal(size=D)) + 0.1 * rng.normal(size=len(x)) for x in X]


def test_the_gap_bounds_the_distance_from_the_optimum():
    """Ridge and hinge, without preprocessing: the optimum by an interior-point solver."""
    X, scores = drawn(0)
    y = [np.where(s > np.median(s), "hi", "lo") for s in scores]
    best = 0
    for x, label in zip(X, y, strict=True):
        w, sign = cp.Variable(D), np.where(label == "lo", 1, -1)
        loss = cp.sum(cp.pos(1 - cp.multiply(sign, x @ w))) / len(x) + 0.05 * cp.sum_squares(w)
        best += cp.Problem(cp.Minimize(loss)).solve(solver=cp.CLARABEL)
    model = MultiTask(loss=Hinge(), regularizer=Ridge(0.1), intercept=False, standardize="none", tolerance=1e-4).fit(
        X, y
    )
    assert -1e-9 <= model.primal_ - best <= model.gap_ + 1e-9
    assert model.gap_ <= 1e-4 * model.primal_
    assert model.rounds_ < 200
    assert not hasattr(model, "Omega_")


@pytest.mark.parametrize(
    "labels",
    [
        ["no", "yes"],
        [3, 7],
        ["a", "b", "c"],
        *(pytest.param(x, marks=pytest.mark.slow) for x in ([-1.0, 1.0], [False, True])),
    ],
)
def test_labels_come_back_as_they_went(labels):
    X, scores = drawn(1)
    y = [np.array(labels)[np.digitize(s, np.quantile(s, np.linspace(0, 1, len(labels) + 1)[1:-1]))] for s in scores]
    model = MultiTask(lam=0.01, rounds=40).fit(X, y)
    predicted = model.predict(X)
    if not isinstance(labels[0], int | float) or isinstance(labels[0], bool):
        again = MultiTask(lam=0.01, rounds=40).fit(X, [each.astype(object) for each in y])
        assert np.array_equal(again.models_.W, model.models_.W)
    assert {label for each in predicted for label in each.tolist()} == set(labels)
    right = [np.mean(each == true) for each, true in zip(predicted, y, strict=True)]
    assert model.score(X, y) == pytest.approx(np.mean(right))
    assert model.score(X, y) > 0.8
    assert model.Omega_.shape == (K, K)


def test_numbers_to_predict():
    X, y = drawn(2)
    y = [1000 + each for each in y]
    model = MultiTask(lam=0.001).fit(X, y)
    r2 = [1 - np.sum((p - t) ** 2) / np.sum((t - t.mean()) ** 2) for p, t in zip(model.predict(X), y, strict=True)]
    assert model.score(X, y) == pytest.approx(np.mean(r2))
    assert model.score(X, y) > 0.95
    assert model.score(X[::-1], y[::-1]) < model.score(X, y), "tasks differ"


def test_it_is_an_estimator():
    X, y = drawn(3)
    model = MultiTask(lam=0.1, rounds=3, seed=4)
    again = copy.copy(model).set_params(regularizer=Mean(0.1), lam=None).fit(X, y)
    assert model.get_params()["regularizer"] is None
    assert again.rounds_ == 3
    assert not hasattr(model, "models_")
    same = MultiTask(lam=0.1, rounds=3, seed=4).fit(X, y), copy.copy(model).fit(X, y)
    assert np.array_equal(same[0].models_.W, same[1].models_.W)
    assert repr(model) == "MultiTask(lam=0.1, rounds=3, seed=4)"


def test_many_integers_are_numbers():
    X, _ = drawn(5)
    y = [np.round(100 * x @ np.arange(1, x.shape[1] + 1)).astype(int) for x in X]
    model = MultiTask().fit(X, y)
    assert not hasattr(model, "classes_")
    assert np.array_equal(model.models_.W, MultiTask().fit(X, [each.astype(float) for each in y]).models_.W)
    few = [each % 20 for each in y]
    assert len(MultiTask(rounds=1).fit(X, few).classes_) == len(np.unique(np.concatenate(few)))


def test_refused():
    X, y = drawn(5)
    fitted = MultiTask(rounds=1).fit(X[:2], y[:2])
    for error, named, call in (
        (DataError, "X has 4 tasks and y has 3", lambda: MultiTask().fit(X, y[:3])),
        (DataError, "X has 0 tasks", lambda: MultiTask().fit([], [])),
        (DataError, "y is no in all tasks", lambda: MultiTask().fit(X, [np.full(len(x), "no") for x in X])),
        (ConfigError, "rounds=0", lambda: MultiTask(rounds=0).fit(X, y)),
        (ConfigError, "lam", lambda: MultiTask(lam=-1).fit(X, y)),
        (ConfigError, "regularizer='mean' .*Mean", lambda: MultiTask(regularizer="mean").fit(X, y)),
        (ConfigError, "loss='hinge'", lambda: MultiTask(loss="hinge").fit(X, y)),
        (ValueError, "lamb", lambda: MultiTask().set_params(lamb=1)),
        (ConfigError, "lam='big'", lambda: MultiTask(lam="big").fit(X, y)),
        (ConfigError, "lam=big", lambda: Mean("big")),
        (ConfigError, "rounds=1.5", lambda: MultiTask(rounds=1.5).fit(X, y)),
        (ConfigError, "task and groups", lambda: MultiTask(task=0).fit(X, y)),
        (ConfigError, "clone", lambda: clone(MultiTask()).fit(X, y)),
        (DataError, "y is a single ndarray", lambda: MultiTask().fit(X[:1], y[0])),
        (DataError, "y is a single NoneType", lambda: fitted.score(X[:2], None)),
        (ValueError, None, lambda: fitted.score([*X[:1], []], [["a"] * 12, []])),
        (DataError, "text in some tasks", lambda: MultiTask().fit(X, [*y[:3], ["a"] * len(X[3])])),
        (DataError, "y is text", lambda: MultiTask(loss=Squared()).fit(X[:1], [["a", "b"] * 6])),
        (DataError, r"X has \[12, 15\] rows, but y has \[12, 14\]", lambda: fitted.score(X[:2], [y[0], y[1][1:]])),
        (DataError, "X has 1 tasks, but 2 were fitted", lambda: fitted.predict(X[:1])),
        (NotFittedError, "not fitted yet", lambda: MultiTask().predict(X)),
        (NotFittedError, "not fitted yet", lambda: MultiTask().score(X, y)),
    ):
        with pytest.raises(error, match=named):
            call()


def test_a_task_without_new_rows():
    X, y = drawn(6)
    model = MultiTask(rounds=1).fit(X, y)
    predicted = model.predict([X[0], [], np.empty((0, D)), X[3]])
    assert [len(each) for each in predicted] == [len(X[0]), 0, 0, len(X[3])]
    assert predicted[3].tolist() == model.predict(X)[3].tolist()
    some = [X[0], [], np.empty((0, D)), X[3]], [y[0], [], [], y[3]]
    assert model.score(*some) == pytest.approx(np.mean([r2_score(y[k], predicted[k]) for k in (0, 3)]))


def test_tables_go_by_the_names_of_their_columns():
    """In any order, of numbers and truth values; of columns without names by their place."""
    X, y = drawn(7)
    for x in X:
        x[:, 1] = x[:, 1] > 2
    names = list("pqrst")
    tables = [pd.DataFrame(x, columns=names).astype({"q": bool}) for x in X]
    model = MultiTask(rounds=3).fit(X, y)
    turned = [table[names[::-1] if k % 2 else names] for k, table in enumerate(tables)]
    named = MultiTask(rounds=3).fit(turned, [pd.Series(each) for each in y])
    assert np.array_equal(named.models_.W, model.models_.W)
    assert named.models_.columns == tuple(names)
    expected = model.predict(X)
    for given in (X, tables, turned, [table.assign(beside="x") for table in tables]):
        assert all(np.array_equal(*pair) for pair in zip(named.predict(given), expected, strict=True))
    nameless = [pd.DataFrame(x) for x in X]
    assert np.array_equal(MultiTask(rounds=3).fit(nameless, y).models_.W, model.models_.W)
    mixed = MultiTask(rounds=3).fit([tables[0], nameless[1], *X[2:]], [each.astype(object) for each in y])
    assert np.array_equal(mixed.models_.W, model.models_.W)
    for given in ([X[0], *tables[1:]], nameless):
        assert all(np.array_equal(*pair) for pair in zip(named.predict(given), expected, strict=True))
    late = MultiTask(rounds=3).fit([X[0], *tables[1:]], y).models_
    assert (late.columns, np.array_equal(late.W, model.models_.W)) == ((), True)
    with pytest.raises(DataError, match=r"X\[1\] has columns p, q, r, s, u, X\[0\] p, q, r, s, t"):
        MultiTask().fit([tables[0], tables[1].rename(columns={"t": "u"})], y[:2])
    with pytest.raises(DataError, match="x has no column t, which"):
        named.predict([table.drop(columns="t") for table in tables])


def test_a_new_fit_replaces_the_old_one():
    X, y = drawn(8)
    model = MultiTask(rounds=2).fit(X, y)
    assert hasattr(model, "Omega_")
    assert not hasattr(model.set_params(regularizer=Mean(0.1)).fit(X, y), "Omega_")


def schools(rows: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return tasks with models near a common one, and means that differ."""
    rng = np.random.default_rng(0)
    w = np.array([3.0, -2.0, 1.0]) + 0.3 * rng.normal(size=(40, 3))
    X = rng.normal(size=(40, rows, 3))
    y = np.einsum("knd,kd->kn", X, w) + 50 + rng.normal(size=(40, 1)) + 2 * rng.normal(size=(40, rows))
    return list(X), list(y)


def test_few_rows_are_no_worse_than_training_alone_or_one_model():
    X, y = schools(44)
    train, test = ([x[:4] for x in X], [t[:4] for t in y]), ([x[4:] for x in X], [t[4:] for t in y])

    def error(model, *rows):
        return np.mean([np.square(p - t).mean() for p, t in zip(model.predict(rows[0]), rows[1], strict=True)])

    own = error(MultiTask().fit(*train), *test)
    for lam in (0.01, 0.1, 1.0):
        assert own < error(MultiTask(regularizer=Ridge(lam)).fit(*train), *test)
        pooled = MultiTask(regularizer=Ridge(lam)).fit([np.concatenate(train[0])], [np.concatenate(train[1])])
        assert own < error(pooled, [np.concatenate(test[0])], [np.concatenate(test[1])])


@pytest.mark.parametrize("parameters", [{}, {"lam": 0.3}])
def test_gap_and_relation(parameters):
    X, y = schools(6)
    for targets in (y, [np.where(t > 50, "hi", "lo") for t in y]):
        model = MultiTask(**parameters).fit(X, targets)
        assert 0 <= model.gap_ <= 1e-3 * model.primal_
        assert np.linalg.eigvalsh(model.Omega_)[0] > 0
        assert model.Omega_.shape == (40, 40)


def test_unlike_scales():
    """Seven tasks whose targets have standard deviations of 1 to 20: not worse than each on its own."""
    rng = np.random.default_rng(0)
    units, w = np.array([1, 2, 3, 5, 8, 13, 20]), rng.normal(size=6)
    X = rng.normal(size=(7, 250, 6))
    W = w + 0.2 * rng.normal(size=(7, 6))
    y = (np.einsum("knd,kd->kn", X, W) + rng.normal(size=(7, 250)) + rng.normal(size=(7, 1))) * units[:, None]
    train, test = (X[:, :50], y[:, :50]), (X[:, 50:], y[:, 50:])

    def error(predicted):
        return np.mean(np.square(predicted - test[1]).mean(1) / test[1].var(1))

    alone = [RidgeCV(np.logspace(-3, 3, 13)).fit(*rows).predict(x) for *rows, x in zip(*train, test[0], strict=True)]
    for parameters, most in (({}, error(np.array(alone))), ({"lam": 0.3}, 1)):  # 1: the error of the mean
        model = MultiTask(**parameters).fit([*train[0]], [*train[1]])
        assert error(np.array(model.predict([*test[0]]))) < most


@pytest.mark.parametrize("parameters", [{}, {"lam": 0.1}], ids=["evidence", "lam"])
def test_tasks_of_other_magnitudes(parameters):
    """Targets of 1e-5 to 1e5, or means a million standard deviations apart: each task is still predicted well."""
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(8, 240, 5)), rng.normal(size=5) + 0.3 * rng.normal(size=(8, 5))
    y = np.einsum("knd,kd->kn", X, W) + 0.3 * rng.normal(size=(8, 240))
    for scale, offset in ((10.0 ** np.linspace(-5, 5, 8), 0), (np.ones(8), 1e6 * rng.normal(size=8))):
        target = y * scale[:, None] + np.reshape(offset, (-1, 1))
        model = MultiTask(**parameters).fit([*X[:, :40]], [*target[:, :40]])
        errors = np.square(np.array(model.predict([*X[:, 40:]])) - target[:, 40:]).mean(1) / target[:, 40:].var(1)
        assert errors.max() < 0.5


def test_few_positive_labels():
    """6 % positives, 40 rows a task: better than each task on its own, and than one model."""
    rng = np.random.default_rng(1)
    X, task = rng.normal(size=(8000, 4)), np.repeat(np.arange(40), 200)
    effects = np.array([1.0, -0.6, 0.4, 0.0]) + 0.3 * rng.normal(size=(40, 4))
    score = (X * effects[task]).sum(1) - 4.2 + rng.normal(size=40)[task]
    y = (rng.random(8000) < 1 / (1 + np.exp(-score))).astype(int)
    seen = np.arange(8000) % 200 < 40
    assert 0.05 < y.mean() < 0.09
    model = MultiTask().fit(X[seen], y[seen], groups=task[seen])
    ours = model.predict_proba(X[~seen], task[~seen])[:, 1]
    alone, pooled = np.zeros((~seen).sum()), LogisticRegression().fit(X[seen], y[seen]).predict_proba(X[~seen])[:, 1]
    for k in range(40):
        own, new = seen & (task == k), task[~seen] == k
        if y[own].any():
            alone[new] = LogisticRegression().fit(X[own], y[own]).predict_proba(X[~seen][new])[:, 1]
    for other in (alone, pooled):
        assert roc_auc_score(y[~seen], ours) > roc_auc_score(y[~seen], other)
        assert log_loss(y[~seen], ours) < log_loss(y[~seen], other)


@pytest.mark.parametrize("deviation", [0.0, 1.0], ids=["same slopes", "other slopes"])
def test_the_evidence_decides_whether_slopes_differ(deviation):
    rng = np.random.default_rng(2)
    X, task = rng.normal(size=(1200, 5)), np.repeat(np.arange(30), 40)
    W = rng.normal(size=5) + deviation * rng.normal(size=(30, 5))
    y = (X * W[task]).sum(1) + 2 * rng.normal(size=30)[task] + rng.normal(size=1200)
    model = MultiTask().fit(X, y, groups=task)
    assert (np.ptp(model.models_.W[:, :5], axis=0).max() < 0.1) == (deviation == 0)
    assert np.ptp(model.models_.W[:, 5]) > 1


@pytest.mark.parametrize(("kind", "near"), [("numbers", 0.12), ("labels", 0.4)])
def test_intercepts_that_go_with_the_features(kind, near):
    """The slope of a feature within tasks is 1, though between them it is -2; unseen tasks have no means to go by."""
    rng = np.random.default_rng(0)
    centers, task = rng.normal(size=(240, 2)), np.repeat(np.arange(240), 4)
    X = centers[task] + rng.normal(size=(960, 2))
    score = X @ [1.0, 0.5] - 3 * centers[task, 0]
    y = score + rng.normal(size=960)
    if kind == "labels":
        y = (rng.random(960) < 1 / (1 + np.exp(-score))).astype(int)
    seen = task < 120
    model = MultiTask(standardize="none").fit(X[seen], y[seen], groups=task[seen])
    assert np.abs(model.models_.W[:, 0].mean() - 1) < near
    assert np.corrcoef(model.models_.W[:, 2], centers[:120, 0])[0, 1] < -0.9
    new = X[~seen], task[~seen]
    if kind == "numbers":
        assert np.square(model.predict(*new) - y[~seen]).mean() < np.square(X[~seen] @ [1.0, 0.5] - y[~seen]).mean()
    else:
        assert roc_auc_score(y[~seen], model.predict_proba(*new)[:, 1]) > roc_auc_score(y[~seen], X[~seen] @ [1.0, 0.5])


@pytest.mark.parametrize("kind", ["numbers", "labels"])
def test_awkward_rows(kind):
    """One row, one class or one number in a task, equal and constant columns, more features than rows, other units."""
    rng = np.random.default_rng(3)
    task = np.array([0, *[1] * 2, *[2] * 30, *[3] * 30, *[4] * 30])
    X = rng.normal(size=(len(task), 40))
    X[:, 1], X[:, 2], X[:, 3] = X[:, 0], 7.0, 1e9 * X[:, 3]
    y = X[:, 0] + task + 0.1 * rng.normal(size=len(task))
    y[task == 3] = 5.0
    if kind == "labels":
        y = (y > 2).astype(int)  # of one class in the tasks 0, 3 and 4
    for part in (slice(None), task > 1, task == 2):
        for standardize in ("all", "none"):
            model = MultiTask(standardize=standardize).fit(X[part], y[part], groups=task[part])
            outputs = model.predict_proba if kind == "labels" else model.predict
            assert np.isfinite(outputs(X[part], task[part])).all()
            assert model.score(X[part], y[part], groups=task[part]) > 0.7
            assert 0 <= model.gap_ <= 1e-3 * model.primal_


def test_a_fit_that_stops_early_warns():
    X, y = drawn(9)
    for parameters in ({}, {"lam": 0.01}):
        with pytest.warns(ConvergenceWarning, match="rounds=1"):
            MultiTask(rounds=1, **parameters).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MultiTask().fit(X, y)


@pytest.mark.slow
def test_the_import_does_not_wait_for_torch():
    code = "from hmtl import MultiTask; import sys; MultiTask(0.1).get_params(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
