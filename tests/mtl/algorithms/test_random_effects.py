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
from hmtl.mtl import Hinge, Logistic, MixedEffects, Problem, RandomEffects, Ridge, Squared


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


@pytest.mark.slow
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


def mixed(X: list[np.ndarray], y: list[np.ndarray], loss=None, tolerance=1e-6) -> tuple[MixedEffects, np.ndarray]:
    """Return fitted models with an intercept, and the features with mean square 1, one task after the other."""
    X = [np.column_stack([x, np.ones(len(x))]) for x in X]
    units = torch.ones(len(X), dtype=torch.float64)
    learner = MixedEffects(problem(X, y, loss), [(units, 0.0)], True, True, 1000, tolerance)
    rows = np.concatenate(X)
    return learner, rows / np.sqrt(np.square(rows).mean(0))


@pytest.mark.parametrize("deviation", [0.0, 2.0], ids=["same slopes", "other slopes"])
def test_evidence(deviation: float):
    """Models and evidence by the covariance of all rows; no other variances are more likely, if D has no prior."""
    rng = np.random.default_rng(4)
    X, b = [rng.normal(size=(n, 2)) for n in (4, 6, 3, 8, 5, 7, 6, 5)], rng.normal(size=8)
    y = [
        x @ ([1, -1] + deviation * rng.normal(size=2)) + c + rng.normal(size=len(x)) for x, c in zip(X, b, strict=True)
    ]
    learner, rows = mixed(X, y)
    (fit,) = learner.fits
    assert fit.settled
    assert (fit.D[0, 0] == 0) == (deviation == 0)
    same = np.equal.outer(*[np.repeat(np.arange(8), [*map(len, X)])] * 2)
    D, spread, noise, target = fit.D, fit.spread[0], fit.noise, np.concatenate(y)
    flat = 1e4  # a prior of the intercept that is hardly one

    def covariance(D, spread, noise):
        common = rows @ np.diag([spread, spread, flat]) @ rows.T
        return common + same * (rows @ D @ rows.T) + noise * np.eye(len(rows))

    def evidence(*variances):
        V = covariance(*variances)
        return multivariate_normal(np.zeros(len(V)), V).logpdf(target) + 0.5 * np.log(flat)

    gain = np.linalg.solve(covariance(D, spread, noise), target)
    w0 = np.diag([spread, spread, flat]) @ rows.T @ gain
    units = np.sqrt(np.square(np.column_stack([np.concatenate(X), np.ones(len(rows))])).mean(0))
    for k, w in enumerate(learner.W.T.numpy()):
        own = same[np.flatnonzero(np.repeat(np.arange(8), [*map(len, X)]) == k)[0]]
        np.testing.assert_allclose(w * units, w0 + D @ rows[own].T @ gain[own], atol=1e-3)
    best = evidence(D, spread, noise)
    assert fit.evidence == pytest.approx(best, abs=0.05)
    for factor in (0.7, 1.4) if deviation == 0 else ():
        for other in ((D * factor, spread, noise), (D, spread * factor, noise), (D, spread, noise * factor)):
            assert evidence(*other) < best + 1e-3


def test_the_evidence_with_means_of_tasks():
    """Intercepts that go with the features: models and evidence by the covariance of all rows, means as columns."""
    rng = np.random.default_rng(6)
    centers, intercepts = rng.normal(size=(12, 2)), 0.3 * rng.normal(size=12)
    X = [c + rng.normal(size=(5, 2)) for c in centers]
    y = [x @ [1, 0.5] - 3 * c[0] + b + rng.normal(size=5) for x, c, b in zip(X, centers, intercepts, strict=True)]
    learner, rows = mixed(X, y)
    (fit,), task = learner.fits, np.repeat(np.arange(12), 5)
    means = np.array([rows[task == k, :2].mean(0) for k in range(12)])
    columns, D, noise = np.column_stack([rows, means[task]]), fit.D, fit.noise
    flat = 100 * np.square(np.concatenate(y)).mean()  # the prior of the intercept, which is hardly one
    prior = np.diag([fit.spread[0]] * 2 + [flat] + [fit.spread[1]] * 2)
    own = np.equal.outer(task, task) * (rows @ D @ rows.T)
    V, target = columns @ prior @ columns.T + own + noise * np.eye(60), np.concatenate(y)
    best = multivariate_normal(np.zeros(60), V).logpdf(target) + 0.5 * np.log(flat)
    assert fit.evidence == pytest.approx(best, abs=0.05)
    gain = np.linalg.solve(V, target)
    fitted = np.concatenate([np.column_stack([x, np.ones(5)]) @ w for x, w in zip(X, learner.W.T.numpy(), strict=True)])
    np.testing.assert_allclose(fitted, (columns @ prior @ columns.T + own) @ gain, atol=1e-3)


def test_the_gap_of_labels():
    """The gap bounds the distance from the optimum for the learned variances, which a general optimiser finds."""
    X, y = rows(3, 8, 2)
    learner, x = mixed(X, [np.sign(t - np.median(t)) + (t == np.median(t)) for t in y], Logistic(), 1e-2)
    (fit,) = learner.fits
    label = np.concatenate([np.sign(t - np.median(t)) + (t == np.median(t)) for t in y])
    task = np.repeat(np.arange(8), [*map(len, y)])
    root = np.linalg.cholesky(fit.D + 1e-12 * np.eye(3))

    def objective(z: np.ndarray) -> float:
        v = z.reshape(9, 3)
        w0 = v[8] * [fit.spread[0] ** 0.5, fit.spread[0] ** 0.5, 10.0]
        p = (x * (w0 + (v[:8] @ root.T)[task])).sum(1)
        return float(np.logaddexp(0, -label * p).sum() + 0.5 * np.square(v).sum())

    best = minimize(objective, np.zeros(27), method="BFGS", options={"gtol": 1e-6}).fun
    assert -1e-4 <= fit.primal - best <= fit.gap + 1e-4
    assert learner.gap <= 1e-2 * learner.primal
