"""Mixed effects: users' models are draws from one normal distribution, whose variances maximize the evidence.

docs/theory/mixed_effects.md derives each step. Its sections name the functions below `_fit`, in the same order.

K users, d features, N rows in total. w0 has p numbers, the last p - d of which are weights of the means of tasks, with
v variances. A diagonal D has g variances, one for each group of components; q components of u_k may differ from 0.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit, log_expit, softmax
from torch import Tensor

from hmtl.data import Task
from hmtl.errors import ConfigError
from hmtl.io.arrays import Floats
from hmtl.io.described import Described
from hmtl.mtl.losses import Logistic, Loss, Squared
from hmtl.mtl.problem import Problem, runs

MAX_FEATURES = 300  # D and each user's curvature have d² numbers, and an iteration takes K·d³ operations
MAX_NUMBERS = 2 * 10**7  # in all users' curvatures, of which some ten copies are in memory
MEANS_WORK = 3 * 10**7  # K·p²·a for p features, of which a differ between tasks, up to which means of tasks are tried
MAX_LAG = 7.0  # logarithm of how much less likely choices may be for whose means and full D are fitted, too
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

    W: Floats
    w0: Floats
    D: Floats
    spread: Floats
    noise: float
    unit: float
    evidence: float
    primal: float
    gap: float
    iterations: int
    settled: bool


class MixedEffects(Described):
    """Linear models of numbers or labels as draws from a normal distribution, with all variances from the rows.

    Several structures are fitted: one model for all tasks, models that differ in their intercepts only, and models
    whose slopes differ, too, with one variance; each in all units of the targets. For those that are likely, intercepts
    that go with the features are another one: the means of the features over each task then have weights in w0, too,
    with a variance of their own (Mundlak 1978). One variance for all slopes is then also the mean of an inverse Wishart
    prior of a full D, which counts as `OBSERVED` models and is learned for at most as many features, if tasks have as
    many rows as features on average. With few rows, the evidence says little about the structure. So the models are
    averages over structures, with shares ∝ exp(evidence - c) for c variances and units that the rows determine.

    Args:
        problem: dense rows and loss, `Squared` or `Logistic`; several classes are learned one against the rest. The
            regularizer and the reduction are not used.
        units: choices of units of each task's targets, [K] each, and how many of them the rows determine.
        intercept: whether the last feature is an intercept.
        iterations: largest number of iterations of each fit.
        tolerance: relative precision of the models, see `Mixed.gap`; and precision of the evidence for one row.
        seed: not used, only kept.

    Attributes:
        fits: fits of each score, with features of mean square 1, their means over tasks, if used, behind them, and
            targets in their units.
        shares: shares of these fits in the models, whose sum is 1.
        W: models [C·d, K], for features and targets without units; means of tasks are in the intercepts.
        w0: common model [C·d], for tasks whose means are unknown, too.
        primal, gap: means over the fits by their shares, summed over the C scores, see `Mixed`.
        iterations: largest number of iterations of a fit.
        settled: whether the fits have converged whose share is above the tolerance.

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
        all_groups = np.stack([slopes, 1 - slopes])[: 1 + intercept]
        choices = [all_groups[:0]] * (intercept and K > 1) + [all_groups[1:]] + [all_groups] * (K > 1)
        every = _ScoreRows(problem, slopes)
        self.fits: list[tuple[Mixed, ...]] = []
        self.shares: list[Floats] = []
        models, averages = [], []
        for score in range(problem.outputs):
            targets = every.y if problem.outputs == 1 else np.where(every.y == score, 1.0, -1.0)
            bases: list[tuple[float, _ScoreRows, Floats, Mixed]] = []
            starts = dict[int, Mixed]()
            for unit, learned in units:
                rows = every.with_targets(targets, unit.numpy())
                for i, groups in enumerate(choices):
                    fit = starts[i] = _fit(rows, groups, starts.get(i), False, iterations, tolerance)
                    cost = np.log(rows.units) @ rows.counts + learned + len(groups)
                    bases.append((cost, rows, groups, fit))
            best = max(fit.evidence - cost for cost, _, _, fit in bases)
            fits: list[Mixed] = []
            worths, restored = [], []
            for cost, rows, groups, fit in bases:
                if fit.evidence - cost < best - MAX_LAG:
                    continue
                new = [(rows, cost, fit)]
                more = rows.with_means() if len(groups) else rows
                p = more.priors.shape[1]
                if intercept and K > 1 and p > d and K * p**2 * groups.sum() <= MEANS_WORK:
                    new.append((more, cost + 1, _fit(more, groups, fit, False, iterations, tolerance)))
                if len(groups) == len(all_groups) and K > 1 and d <= min(OBSERVED, len(rows.y) / K):
                    new += [(r, c, _fit(r, groups, other, True, iterations, tolerance)) for r, c, other in new]
                for at, cost_at, each in new:
                    fits.append(each)
                    worths.append(each.evidence - cost_at)
                    w0 = each.w0 if at is rows else fit.w0  # means of new tasks are unknown
                    restored.append(at.restored(each.W, w0))
            shares = softmax(worths)
            self.fits.append(tuple(fits))
            self.shares.append(shares)
            models.append(np.einsum("f,fkd->kd", shares, np.stack(restored)))
            averages += [(float(share), fit) for share, fit in zip(shares, fits, strict=True)]
        self.W, self.w0 = torch.from_numpy(np.concatenate(models, axis=1)).T.tensor_split([K], dim=1)
        self.primal = sum(share * fit.primal for share, fit in averages)
        self.gap = sum(share * max(0.0, fit.gap) for share, fit in averages)  # rounding errors may be below 0
        self.iterations = max(fit.iterations for _, fit in averages)
        self.settled = all(fit.settled for share, fit in averages if share > tolerance)

    @staticmethod
    def supports(tasks: Sequence[Task], loss: Loss) -> bool:
        """Return whether tasks and the loss of one score suit mixed effects."""
        K, d = len(tasks), tasks[0].x_train.shape[1]
        suitable = type(loss) in (Squared, Logistic) and not tasks[0].is_sparse
        return suitable and d <= MAX_FEATURES and K * d**2 <= MAX_NUMBERS


class _ScoreRows:
    """Rows of the users with targets of one score, as arrays: NumPy multiplies many small matrices faster than torch.

    Attributes:
        X: features of mean square 1 [N, d].
        units: units of the targets [K].
        y: targets in these units [N].
        means: means of features over each task, which have weights in w0, too [K, p - d].
        priors: components of w0 with one variance each, as rows of 0 and 1 [v, p].
    """

    def __init__(self, problem: Problem, slopes: Floats) -> None:
        self.is_binary = not problem.binary.unbounded
        self.counts = np.array(problem.here)
        self.user = np.repeat(np.arange(problem.K), self.counts)
        self.X: Floats = torch.cat([task.x_train.double() for task in problem.tasks]).numpy()
        self.weights: Floats = torch.cat([task.weights for task in problem.tasks]).numpy()
        square = self.weights @ np.square(self.X) / len(self.X)
        self.scales = np.sqrt(np.where(square > 0, square, 1.0))
        self.X /= self.scales
        self.units = np.ones(problem.K)
        self.y: Floats = torch.cat([task.y_train for task in problem.tasks]).numpy()
        self.means = np.zeros((problem.K, 0))
        self.priors = slopes[None]
        self.runs = [(users, at, self.X[at].reshape(-1, n, problem.d)) for users, at, n in runs(problem.here)]
        self.squares = self._curvatures(self.weights)

    def with_targets(self, targets: Floats, units: Floats) -> "_ScoreRows":
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

    def restored(self, W: Floats, w0: Floats) -> Floats:
        """Return all users' models and w0 [K + 1, d] for features and targets without units."""
        units = np.append(self.units, np.exp(np.log(self.units).mean()))
        models: Floats = np.concatenate([W, w0[None, : len(self.scales)]]) / self.scales * units[:, None]
        return models

    def predictions(self, W: Floats) -> Floats:
        """Return the predictions of models W [K, d], [N]."""
        return np.concatenate([(X @ W[users, :, None]).ravel() for users, _, X in self.runs])

    def _combined(self, *columns: Floats) -> Floats:
        """Return Σ_j a_j x_j of each user for m columns a [N], [m, K, d]."""
        a = np.stack(columns, axis=1)
        parts = [X.transpose(0, 2, 1) @ a[at].reshape(len(X), -1, len(columns)) for _, at, X in self.runs]
        return np.concatenate(parts).transpose(2, 0, 1)

    def _curvatures(self, s: Floats) -> Floats:
        """Return Σ_j s_j x_j x_jᵀ of each user [K, d, d]."""
        return np.concatenate([(X * s[at].reshape(len(X), -1, 1)).transpose(0, 2, 1) @ X for _, at, X in self.runs])

    def expansion(self, p: Floats) -> "_Expansion":
        """Return the expansion of the losses to second order at predictions p [N]."""
        if not self.is_binary:
            residuals = self.y - p
            losses = np.square(residuals) / 2
            a, second, curvatures = residuals, 1.0, self.squares
        else:
            b = expit(-self.y * p)
            losses = -log_expit(self.y * p)
            a, second = self.y * b, np.maximum(b * (1 - b), 1e-9)
            curvatures = self._curvatures(self.weights * second)
        V, right = self._combined(self.weights * a, self.weights * (a + second * p))
        return _Expansion(float(self.weights @ losses), V, right, curvatures)


@dataclass(frozen=True, eq=False)
class _Expansion:
    """Losses of all users to second order at predictions p, as in penalized quasi-likelihood.

    Attributes:
        losses: Σ ωℓ over all rows.
        V: Σ_j ωax of each user, where a = -ℓ′ are its duals [K, d].
        right: Σ_j ω(a + ℓ″p)x, the right-hand sides of the normal equations [K, d].
        curvatures: Σ_j ωℓ″xxᵀ [K, d, d].
    """

    losses: float
    V: Floats
    right: Floats
    curvatures: Floats


@dataclass(frozen=True, eq=False)
class _Structure:
    """Covariance structure of u_k: D is full, or diagonal with one variance for each group of components.

    Attributes:
        groups: components with one variance each, as rows of 0 and 1 [g, d]: all, the last, or none.
        prior: mean [d, d] of the inverse Wishart prior of a full D; None if D is diagonal.
    """

    groups: Floats
    prior: Floats | None

    @property
    def own(self) -> slice:
        """The components of u_k that may differ from 0: the last q."""
        d = self.groups.shape[1]
        return slice(d - int(self.groups.sum()), d)

    def root(self, D: Floats) -> Floats:
        """Return F with D = F², [q, q], or its diagonal [q] if D is diagonal. D may be singular."""
        if self.prior is None:
            diagonal: Floats = np.sqrt(D.diagonal()[self.own])
            return diagonal
        values, vectors = np.linalg.eigh(D)
        root: Floats = vectors * np.sqrt(values.clip(0)) @ vectors.T
        return root


@dataclass(frozen=True)
class _Scales:
    """Sizes of variances that follow from the targets.

    Attributes:
        unit: variance of the targets within tasks; 1 for labels.
        flat: variance of the intercept of w0, whose prior is nearly flat.
        least: variances below it are 0, except for those of w0 and of the noise, which are at least so large.
        most: largest variance.
    """

    unit: float
    flat: float
    least: float
    most: float


@dataclass(frozen=True, eq=False)
class _Variances:
    """Variance components.

    Attributes:
        D: covariance of u_k [d, d].
        grouped: the variance of each group of components [g], of which a diagonal D consists.
        spread: variances in Γ, the prior covariance of w0, except for the intercept [v].
        noise: variance of the noise.
    """

    D: Floats
    grouped: Floats
    spread: Floats
    noise: float


@dataclass(frozen=True, eq=False)
class _Marginal:
    """Likelihood of all T_k w0 with the random effects u_k integrated out.

    A_k is the information of user k's rows, its curvature divided by the noise.

    Attributes:
        F: root of D, see `_Structure.root`.
        own: components of u_k that may differ from 0.
        L: Cholesky factors of I + F A_k F [K, q, q].
        Z: L⁻¹ F A_k [K, q, d].
        z: L⁻¹ F b_k for right-hand sides b_k [K, q, 1].
        N: rows of the information N_k = A_k - A_k (D⁻¹ + A_k)⁻¹ A_k about T_k w0 for these components [K, q, d].
        total: Σ_k N_k [d, d].
        gradient: b_k - A_k (D⁻¹ + A_k)⁻¹ b_k [K, d].
    """

    F: Floats
    own: slice
    L: Tensor
    Z: Floats
    z: Floats
    N: Floats
    total: Floats
    gradient: Floats


@dataclass(frozen=True, eq=False)
class _FixedEffects:
    """Posterior distribution of w0.

    Attributes:
        w0: its mode [p].
        P: its precision [p, p].
        C: its covariance P⁻¹ [p, p].
        prior_precision: diagonal of Γ⁻¹ [p].
    """

    w0: Floats
    P: Floats
    C: Floats
    prior_precision: Floats


def _times(F: Floats, A: Floats) -> Floats:
    """Return F A for a symmetric matrix F [q, q], or its diagonal [q], and A [..., q, m]."""
    product: Floats = F[:, None] * A if F.ndim == 1 else F @ A
    return product


def _fit(
    rows: _ScoreRows, groups: Floats, start: Mixed | None, is_full: bool, iterations: int, tolerance: float
) -> Mixed:
    """Fit models and variances by turns: a Newton step for the models, an update of the variances.

    Args:
        rows: rows of one score.
        groups: components of u_k with one variance each, as rows of 0 and 1 [g, d]: all, the last, or none.
        start: fit with these groups to start from, in any units and with or without means of tasks; or None.
        is_full: whether D is full; that of the start is the mean of its prior.
        iterations, tolerance: as in `MixedEffects`.
    """
    scales = _scales(rows)
    variances = _initial_variances(rows, groups, scales)
    W = np.zeros((len(rows.counts), rows.X.shape[1]))
    if start is not None:
        variances, W = _continued_variances(start, variances, groups, scales, is_full), start.W
    structure = _Structure(groups, variances.D if is_full else None)
    predictions = rows.predictions(W)
    expansion = rows.expansion(predictions)
    previous, evidence_converged = -math.inf, False
    for iteration in range(1, iterations + 1):
        marginal = _integrate_out(expansion, structure, variances)
        fixed = _fixed_effects(marginal, rows, variances.spread, scales.flat)
        modes, u, penalty = _modes(marginal, fixed, rows.means)
        change = rows.predictions(modes) - predictions
        step = _step_size(change) if rows.is_binary else 1.0
        predictions = predictions + step * change
        W = W + step * (modes - W)
        expansion = rows.expansion(predictions)
        primal = expansion.losses / variances.noise + penalty
        gap = math.inf
        if step == 1:
            gap = _duality_gap(W, expansion.V / variances.noise, penalty, marginal, fixed, rows.means)
        evidence = _evidence(primal, marginal, fixed, rows, variances)
        evidence_converged = evidence_converged or (
            step == 1 and abs(evidence - previous) <= tolerance * len(rows.y) ** 0.5
        )
        settled = evidence_converged and step == 1 and gap <= tolerance * abs(primal)
        if settled or iteration == iterations:
            break
        if not evidence_converged:  # otherwise, only the models have yet to converge
            previous = evidence
            variances = _updated_variances(variances, structure, scales, rows, expansion.losses, marginal, fixed, u)
    return Mixed(
        W=W,
        w0=fixed.w0,
        D=variances.D,
        spread=variances.spread,
        noise=variances.noise,
        unit=scales.unit,
        evidence=evidence,
        primal=primal,
        gap=gap,
        iterations=iteration,
        settled=settled,
    )


def _scales(rows: _ScoreRows) -> _Scales:
    """Return the sizes of variances that follow from the targets."""
    task_means = np.bincount(rows.user, rows.y) / rows.counts
    within = float(np.square(rows.y - task_means[rows.user]).mean())
    square = float(np.square(rows.y).mean())
    unit = 1.0 if rows.is_binary else within or square or 1.0
    return _Scales(
        unit=unit,
        flat=100 * max(unit, square),
        least=1e-8 * unit,
        most=(1e2 if rows.is_binary else 1e16) * unit,  # separable labels have no finite optimum
    )


def _initial_variances(rows: _ScoreRows, groups: Floats, scales: _Scales) -> _Variances:
    """Return variances of which each group explains a fifth of the variance of the targets within tasks."""
    v, p = rows.priors.shape
    grouped = 0.2 * scales.unit / groups.sum(1)
    return _Variances(np.diag(grouped @ groups), grouped, np.full(v, scales.unit / p), scales.unit)


def _continued_variances(
    start: Mixed, initial: _Variances, groups: Floats, scales: _Scales, is_full: bool
) -> _Variances:
    """Return the variances of another fit in the present units.

    A variance of a group that is 0 there becomes the initial one, as it would stay 0. That of means of tasks is `flat`
    if they are new.
    """
    factor = scales.unit / start.unit
    D, grouped = factor * start.D, initial.grouped
    if not is_full:
        means = (groups @ D.diagonal()) / groups.sum(1)
        grouped = np.where(means > 0, means, grouped)
        D = np.diag(grouped @ groups)
    spread = np.append(factor * start.spread, scales.flat)[: len(initial.spread)]
    return _Variances(D, grouped, spread, factor * start.noise)


def _integrate_out(expansion: _Expansion, structure: _Structure, variances: _Variances) -> _Marginal:
    """Return the likelihood of all T_k w0, without any inverse of D, which may be singular."""
    own, F, noise = structure.own, structure.root(variances.D), variances.noise
    q, d = own.stop - own.start, own.stop
    A = expansion.curvatures[:, own] / noise
    b = expansion.right / noise
    FAb = _times(F, np.concatenate([A, b[:, own, None]], axis=2))
    FAF = _times(F, FAb[:, :, own].transpose(0, 2, 1))
    largest = FAF.diagonal(0, 1, 2).max(1, initial=0.0)[:, None]
    FAF[:, range(q), range(q)] += 1 + q * np.finfo(float).eps * largest  # rounding must not make it indefinite
    L = torch.from_numpy(np.linalg.cholesky(FAF))
    solved = torch.linalg.solve_triangular(L, torch.from_numpy(FAb), upper=False).numpy()
    Z, z = solved[..., :d], solved[..., d:]
    N = A - Z[:, :, own].transpose(0, 2, 1) @ Z
    total = N.sum(0)
    if q < d:  # N has not all rows of N_k
        total = expansion.curvatures.sum(0) / noise - Z.reshape(-1, d).T @ Z.reshape(-1, d)
    gradient = b - (Z.transpose(0, 2, 1) @ z)[..., 0]
    return _Marginal(F, own, L, Z, z, N, total, gradient)


def _fixed_effects(marginal: _Marginal, rows: _ScoreRows, spread: Floats, flat: float) -> _FixedEffects:
    """Return the posterior of w0: P = Γ⁻¹ + Σ T_kᵀ N_k T_k and w0 = P⁻¹ Σ T_kᵀ gradient_k."""
    N, means, d = marginal.N, rows.means, len(marginal.total)
    prior_precision = (1 / spread) @ rows.priors + (1 - rows.priors.sum(0)) / flat
    P = np.diag(prior_precision)
    P[:d, :d] += marginal.total
    if len(P) > d:
        P[d:, :d] = means.T @ N[:, -1]
        P[:d, d:] = P[d:, :d].T
        P[d:, d:] += (means * N[:, -1, -1:]).T @ means
    C = np.linalg.inv(P)
    return _FixedEffects(C @ _pooled(marginal.gradient, means), P, C, prior_precision)


def _pooled(G: Floats, means: Floats) -> Floats:
    """Return Σ_k T_kᵀ g_k [p] for g_k [K, d]."""
    pooled: Floats = np.append(G.sum(0), G[:, -1] @ means)
    return pooled


def _modes(marginal: _Marginal, fixed: _FixedEffects, means: Floats) -> tuple[Floats, Floats, float]:
    """Return the models w_k = T_k w0 + u_k [K, d], u [K, q], and the penalty ½ Σ u_kᵀD⁻¹u_k + ½ w0ᵀΓ⁻¹w0."""
    (K, d), w0 = marginal.gradient.shape, fixed.w0
    W = np.tile(w0[:d], (K, 1))
    W[:, -1] += means @ w0[d:]
    residuals = torch.from_numpy(marginal.z - marginal.Z @ W[..., None])
    v = torch.linalg.solve_triangular(marginal.L.mT, residuals, upper=True).numpy()
    u = _times(marginal.F, v)[..., 0]
    W[:, marginal.own] += u
    penalty = 0.5 * float(np.square(v).sum() + fixed.prior_precision @ np.square(w0))
    return W, u, penalty


def _step_size(change: Floats) -> float:
    """Return the part of a Newton step that changes no prediction by more than 5, as a longer one might overshoot."""
    return min(1.0, 5 / max(5.0, float(np.abs(change).max())))


def _duality_gap(
    W: Floats, duals: Floats, penalty: float, marginal: _Marginal, fixed: _FixedEffects, means: Floats
) -> float:
    """Return primal minus dual objective after a whole step to W [K, d], by duals V/σ² [K, d]."""
    conjugate = 0.5 * float(
        np.square(_times(marginal.F, duals[:, marginal.own, None])).sum()
        + np.square(_pooled(duals, means)) @ (1 / fixed.prior_precision)
    )
    return penalty + conjugate - float((duals * W).sum())  # Σ ω(ℓ + ℓ*) = -Σ ωap


def _evidence(
    primal: float, marginal: _Marginal, fixed: _FixedEffects, rows: _ScoreRows, variances: _Variances
) -> float:
    """Return the log-likelihood of the variances, by Laplace's approximation unless the loss is squared."""
    log_determinant = 2 * float(marginal.L.diagonal(dim1=1, dim2=2).log().sum()) + np.linalg.slogdet(fixed.P)[1]
    log_determinant += rows.priors.sum(1) @ np.log(variances.spread)
    if not rows.is_binary:
        log_determinant += len(rows.y) * math.log(2 * math.pi * variances.noise)
    return float(-primal - 0.5 * log_determinant)


def _updated_variances(
    variances: _Variances,
    structure: _Structure,
    scales: _Scales,
    rows: _ScoreRows,
    losses: float,
    marginal: _Marginal,
    fixed: _FixedEffects,
    u: Floats,
) -> _Variances:
    """Return MacKay's updates: sums of squares of effects over the effective numbers of them that rows determine."""
    NC = marginal.N @ _covariances(fixed.C, rows.means)
    effective = len(fixed.w0) - float(fixed.C.diagonal() @ fixed.prior_precision)
    grouped = variances.grouped
    if structure.prior is None:
        grouped, determined = _updated_groups(grouped, structure, scales, marginal.N, NC, u)
        D = np.diag(grouped @ structure.groups)
    else:
        D, determined = _updated_matrix(variances.D, structure.prior, marginal.N, NC, u)
    effective += determined
    noise = variances.noise
    if not rows.is_binary:
        noise = max(scales.least, (2 * losses + noise * effective) / len(rows.y))
    return _Variances(D, grouped, _updated_spread(variances.spread, rows.priors, fixed, scales), noise)


def _covariances(C: Floats, means: Floats) -> Floats:
    """Return T_k C T_kᵀ, the posterior covariance of the expected model of each user [K, d, d]."""
    K, d = len(means), len(C) - means.shape[1]
    across = means @ C[d:, :d]
    covariances = np.repeat(C[None, :d, :d], K, 0)
    covariances[:, -1] += across
    covariances[:, :, -1] += across
    covariances[:, -1, -1] += ((means @ C[d:, d:]) * means).sum(1)
    return covariances


def _updated_spread(spread: Floats, priors: Floats, fixed: _FixedEffects, scales: _Scales) -> Floats:
    """Return the variances in Γ [v]."""
    determined = (priors.sum(1) - priors @ fixed.C.diagonal() / spread).clip(1e-9)
    updated: Floats = ((priors @ np.square(fixed.w0)) / determined).clip(scales.least, scales.most)
    return updated


def _updated_groups(
    grouped: Floats, structure: _Structure, scales: _Scales, N: Floats, NC: Floats, u: Floats
) -> tuple[Floats, float]:
    """Return the variances of a diagonal D [g], and how many components of all u_k rows determine."""
    parts = structure.groups[:, structure.own]
    determined = grouped * (parts @ (N[:, :, structure.own].diagonal(0, 1, 2).sum(0) - (NC * N).sum((0, 2))))
    learned = (parts @ np.square(u).sum(0)) / determined.clip(1e-9)
    updated = np.where((grouped > scales.least) & (determined > 1e-9), learned.clip(max=scales.most), 0.0)
    return updated, float(determined.sum())


def _updated_matrix(D: Floats, prior: Floats, N: Floats, NC: Floats, u: Floats) -> tuple[Floats, float]:
    """Return a full D [d, d] by a step of the EM algorithm, and how many components of all u_k rows determine."""
    K = len(u)
    H = N.sum(0) - np.einsum("kid,kjd->ij", NC, N)
    updated = (K * D - D @ H @ D + u.T @ u + OBSERVED * prior) / (K + OBSERVED)
    return updated, float((D * H).sum())
