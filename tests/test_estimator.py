"""The estimator: the optimum by another solver, labels and numbers as they came, and scikit-learn's own ways."""

import cvxpy as cp
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from hmtl import MultiTask
from hmtl.errors import ConfigError, DataError
from hmtl.mtl import Mean, Ridge

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
    model = MultiTask(regularizer=Ridge(0.1), intercept=False, standardize="none", tolerance=1e-4).fit(X, y)
    assert -1e-9 <= model.primal_ - best <= model.gap_ + 1e-9
    assert model.gap_ <= 1e-4 * model.primal_
    assert model.rounds_ < 200
    assert not hasattr(model, "Omega_")


@pytest.mark.parametrize("labels", [["no", "yes"], [3, 7], [-1.0, 1.0], [False, True], ["a", "b", "c"]])
def test_labels_come_back_as_they_went(labels):
    X, scores = drawn(1)
    y = [np.array(labels)[np.digitize(s, np.quantile(s, np.linspace(0, 1, len(labels) + 1)[1:-1]))] for s in scores]
    model = MultiTask(lam=0.01, rounds=60).fit(X, y)
    found = model.predict(X)
    assert {label for each in found for label in each.tolist()} == set(labels)
    right = [np.mean(each == told) for each, told in zip(found, y, strict=True)]
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
    again = clone(model).set_params(regularizer=Mean(0.1)).fit(X, y)
    assert model.get_params()["regularizer"] is None
    assert again.rounds_ == 3
    assert not hasattr(model, "models_")
    same = MultiTask(lam=0.1, rounds=3, seed=4).fit(X, y), clone(model).fit(X, y)
    assert np.array_equal(same[0].models_.W, same[1].models_.W)


def test_mistakes():
    X, y = drawn(5)
    for error, words, call in (
        (DataError, "X has 4 tasks, y 3", lambda: MultiTask().fit(X, y[:3])),
        (DataError, "X has 0 tasks", lambda: MultiTask().fit([], [])),
        (DataError, "y is no in all tasks", lambda: MultiTask().fit(X, [np.full(len(x), "no") for x in X])),
        (ConfigError, "rounds=0", lambda: MultiTask(rounds=0).fit(X, y)),
        (ConfigError, "lam", lambda: MultiTask(lam=-1).fit(X, y)),
        (NotFittedError, "not fitted yet", lambda: MultiTask().predict(X)),
        (NotFittedError, "not fitted yet", lambda: MultiTask().score(X, y)),
        (DataError, "X has 1 tasks, fitted were 4", lambda: MultiTask(rounds=1).fit(X, y).predict(X[:1])),
    ):
        with pytest.raises(error, match=words):
            call()


def test_a_task_without_new_rows():
    X, y = drawn(6)
    model = MultiTask(rounds=1).fit(X, y)
    found = model.predict([X[0], [], np.empty((0, D)), X[3]])
    assert [len(each) for each in found] == [len(X[0]), 0, 0, len(X[3])]
    assert found[3].tolist() == model.predict(X)[3].tolist()
