"""Mixed effects against the evidence by the covariance of all rows."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from hmtl.data import Task
from hmtl.mtl import Logistic, MixedEffects, Problem, Ridge, Squared
from hmtl.mtl.algorithms.mixed_effects import Mixed


def rows(seed: int, K: int, d: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    w0, root = rng.normal(size=d), rng.normal(size=(d, d))
    X = [rng.normal(size=(n, d)) for n in rng.integers(3, 9, K)]
    y = [x @ (w0 + root @ rng.normal(size=d)) + 0.7 * rng.normal(size=len(x)) for x in X]
    return X, y


def problem(X: list[np.ndarray], y: list[np.ndarray], loss=None) -> Problem:
    pairs = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(X, y, strict=True)]
    return Problem([Task(str(k), a, b, a, b) for k, (a, b) in enumerate(pairs)], loss or Squared(), Ridge(1.0))


def mixed(X: list[np.ndarray], y: list[np.ndarray], loss=None, tolerance=1e-6) -> tuple[MixedEffects, np.ndarray]:
    """Return fitted models with an intercept, and the features with mean square 1, one task after the other."""
    X = [np.column_stack([x, np.ones(len(x))]) for x in X]
    units = torch.ones(len(X), dtype=torch.float64)
    learner = MixedEffects(problem(X, y, loss), [(units, 0.0)], True, 1000, tolerance)
    rows = np.concatenate(X)
    return learner, rows / np.sqrt(np.square(rows).mean(0))


def likeliest(learner: MixedEffects) -> Mixed:
    """Return the fit with the largest share in the models of the only score."""
    ((shares,), (fits,)) = learner.shares, learner.fits
    assert sum(shares) == pytest.approx(1)
    return fits[int(np.argmax(shares))]


@pytest.mark.parametrize("deviation", [0.0, 2.0], ids=["same slopes", "other slopes"])
def test_evidence(deviation: float):
    """Models and evidence by the covariance of all rows; no other variances are more likely, if D has no prior."""
    rng = np.random.default_rng(4)
    X, b = [rng.normal(size=(n, 2)) for n in (4, 6, 3, 8, 5, 7, 6, 5)], rng.normal(size=8)
    y = [
        x @ ([1, -1] + deviation * rng.normal(size=2)) + c + rng.normal(size=len(x)) for x, c in zip(X, b, strict=True)
    ]
    learner, rows = mixed(X, y)
    fit = likeliest(learner)
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
    average = sum(share * each.W for share, each in zip(learner.shares[0], learner.fits[0], strict=True))
    np.testing.assert_allclose(learner.W.T.numpy() * units, average)
    for k, w in enumerate(fit.W):
        own = same[np.flatnonzero(np.repeat(np.arange(8), [*map(len, X)]) == k)[0]]
        np.testing.assert_allclose(w, w0 + D @ rows[own].T @ gain[own], atol=1e-3)
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
    fit, task = likeliest(learner), np.repeat(np.arange(12), 5)
    means = np.array([rows[task == k, :2].mean(0) for k in range(12)])
    columns, D, noise = np.column_stack([rows, means[task]]), fit.D, fit.noise
    flat = 100 * np.square(np.concatenate(y)).mean()  # the prior of the intercept, which is hardly one
    prior = np.diag([fit.spread[0]] * 2 + [flat] + [fit.spread[1]] * 2)
    own = np.equal.outer(task, task) * (rows @ D @ rows.T)
    V, target = columns @ prior @ columns.T + own + noise * np.eye(60), np.concatenate(y)
    best = multivariate_normal(np.zeros(60), V).logpdf(target) + 0.5 * np.log(flat)
    assert fit.evidence == pytest.approx(best, abs=0.05)
    gain = np.linalg.solve(V, target)
    fitted = (rows * fit.W[task]).sum(1)
    np.testing.assert_allclose(fitted, (columns @ prior @ columns.T + own) @ gain, atol=1e-3)


def test_the_gap_of_labels():
    """The gap bounds the distance from the optimum for the learned variances, which a general optimizer finds."""
    X, y = rows(3, 8, 2)
    learner, x = mixed(X, [np.sign(t - np.median(t)) + (t == np.median(t)) for t in y], Logistic(), 1e-2)
    fit = likeliest(learner)
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
