"""The estimator on one table of all tasks: equal to lists, in scikit-learn's tools, and with weights of rows."""

import warnings

import numpy as np
import pandas as pd
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.special import expit
from sklearn import config_context
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as RidgeRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import parametrize_with_checks

from hmtl import MultiTask, MultiTaskClassifier, MultiTaskRegressor
from hmtl.errors import ConfigError, DataError
from hmtl.mtl import Hinge, Logistic, Mean, Ridge, Squared

D = 3
CANNOT_HOLD = {
    "check_sample_weight_equivalence_on_dense_data": "features are scaled by rows that count equally, and the optimum "
    "is reached to a tolerance; `test_weights_are_repetitions` compares within it",
    "check_sample_weight_equivalence_on_sparse_data": "the optimum is reached to a tolerance",
}


def checks(*estimators):
    return parametrize_with_checks([*estimators], expected_failed_checks=lambda estimator: CANNOT_HOLD)


@checks(MultiTaskClassifier(rounds=5), MultiTaskRegressor(rounds=5))
def test_checks_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X names no tasks")
        check(estimator)


@pytest.mark.slow
@checks(MultiTaskClassifier(loss=Logistic(), standardize="none", rounds=5))
def test_checks_with_probabilities(estimator, check):
    test_checks_of_scikit_learn(estimator, check)


def drawn(rng, names, kind, rows=(6, 14)):
    """Return a table of features, labels or numbers, and the task of each row, in random order; each task has all."""
    X, y, task = [], [], []
    for name in names:
        n = int(rng.integers(*rows))
        x = rng.normal(1, 2, size=(n, D))
        value = x @ rng.normal(1, 0.5, size=D) + 0.5 * rng.normal(size=n)
        if kind != "numbers":
            cuts = np.quantile(value, [0.5] if kind == "two" else [0.3, 0.6])
            value = np.array(["a", "b", "c"])[np.digitize(value, cuts)]
        X, y, task = [*X, x], [*y, value], [*task, *[name] * n]
    order = rng.permutation(len(task))
    return np.concatenate(X)[order], np.concatenate(y)[order], [task[i] for i in order]


def as_list(X, y, task):
    """Return the rows by task, in the order of the tasks' names, and the places of their rows."""
    names = sorted(set(task))
    places = [[i for i, each in enumerate(task) if each == name] for name in names]
    return [X[at] for at in places], [y[at] for at in places], places


@examples(15)
@given(
    st.sampled_from(["groups", "first", "last", "name", "sparse"]),
    st.sampled_from(["two", "three", "numbers"]),
    st.integers(0, 2**32 - 1),
)
def test_a_table_is_the_list_of_its_tasks(form, kind, seed):
    rng = np.random.default_rng(seed)
    names = [(2, "x"), (1, "y"), (1, "x")] if form == "groups" else ["q", "p", "r"] if form == "name" else [5, -3, 0.5]
    X, y, task = drawn(rng, names, kind)
    settings = {"rounds": 3, "standardize": "none" if form == "sparse" else "all", "loss": None}
    if kind != "numbers":
        settings["loss"] = Logistic()
    table, groups = X, None
    if form == "groups":
        groups = task
    elif form == "name":
        table = pd.DataFrame(X, columns=list("uvw")).astype(object)
        table.insert(int(rng.integers(D)), "task", task)
    else:
        table = np.insert(X, 0 if form == "first" else D, task, axis=1)
        table = csr_array(table) if form == "sparse" else table
    where = {"groups": None, "first": 0, "name": "task"}.get(form, -1)
    model = MultiTask(**settings, task=where).fit(table, y, groups=groups)
    Xs, ys, places = as_list(X, y, task)
    other = MultiTask(**settings).fit([*map(csr_array, Xs)] if form == "sparse" else Xs, ys)
    assert np.array_equal(model.models_.W, other.models_.W)
    assert model.tasks_.tolist() == sorted(names)
    for method in ("predict", *(["decision_function", "predict_proba"] if kind != "numbers" else [])):
        ours, by_task = getattr(model, method)(table, groups), getattr(other, method)(Xs)
        assert len(ours) == len(y)
        for at, expected in zip(places, by_task, strict=True):
            assert np.allclose(ours[at], expected) if ours.dtype.kind == "f" else np.array_equal(ours[at], expected)
    if kind != "numbers":
        assert model.score(table, y, groups=groups) == np.mean(model.predict(table, groups) == y)
        scores, p = model.decision_function(table, groups), model.predict_proba(table, groups)
        each = expit(scores) if kind == "three" else np.stack([1 - expit(scores), expit(scores)], axis=1)
        assert np.allclose(p, each / each.sum(1, keepdims=True))
        assert np.array_equal(model.classes_[p.argmax(1)], model.predict(table, groups))


def by_hand(model, X, y, task, train, test):
    """Return the predictions for test rows of models of lists, trained on the training rows."""
    parts, out = as_list(X[train], y[train], [task[i] for i in train]), np.empty(len(test), y.dtype)
    names = sorted({task[i] for i in train})
    fitted = model.fit(*parts[:2])
    at = [[j for j, i in enumerate(test) if task[i] == name] for name in names]
    for places, predicted in zip(at, fitted.predict([X[test[places]] for places in at]), strict=True):
        out[places] = predicted
    return out


@pytest.mark.parametrize("kind", [pytest.param("three", marks=pytest.mark.slow), "numbers"])
def test_cross_validation_and_grids_are_the_loop_by_hand(kind):
    """By a column of tasks, in a pipeline, and by metadata routing, with the same predictions bit for bit."""
    X, y, task = drawn(np.random.default_rng(1), [3, 1, 2], kind, rows=(12, 20))
    labels = kind != "numbers"
    estimator = MultiTaskClassifier if labels else MultiTaskRegressor
    folds = [*(StratifiedKFold if labels else KFold)(3).split(X, y)]  # what cv=3 stands for
    grid, scores, predicted = [0.01, 1.0], {}, {}
    for lam in grid:
        predicted[lam] = [by_hand(MultiTask(lam, rounds=5), X, y, task, *fold) for fold in folds]
        true = [y[test] for _, test in folds]
        pairs = [*zip(predicted[lam], true, strict=True)]
        scores[lam] = [
            np.mean(p == t) if labels else 1 - np.sum((p - t) ** 2) / np.sum((t - t.mean()) ** 2) for p, t in pairs
        ]
    best = max(grid, key=lambda lam: np.mean(scores[lam]))
    table = pd.DataFrame(X, columns=list("uvw")).assign(task=task)
    model = estimator(task="task", rounds=5)
    assert cross_val_score(model.set_params(lam=1.0), table, y, cv=3).tolist() == pytest.approx(scores[1.0], abs=1e-14)
    out = cross_val_predict(model, table, y, cv=3)
    assert all(np.array_equal(out[test], p) for (_, test), p in zip(folds, predicted[1.0], strict=True))
    keep = make_column_transformer(("passthrough", list("uvw")), remainder="passthrough")
    piped = make_pipeline(keep, estimator(task=-1, rounds=5))
    for search, name in ((model, "lam"), (piped, f"{estimator.__name__.lower()}__lam")):
        search = GridSearchCV(search, {name: grid}, cv=3).fit(table, y)
        assert search.best_params_ == {name: best}
        assert search.cv_results_["mean_test_score"] == pytest.approx([np.mean(scores[lam]) for lam in grid], abs=1e-14)
        everything = [np.arange(len(y))] * 2
        assert np.array_equal(search.predict(table), by_hand(MultiTask(best, rounds=5), X, y, task, *everything))
    with config_context(enable_metadata_routing=True):
        asking = estimator(lam=1.0, rounds=5).set_fit_request(groups=True).set_score_request(groups=True)
        routed = cross_val_score(asking, X, y, cv=3, params={"groups": task})
    assert routed.tolist() == pytest.approx(scores[1.0], abs=1e-14)
    X, y, _ = as_list(X, y, task)
    for refused in (
        lambda: cross_val_score(MultiTask(), X, y, cv=KFold(3)),
        lambda: GridSearchCV(MultiTask(), {"lam": grid}, cv=3).fit(X, y),
        lambda: cross_val_predict(make_pipeline(MultiTask()), X, y, cv=3),
    ):
        with pytest.raises(ValueError, match="X is a list of tasks"):
            refused()


@pytest.mark.parametrize("kind", ["two", "numbers"])
def test_new_tasks_get_the_common_model(kind):
    X, y, task = drawn(np.random.default_rng(2), [1, 2, 3, 4], kind)
    table = np.column_stack([X, task])
    train = table[:, -1] != 4
    estimator = MultiTaskClassifier if kind == "two" else MultiTaskRegressor
    model = estimator(lam=0.3, task=-1, standardize="none", center="none", rounds=5).fit(table[train], y[train])
    W, B = model.models_.W, np.ones((3, 3)) / 0.1 + np.linalg.inv(model.Omega_) / 0.3
    w0 = np.ones(3) @ np.linalg.inv(B) @ W / 0.1  # w0 = V 1/λ0, V = W B⁻¹
    scores = X[~train] @ w0[:-1] + w0[-1] + model.models_.target_mean[0]
    expected = scores if kind == "numbers" else model.classes_[(scores > 0).astype(int)]
    predicted = model.predict(table[~train])
    assert np.allclose(predicted, expected) if kind == "numbers" else np.array_equal(predicted, expected)
    scored = cross_val_score(model, table, y, groups=task, cv=GroupKFold(4))
    for k, (seen, new) in enumerate(GroupKFold(4).split(X, y, task)):
        assert scored[k] == model.fit(table[seen], y[seen]).score(table[new], y[new])
    for other in ({"regularizer": Mean(0.1)}, {"standardize": "task"}):
        with pytest.raises(DataError, match=r"task 4\.0\."):
            estimator(task=-1, rounds=1, **other).fit(table[train], y[train]).predict(table)


def optimum(model, X, y, task, weights):
    """Return the primal objective of the optimum without coupling or preprocessing, by scikit-learn's solvers."""
    total, lam = 0.0, model.regularizer.lam
    for name in set(task):
        at = [i for i, each in enumerate(task) if each == name and weights[i] > 0]
        x, t, w = X[at], y[at], weights[at] / weights[at].sum()
        if isinstance(model.loss, Squared):
            coef = RidgeRegression(lam, fit_intercept=False).fit(x, t, w).coef_
            total += w @ (x @ coef - t) ** 2 / 2 + lam / 2 * coef @ coef
        else:
            coef = LogisticRegression(C=1 / lam, fit_intercept=False, tol=1e-9).fit(x, t, w).coef_[0]
            total += w @ np.logaddexp(0, -np.where(t == "b", 1, -1) * (x @ coef)) + lam / 2 * coef @ coef
    return total


@examples(8)
@given(st.sampled_from(["two", "numbers"]), st.sampled_from([None, "balanced", {"b": 3}]), st.integers(0, 2**32 - 1))
def test_the_gap_certifies_weights(kind, class_weight, seed):
    rng = np.random.default_rng(seed)
    X, y, task = drawn(rng, "pq", kind)
    weights = rng.exponential(size=len(y)) * (rng.random(len(y)) > 0.2)
    one_of_each = {
        (name, label if kind == "two" else ""): i for i, (name, label) in enumerate(zip(task, y, strict=True))
    }
    weights[[*one_of_each.values()]] += 0.1
    plain = {"intercept": False, "standardize": "none", "center": "none", "tolerance": 1e-6, "regularizer": Ridge(0.1)}
    if kind == "numbers":
        class_weight = None
    model = MultiTask(**plain, loss=Squared() if kind == "numbers" else Logistic(), class_weight=class_weight)
    model.fit(X, y, weights, groups=task)
    full = weights.copy()
    if class_weight:
        for name in "pq":
            at = [i for i, each in enumerate(task) if each == name and weights[i] > 0]
            totals = {label: weights[at] @ (y[at] == label) for label in "ab"}
            each = {label: 1 / total for label, total in totals.items()} if class_weight == "balanced" else class_weight
            full[at] *= [each.get(label, 1) for label in y[at]]
    best = optimum(model, X, y, task, full)
    assert best - 1e-9 <= model.primal_ <= best + model.gap_ + 1e-9
    assert model.gap_ <= 1e-6 * model.primal_


def test_weights_are_repetitions():
    """In their objective: rows of weight 2 are two rows, in any scale, and those of weight 0 are none."""
    rng = np.random.default_rng(3)
    X, y, task = drawn(rng, "pqr", "three")
    weights = rng.integers(0, 4, size=len(y))
    again = np.repeat(np.arange(len(y)), weights)
    for class_weight in (None, "balanced"):
        model = MultiTask(
            regularizer=Mean(0.1), standardize="none", tolerance=1e-5, rounds=1000, class_weight=class_weight
        )
        weighted = model.fit(X, y, 7.5 * weights, groups=task).primal_
        repeated = model.fit(X[again], y[again], groups=[task[i] for i in again]).primal_
        assert weighted == pytest.approx(repeated, rel=2e-5)
    balanced = np.concatenate([compute_sample_weight("balanced", each) for each in as_list(X, y, task)[1]])
    at = np.concatenate(as_list(X, y, task)[2])
    model.fit(X, y, groups=task)
    W = model.models_.W
    full = np.empty(len(y))
    full[at] = balanced
    model.set_params(class_weight=None).fit(X, y, full, groups=task)
    assert np.allclose(model.models_.W, W)
    kept = (np.arange(len(y)) % 3 > 0) & (np.array(task) != "r")  # one task has no rows, which also scale no features
    with pytest.warns(UserWarning, match="'r'"):
        model.set_params(standardize="all", rounds=3).fit(X, y, kept, groups=task)
    assert model.tasks_.tolist() == ["p", "q"]
    W = model.models_.W
    model.fit(X[kept], y[kept], groups=[task[i] for i in np.flatnonzero(kept)])
    assert np.allclose(model.models_.W, W, rtol=1e-12)


def test_refused():
    X, y, task = drawn(np.random.default_rng(4), "pq", "two")
    table = pd.DataFrame(X, columns=list("uvw")).assign(task=task)
    many = table[["u"]].assign(**dict.fromkeys("abcdefgh", 0.0), task=task)
    fitted = MultiTaskClassifier(task="task", rounds=1, loss=Hinge()).fit(table, y)
    numbers = X[:, 0]
    for error, named, call in (
        (ConfigError, "groups is given", lambda: MultiTask(task="task").fit(table, y, groups=task)),
        (DataError, "no column 1.5", lambda: MultiTask(task=1.5).fit(X, y)),
        (DataError, "no column 'school'.*'u', 'v'", lambda: MultiTask(task="school").fit(table, y)),
        (DataError, "no column 'task'.*set_output", lambda: MultiTask(task="task").fit(table.to_numpy(), y)),
        (DataError, "column v, w", lambda: MultiTask(task="task").fit(table.assign(v="a", w="b"), y)),
        (DataError, "no column 3", lambda: MultiTask(task=3).fit(X, y)),
        (DataError, "no task", lambda: MultiTask().fit(X, y, groups=[None, *task[1:]])),
        (DataError, "groups has 1", lambda: MultiTask().fit(X, y, groups=["p"])),
        (DataError, "names no tasks, but 2", lambda: MultiTask(rounds=1).fit(X, y, groups=task).predict(X)),
        (DataError, "no column w", lambda: fitted.predict(table.drop(columns="w"))),
        (DataError, "infinity in row 1", lambda: fitted.predict(table.assign(u=[0, np.nan, *X[2:, 0]]))),
        (ValueError, "sample_weight", lambda: MultiTask().fit(X, y, -np.ones(len(y)), groups=task)),
        (ValueError, "not in class_weight", lambda: fitted.set_params(class_weight={"z": 2}).fit(table, y)),
        (ConfigError, "class_weight='even'", lambda: MultiTask(class_weight="even").fit(X, y, groups=task)),
        (ConfigError, "holds numbers", lambda: MultiTask(class_weight="balanced").fit(X, numbers, groups=task)),
        (ConfigError, "class_weight={'a': -1", lambda: MultiTask(class_weight={"a": -1, "b": 1}).fit(X, y, None, task)),
        (DataError, "Logistic", lambda: MultiTaskRegressor(loss=Logistic()).fit(X, numbers, groups=task)),
        (ConfigError, "list of tasks", lambda: MultiTask().fit([X], [y], [numbers])),
        (DataError, "y is text", lambda: MultiTaskRegressor().fit(X, y, groups=task)),
        (DataError, "mean 'task'", lambda: MultiTask(task="tsak").fit(many, y)),
    ):
        with pytest.raises(error, match=named):
            call()
    with pytest.raises(AttributeError) as error:
        fitted.predict_proba(table)
    assert "loss" in str(error.value.__cause__)
    assert not hasattr(MultiTaskRegressor(), "decision_function")
    with pytest.warns(UserWarning, match="all rows are one task"):
        assert MultiTask(rounds=1).fit(X, y).predict(X).shape == y.shape


@pytest.mark.parametrize(
    "dates",
    [
        lambda days: days,
        lambda days: days.dt.tz_localize("UTC"),
        lambda days: days.dt.to_period("D"),
        lambda days: days - days.min(),
        lambda days: days.dt.date,
        lambda days: days.where(days.index > 2),  # some are missing
    ],
    ids=["dates", "with a time zone", "periods", "differences", "objects", "missing"],
)
def test_columns_of_dates_are_named(dates):
    X, y, task = drawn(np.random.default_rng(4), "pq", "two")
    days = dates(pd.Series(pd.date_range("2026-01-01", periods=len(y))))
    table = pd.DataFrame(X[:, :2], columns=list("uv"))
    fitted = MultiTaskClassifier(rounds=1, loss=Hinge()).fit(table, y, groups=task)
    for dated in (table.assign(v=days), table.assign(u=days, v=days)):
        with pytest.raises(DataError, match="dates"):
            MultiTask().fit(dated, y, groups=task)
        with pytest.raises(DataError, match="dates"):
            fitted.predict(dated, groups=task)


def test_an_array_of_dates_is_no_table_of_numbers():
    days = np.datetime64("2026-01-01") + np.arange(6).reshape(3, 2)
    for X in (days, days - days[0, 0]):
        with pytest.raises(DataError, match="dates"):
            MultiTask().fit(X, [1.0, 2.5, 3.0], groups=[0, 0, 1])


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("kind", ["labels", "numbers"])
@pytest.mark.parametrize("empty", ["both", "X", "y"])
def test_a_task_without_rows_is_named(at, kind, empty):
    rng = np.random.default_rng(0)
    X = [rng.normal(size=(n, 3)) for n in (5, 9, 7)]
    y = [x[:, 0] if kind == "numbers" else np.where(x[:, 0] > 0, "a", "b") for x in X]
    X.insert(at, np.empty((0, 3)) if empty != "y" else X[0])
    y.insert(at, [] if empty != "X" else y[0])
    with pytest.raises(DataError, match=rf"[Tt]ask {at} has no rows"):
        MultiTask().fit(X, y)
