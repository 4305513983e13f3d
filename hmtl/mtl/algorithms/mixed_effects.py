"""Mixed effects: users' models are draws from one normal distribution, whose variances maximise the evidence.

K users, d features, n_k rows of user k, N rows in total.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_expit
from torch import Tensor

from hmtl.data import Task
from hmtl.errors import ConfigError
from hmtl.mtl.losses import Logistic, Loss, Squared
from hmtl.mtl.problem import Problem, runs

MOST_FEATURES = 300  # D and each user's curvature have d² numbers, and an iteration takes K·d³ operations
MOST_NUMBERS = 2 * 10**7  # in all users' curvatures, of which some ten copies are in memory
MOST_WORK = 3 * 10**7  # K·p²·a for p features, of which a differ between tasks, up to which means of tasks are tried
Array = NDArray[np.float64]
OBSERVED = 30  # how many models the prior of a full D counts as


@dataclass(frozen=True, eq=False)
class Mixed:
    """Models w_k = w0 + u_k of one score with u_k ~ N(0, D) and w0 ~ N(0, Γ).

    Attributes:
        W: most probable models [K, d].
        w0: most probable w0 [d], and behind it the weights of the means of tasks, which `W` has in the intercepts.
        D: covariance of u_k [d, d].
        spread: variance of the components of w0, except for the intercept, whose prior is nearly flat; and another
            one for means of tasks.
        noise: variance of the noise; 1 for labels.
        unit: variance of the targets within tasks; 1 for labels.
        evidence: log-likelihood of D, Γ and the noise; for labels, by Laplace's approximation.
        primal: Σ ω ℓ / noise + ½ Σ u_kᵀD⁻¹u_k + ½ w0ᵀΓ⁻¹w0.
        gap: duality gap, a bound of how much `primal` exceeds its minimum over all models; infinite if the last step
            was shortened.
        iterations: number of iterations.
        settled: whether the evidence and the models have converged.
    """

    W: Array
    w0: Array
    D: Array
    spread: Array
    noise: float
    unit: float
    evidence: float
    primal: float
    gap: float
    iterations: int
    settled: bool


class MixedEffects:
    """Linear models of numbers or labels as draws from a normal distribution, with all variances from the rows.

    The evidence, less the number of variances and of units that the rows determine, decides between models that differ
    in their intercepts only and models whose slopes differ, too, with one variance; and between units of the targets.
    For this choice, it decides whether intercepts go with the features: then the means of the features over each task
    have weights in w0, too, with a variance of their own (Mundlak 1978). One variance for all slopes is then the mean
    of an inverse Wishart prior of a full D, which counts as `OBSERVED` models and is learned for at most as many
    features, if tasks have as many rows as features on average.

    Args:
        problem: dense rows and loss, `Squared` or `Logistic`; several classes are learned one against the rest. The
            regularizer and the reduction are not used.
        units: choices of units of each task's targets, [K] each, and how many of them the rows determine.
        intercept: whether the last feature is an intercept.
        iterations: largest number of iterations of each fit.
        tolerance: relative precision of the models, see `Mixed.gap`; and precision of the evidence for one row.
        seed: not used, only kept.

    Attributes:
        fits: fit of each score, with features of mean square 1, their means over tasks, if chosen, behind them, and
            targets in the chosen units.
        W: models [C·d, K], for features and targets without units; means of tasks are in the intercepts.
        w0: common model [C·d], for tasks whose means are unknown, too.
        primal, gap: sums over the C scores, see `Mixed`.
        iterations: number of iterations of the chosen fit.
        settled: whether it has converged.

    Raises:
        ConfigError: no iterations.

    Ref: MacKay 1992 (updates of variances); Laird and Ware 1982; Mundlak 1978; Tierney and Kadane 1986.
    """

    def __init__(
        self,
        problem: Problem,
        units: Sequence[tuple[Tensor, float]],
        intercept: bool,
        iterations: int,
        tolerance: float,
        seed: int = 0,
    ) -> None:
        if iterations < 1:
            raise ConfigError(f"rounds={iterations} has to be at least 1. Give a number such as 200.")
        self.problem = problem
        self.seed = seed
        K, d = problem.K, problem.d
        slopes = np.ones(d)
        slopes[d - intercept :] = 0
        groups = np.stack([slopes, 1 - slopes])[: 1 + intercept]
        choices = [groups[1:]] + [groups] * (K > 1)
        every = _ScoreRows(problem, slopes)
        self.fits: list[Mixed] = []
        models = []
        for score in range(problem.outputs):
            best, starts = -math.inf, dict[int, Mixed]()
            targets = every.y if problem.outputs == 1 else np.where(every.y == score, 1.0, -1.0)
            for unit, learned in units:
                rows = every.with_targets(targets, unit.numpy())
                for i, variances in enumerate(choices):
                    fit = starts[i] = _fit(rows, variances, starts.get(i), False, iterations, tolerance)
                    if (worth := fit.evidence - np.log(rows.units) @ rows.counts - learned - len(variances)) > best:
                        best, chosen = worth, (rows, variances, fit)
            rows, variances, fit = chosen
            new, more = fit.w0, rows.with_means()
            p = more.priors.shape[1]
            is_quick = K * p**2 * variances.sum() <= MOST_WORK
            if intercept and K > 1 and p > d and is_quick:
                other = _fit(more, variances, fit, False, iterations, tolerance)
                if other.evidence > fit.evidence + 1:
                    rows, fit = more, other
            if variances is groups and K > 1 and d <= min(OBSERVED, len(rows.y) / K):
                fit = _fit(rows, groups, fit, True, iterations, tolerance)
            self.fits.append(fit)
            models.append(rows.restored(fit.W, new if rows is more else fit.w0))  # means of new tasks are unknown
        self.W, self.w0 = torch.from_numpy(np.concatenate(models, axis=1)).T.tensor_split([K], dim=1)
        self.primal = sum(fit.primal for fit in self.fits)
        self.gap = sum(max(0.0, fit.gap) for fit in self.fits)  # rounding errors at an optimum may be below 0
        self.iterations = max(fit.iterations for fit in self.fits)
        self.settled = all(fit.settled for fit in self.fits)

    @staticmethod
    def supports(tasks: Sequence[Task], loss: Loss) -> bool:
        """Return whether tasks and the loss of one score suit mixed effects."""
        K, d = len(tasks), tasks[0].x_train.shape[1]
        suitable = type(loss) in (Squared, Logistic) and not tasks[0].is_sparse
        return suitable and d <= MOST_FEATURES and K * d**2 <= MOST_NUMBERS


class _ScoreRows:
    """Rows of the users with targets of one score, as arrays: NumPy multiplies many small matrices faster than torch.

    Attributes:
        X: features of mean square 1 [N, d].
        units: units of the targets [K].
        y: targets in these units [N].
        means: means of features over each task, which have weights in w0, too [K, p - d].
        priors: components of w0 with one variance each, as rows of 0 and 1 [v, p].
    """

    def __init__(self, problem: Problem, slopes: Array) -> None:
        self.is_binary = not problem.binary.unbounded
        self.counts = np.array(problem.here)
        self.user = np.repeat(np.arange(problem.K), self.counts)
        self.X: Array = torch.cat([task.x_train.double() for task in problem.tasks]).numpy()
        self.weights: Array = torch.cat([task.weights for task in problem.tasks]).numpy()
        square = self.weights @ np.square(self.X) / len(self.X)
        self.scales = np.sqrt(np.where(square > 0, square, 1.0))
        self.X /= self.scales
        self.units = np.ones(problem.K)
        self.y: Array = torch.cat([task.y_train for task in problem.tasks]).numpy()
        self.means = np.zeros((problem.K, 0))
        self.priors = slopes[None]
        self.runs = [(users, at, self.X[at].reshape(-1, n, problem.d)) for users, at, n in runs(problem.here)]
        self.squares = self._curvatures(self.weights)

    def with_targets(self, targets: Array, units: Array) -> "_ScoreRows":
        """Return these rows with targets [N] in units [K]."""
        new = copy.copy(self)
        new.units, new.y = units, targets / units[self.user]
        return new

    def with_means(self) -> "_ScoreRows":
        """Return these rows with the means over their task of all features that vary within tasks as more features."""
        new, d = copy.copy(self), self.X.shape[1]
        means = self._combined(self.weights)[0] / np.bincount(self.user, self.weights)[:, None]
        new.means = means[:, np.square(self.X - means[self.user]).mean(0) > 1e-9]
        new.priors = np.zeros((2, d + new.means.shape[1]))
        new.priors[0, :d], new.priors[1, d:] = self.priors[0], 1
        return new

    def restored(self, W: Array, w0: Array) -> Array:
        """Return all users' models and w0 [K + 1, d] for features and targets without units."""
        units = np.append(self.units, np.exp(np.log(self.units).mean()))
        models: Array = np.concatenate([W, w0[None, : len(self.scales)]]) / self.scales * units[:, None]
        return models

    def predictions(self, W: Array) -> Array:
        """Return the predictions of models W [K, d], [N]."""
        return np.concatenate([(X @ W[users, :, None]).ravel() for users, _, X in self.runs])

    def _combined(self, *columns: Array) -> Array:
        """Return Σ_j a_j x_j of each user for m columns a [N], [m, K, d]."""
        a = np.stack(columns, axis=1)
        parts = [X.transpose(0, 2, 1) @ a[at].reshape(len(X), -1, len(columns)) for _, at, X in self.runs]
        return np.concatenate(parts).transpose(2, 0, 1)

    def _curvatures(self, s: Array) -> Array:
        """Return Σ_j s_j x_j x_jᵀ of each user [K, d, d]."""
        return np.concatenate([(X * s[at].reshape(len(X), -1, 1)).transpose(0, 2, 1) @ X for _, at, X in self.runs])

    def at(self, p: Array) -> tuple[float, Array, Array, Array]:
        """Return Σ ωℓ, V = Σ_j ωax and Σ_j ω(a + ℓ″p)x [K, d], and Σ_j ωℓ″xxᵀ [K, d, d] at predictions p [N]."""
        if not self.is_binary:
            a, losses, second, curvatures = self.y - p, np.square(self.y - p) / 2, 1.0, self.squares
        else:
            b = expit(-self.y * p)
            a, losses, second = self.y * b, -log_expit(self.y * p), np.maximum(b * (1 - b), 1e-9)
            curvatures = self._curvatures(self.weights * second)
        V, right = self._combined(self.weights * a, self.weights * (a + second * p))
        return float(self.weights @ losses), V, right, curvatures


def _times(F: Array, A: Array) -> Array:
    """Return F A for a symmetric matrix F [q, q], or its diagonal [q], and A [..., q, m]."""
    product: Array = F[:, None] * A if F.ndim == 1 else F @ A
    return product


def _fit(
    rows: _ScoreRows, groups: Array, start: Mixed | None, is_full: bool, iterations: int, tolerance: float
) -> Mixed:
    """Fit models and variances by turns: a step of Newton's method for the models, an update of the variances.

    A user's model is w_k = T_k w0 + u_k, where T_k adds the weights of its task's means to the intercept. With the
    curvature A_k of its losses, its rows determine T_k w0 with the precision N_k = A_k - A_k (D⁻¹ + A_k)⁻¹ A_k. All
    else follows from the rows of N_k for which u_k may differ from 0. D = F² may be singular.

    Args:
        rows: rows of one score.
        groups: components of u_k with one variance each, as rows of 0 and 1 [g, d]: all, the last, or none.
        start: fit with these groups to start from, in any units and with or without means of tasks; or None.
        is_full: whether D is full; that of the start is its prior.
        iterations, tolerance: as in `MixedEffects`.
    """
    (K, d), (priors, means), q = (len(rows.counts), rows.X.shape[1]), (rows.priors, rows.means), int(groups.sum())
    own, p = slice(d - q, d), priors.shape[1]  # components of u_k that are not 0; numbers in w0
    deviations = rows.y - (np.bincount(rows.user, rows.y) / rows.counts)[rows.user]
    within, square = (float(np.square(each).mean()) for each in (deviations, rows.y))
    unit = 1.0 if rows.is_binary else within or square or 1.0
    least, flat = 1e-8 * unit, 100 * max(unit, square)  # the latter is the variance of the intercept of w0
    most = (1e2 if rows.is_binary else 1e16) * unit  # separable labels have no finite optimum
    noise, spread, variances, W = unit, np.full(len(priors), unit / p), 0.2 * unit / groups.sum(1), np.zeros((K, d))
    D = np.diag(variances @ groups)
    if start is not None:
        factor, W = unit / start.unit, start.W
        noise, D, spread = factor * start.noise, factor * start.D, np.append(factor * start.spread, flat)[: len(priors)]
        if not is_full:
            old = (groups @ D.diagonal()) / groups.sum(1)
            variances = np.where(old > 0, old, variances)
            D = np.diag(variances @ groups)
    prior, before, is_fixed, predictions = D, -math.inf, False, rows.predictions(W)
    *_, right, curvatures = rows.at(predictions)
    for iteration in range(1, iterations + 1):
        if is_full:
            values, vectors = np.linalg.eigh(D)
            F = vectors * np.sqrt(values.clip(0)) @ vectors.T
        else:
            F = np.sqrt(D.diagonal()[own])
        A = curvatures[:, own] / noise
        both = _times(F, np.concatenate([A, right[:, own, None] / noise], axis=2))
        inner = _times(F, both[:, :, own].transpose(0, 2, 1))  # F A F
        largest = inner.diagonal(0, 1, 2).max(1, initial=0.0)[:, None]
        inner[:, range(q), range(q)] += 1 + q * np.finfo(float).eps * largest  # rounding must not make it indefinite
        L = torch.from_numpy(np.linalg.cholesky(inner))
        solved = torch.linalg.solve_triangular(L, torch.from_numpy(both), upper=False).numpy()
        Z, z = solved[..., :d], solved[..., d:]
        N = A - Z[:, :, own].transpose(0, 2, 1) @ Z
        gradient = right / noise - (Z.transpose(0, 2, 1) @ z)[..., 0]
        precision = (1 / spread) @ priors + (1 - priors.sum(0)) / flat
        P, weighted = np.diag(precision), np.append(gradient.sum(0), gradient[:, -1] @ means)
        P[:d, :d] += N.sum(0) if q == d else curvatures.sum(0) / noise - Z.reshape(-1, d).T @ Z.reshape(-1, d)
        if p > d:
            P[d:, :d] = means.T @ N[:, -1]
            P[:d, d:] = P[d:, :d].T
            P[d:, d:] += (means * N[:, -1, -1:]).T @ means
        C = np.linalg.inv(P)
        w0 = C @ weighted
        new = np.tile(w0[:d], (K, 1))
        new[:, -1] += means @ w0[d:]
        v = torch.linalg.solve_triangular(L.mT, torch.from_numpy(z - Z @ new[..., None]), upper=True).numpy()
        u = _times(F, v)[..., 0]
        new[:, own] += u
        change, step = rows.predictions(new) - predictions, 1.0
        if rows.is_binary:  # a longer step might overshoot
            step = min(1.0, 5 / max(5.0, float(np.abs(change).max())))
        predictions, W = predictions + step * change, W + step * (new - W)
        losses, V, right, curvatures = rows.at(predictions)
        penalty = 0.5 * float(np.square(v).sum() + precision @ np.square(w0))
        primal, duals = losses / noise + penalty, V / noise
        pooled = np.append(duals.sum(0), duals[:, -1] @ means)
        bound = 0.5 * float(np.square(_times(F, duals[:, own, None])).sum() + np.square(pooled) @ (1 / precision))
        gap = penalty + bound - float((duals * W).sum()) if step == 1 else math.inf  # Σ ω(ℓ + ℓ*) = -Σ ωap
        volume = 2 * float(L.diagonal(dim1=1, dim2=2).log().sum()) + np.linalg.slogdet(P)[1]
        volume += priors.sum(1) @ np.log(spread)
        if not rows.is_binary:
            volume += len(rows.y) * math.log(2 * math.pi * noise)
        evidence = float(-primal - 0.5 * volume)
        is_fixed = is_fixed or (step == 1 and abs(evidence - before) <= tolerance * len(rows.y) ** 0.5)
        settled = is_fixed and step == 1 and gap <= tolerance * abs(primal)
        if settled or iteration == iterations:
            break
        if is_fixed:
            continue  # until the models have also converged
        before = evidence
        across, covariances = means @ C[d:, :d], np.repeat(C[None, :d, :d], K, 0)  # T_k C T_kᵀ
        covariances[:, -1] += across
        covariances[:, :, -1] += across
        covariances[:, -1, -1] += ((means @ C[d:, d:]) * means).sum(1)
        NC = N @ covariances
        determined = (priors.sum(1) - priors @ C.diagonal() / spread).clip(1e-9)
        spread = ((priors @ np.square(w0)) / determined).clip(least, most)
        explained = p - float(C.diagonal() @ precision)
        if is_full:
            H = N.sum(0) - np.einsum("kid,kjd->ij", NC, N)
            explained += float((D * H).sum())
            D = (K * D - D @ H @ D + u.T @ u + OBSERVED * prior) / (K + OBSERVED)
        else:
            parts = groups[:, own]
            determined = variances * (parts @ (N[:, :, own].diagonal(0, 1, 2).sum(0) - (NC * N).sum((0, 2))))
            explained += float(determined.sum())
            learned = (parts @ np.square(u).sum(0)) / determined.clip(1e-9)
            variances = np.where((variances > least) & (determined > 1e-9), learned.clip(max=most), 0.0)
            D = np.diag(variances @ groups)
        if not rows.is_binary:
            noise = max(least, (2 * losses + noise * explained) / len(rows.y))
    return Mixed(W, w0, D, spread, noise, unit, evidence, primal, gap, iteration, settled)
