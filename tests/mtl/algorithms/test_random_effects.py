"""Random effects against maximum likelihood by a general optimiser, with the covariance of all rows of a user."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from hmtl.data import Task
from hmtl.errors import ConfigError
from hmtl.mtl import Hinge, Problem, RandomEffects, Ridge, Squared


def rows(seed: int, K: int, d: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    w0, root = rng.normal(size=d), rng.normal(size=(d, d))
    X = [rng.normal(size=(n, d)) for n in rng.integers(3, 9, K)]
    y = [x @ (w0 + root @ rng.normal(size=d)) + 0.7 * rng.normal(size=len(x)) for x in X]
    return X, y


def problem(X: list[np.ndarray], y: list[np.ndarray], loss=None) -> Problem:
    pairs = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(X, y, strict=True)]
    return Problem([Task(str(k), a, b, a, b) for k, (a, b) in enumerate(pairs)], loss or Squared(), Ridge(1.0))


def minus_log_likelihood(X, y, w0, D, noise) -> float:
    return -sum(
        multivariate_normal(x @ w0, x @ D @ x.T + noise * np.eye(len(x))).logpdf(t) for x, t in zip(X, y, strict=True)
    )


@given(seed=st.integers(0, 10**6), K=st.integers(6, 8), d=st.integers(1, 2))
@settings(max_examples=4)
def test_maximum_likelihood(seed: int, K: int, d: int):
    X, y = rows(seed, K, d)
    learner = RandomEffects(problem(X, y), iterations=3000, tolerance=1e-10)
    side = learner.aggregator
    w0, D, noise = side.w0.numpy(), side.D.numpy(), float(side.noise)
    assert float(side.minus_log_likelihood) == pytest.approx(minus_log_likelihood(X, y, w0, D, noise), abs=1e-5)
    for x, t, w in zip(X, y, learner.W.T.numpy(), strict=True):
        gain = D @ x.T @ np.linalg.inv(x @ D @ x.T + noise * np.eye(len(x)))
        np.testing.assert_allclose(w, w0 + gain @ (t - x @ w0), atol=1e-6)

    lower = np.tril_indices(d)

    def objective(z: np.ndarray) -> float:
        L = np.zeros((d, d))
        L[lower] = z[d:-1]
        return minus_log_likelihood(X, y, z[:d], L @ L.T, np.exp(z[-1]) + 1e-9)

    start = np.concatenate(
        [
            np.mean([np.linalg.lstsq(x, t, rcond=None)[0] for x, t in zip(X, y, strict=True)], axis=0),
            np.eye(d)[lower],
            [np.log(0.5)],
        ]
    )
    best = minimize(objective, start, method="BFGS", options={"gtol": 1e-5}).fun
    assert float(side.minus_log_likelihood) <= best + 3e-3, "another distribution is more likely"


@given(seed=st.integers(0, 10**6), unit=st.floats(-4, 4), columns=st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_units(seed: int, unit: float, columns: list[float]):
    """Other units of targets and features change models and likelihood by their factors only."""
    X, y = rows(seed, 6, 3)
    units, unit = 10 ** np.array(columns), 10**unit
    learner, scaled = (
        RandomEffects(problem(X, y)),
        RandomEffects(problem([x * units for x in X], [t * unit for t in y])),
    )
    W, other = learner.W.numpy(), scaled.W.numpy() * units[:, None] / unit
    np.testing.assert_allclose(other, W, atol=1e-4 * abs(W).max())
    shift = sum(map(len, y)) * np.log(unit)
    assert scaled.metrics()["primal"] - shift == pytest.approx(learner.metrics()["primal"], abs=1e-3)


def test_what_travels():
    """The set-up carries n, yᵀy, Xᵀy and half of XᵀX up, and a model down; it leads to the same models."""
    X, y = rows(0, 7, 3)
    learner = RandomEffects(problem(X, y))
    users, aggregator = learner.setup()
    ids, facts = users.local_update(0)
    assert facts.shape == (7, 2 + 3 + 6)
    np.testing.assert_allclose(
        facts[0], [len(y[0]), y[0] @ y[0], *(X[0].T @ y[0]), *(X[0].T @ X[0])[np.triu_indices(3)]]
    )
    models = aggregator.update(ids, facts)
    assert torch.equal(models, learner.W.T)
    learner.step(0)
    assert torch.equal(models, learner.W.T), "rounds change nothing"


def test_no_more_features_than_rows_and_equal_tasks():
    """A user with fewer rows than features, constant columns and no noise leave all numbers finite."""
    X = [np.ones((2, 4)), np.eye(4), np.ones((1, 4))]
    y = [np.ones(2), np.ones(4), np.ones(1)]
    learner = RandomEffects(problem(X, y))
    assert learner.W.isfinite().all()
    assert np.isfinite(learner.metrics()["primal"])


def test_refused():
    X, y = rows(0, 3, 2)
    with pytest.raises(ConfigError, match="loss=squared"):
        RandomEffects(problem(X, [np.sign(t) for t in y], Hinge()))
    with pytest.raises(ConfigError, match="300"):
        RandomEffects(problem([np.ones((2, 301))], [np.ones(2)]))
    with pytest.raises(ConfigError, match="iterations"):
        RandomEffects(problem(X, y), iterations=0)
