"""Random effects: users' models are draws from one normal distribution, whose mean and covariance are learned.

`RandomEffects` does so over a network, by maximum likelihood; `MixedEffects` in one process, by the evidence.

K users, d features, n_k rows of user k, N rows in total.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.base import NOBODY, Aggregator, Algorithm, Ids, MessageKind, Users, with_rows
from hmtl.mtl.algorithms.setup_exchange import SetupAggregator, SetupUsers
from hmtl.mtl.losses import Logistic, Squared
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem
from hmtl.mtl.solvers.base import LocalSolver

MOST_FEATURES = 300  # D and each user's statistics have d² numbers, and an iteration takes K·d³ operations
MOST_NUMBERS = 2 * 10**7  # in all users' statistics in one process, of which some ten copies are in memory
MOST_WORK = 3 * 10**7  # K·p²·a for p features, of which a differ between tasks, up to which means of tasks are tried
OBSERVED = 30  # how many models the prior of a full D counts as


@dataclass(frozen=True, eq=False)
class Effects:
    """The distribution of the users' models, and its prediction of each.

    Attributes:
        W: means of the models given the rows [K, d].
        w0: mean of all models [d].
        D: covariance of the models [d, d].
        noise: variance of the noise, σ².
        minus_log_likelihood: of all rows.
    """

    W: Tensor
    w0: Tensor
    D: Tensor
    noise: Tensor
    minus_log_likelihood: Tensor


def statistics(x: Tensor, y: Tensor) -> Tensor:
    """Return n, yᵀy, Xᵀy and the upper triangle of XᵀX for rows X [n, d]: 2 + d + d(d + 1)/2 numbers."""
    x, y = x.double(), y.double()
    upper = torch.triu_indices(x.shape[1], x.shape[1])
    return torch.cat([y.new_tensor([len(y)]), (y @ y)[None], x.T @ y, (x.T @ x)[upper[0], upper[1]]])


def em(facts: Tensor, d: int, iterations: int, tolerance: float) -> Effects:
    """Fit w_k ~ N(w0, D) and y_kj = w_k·x_kj + noise of variance σ² by maximum likelihood.

    The mean w0 is the best for D and σ² in each iteration (generalised least squares), which takes far fewer iterations
    than its update by EM. The first D and σ² are in the units of the data, so that other units lead to the same models.

    Args:
        facts: `statistics` of each user [K, f].
        d: number of features.
        iterations: largest number of iterations, at least 1.
        tolerance: stop once the −log-likelihood falls by less than this per row.

    Ref: Laird and Ware 1982; Liu and Rubin 1994 (ECME).
    """
    n, square, c, packed = torch.split(facts, [1, 1, d, facts.shape[1] - 2 - d], dim=1)
    n, square = n[:, 0], square[:, 0]
    G, upper = facts.new_zeros(len(facts), d, d), torch.triu_indices(d, d)
    G[:, upper[0], upper[1]] = packed
    G = G + G.triu(1).mT
    eye, squares = torch.eye(d).to(facts), G.diagonal(dim1=1, dim2=2).sum(0)
    noise, before = square.sum() / n.sum(), math.inf
    noise = torch.where(noise > 0, noise, 1.0)
    least = 1e-12 * noise
    D = torch.where(squares > 0, n.sum() * noise / (d * squares), 0.0).diag()
    for _ in range(iterations):
        Gs, cs = G / noise, c / noise
        S = torch.linalg.solve(eye + D @ Gs, D.expand_as(G))  # covariance of w_k given the rows
        S = (S + S.mT) / 2
        normal = Gs - Gs @ S @ Gs
        right = cs - (Gs @ (S @ cs[..., None]))[..., 0]
        w0 = torch.linalg.pinv(normal.sum(0), hermitian=True) @ right.sum(0)
        residual = cs - Gs @ w0
        u = (S @ residual[..., None])[..., 0]
        W = w0 + u
        fit = square - 2 * (c * w0).sum(1) + ((G @ w0) * w0).sum(1)
        minus_log_likelihood = 0.5 * (
            (n * (2 * math.pi * noise).log()).sum()
            + torch.linalg.slogdet(eye + D @ Gs).logabsdet.sum()
            + (fit / noise - (residual * u).sum(1)).sum()
        )
        effects = Effects(W, w0, D, noise, minus_log_likelihood)
        unexplained = square - 2 * (c * W).sum(1) + ((G @ W[..., None])[..., 0] * W).sum(1) + (G * S).sum((1, 2))
        D = (S + u[:, :, None] * u[:, None, :]).mean(0)
        noise = (unexplained.sum() / n.sum()).maximum(least)
        if before - float(minus_log_likelihood) < tolerance * float(n.sum()):
            break
        before = float(minus_log_likelihood)
    return effects


class EffectsUsers(Users):
    """User side: a user sends `statistics` of its rows in the set-up and receives its model; then nothing travels.

    Buffer: `W`, models [K, d].
    """

    W: Tensor
    numbers = 0

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.register_buffer("W", problem.s.new_zeros(len(problem.users), problem.size))

    def facts(self) -> Tensor:
        """Return the `statistics` of these users [K, f]."""
        facts = [statistics(task.x_train, task.y_train) for task in self.problem.tasks]
        d = self.problem.d
        return torch.stack(facts).to(self.W) if facts else self.W.new_empty(0, 2 + d + d * (d + 1) // 2)

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        users = np.setdiff1d(np.arange(len(self.W)), idle)
        return users, self.W[users, :0]

    def receive(self, users: Ids, models: Tensor) -> None:
        self.W = with_rows(self.W, users, models.to(self.W))

    def measure(self) -> dict[str, Tensor]:
        predictions = {split: self.problem.predictions(self.W.T, split) for split in self.problem.splits}
        measures = [self.problem.measure(split, each) for split, each in predictions.items()]
        return {"W": self.W} | {name: values for each in measures for name, values in each.items()}

    def local_work(self, round: int, user: int) -> None:
        task = self.problem.tasks[user]
        statistics(task.x_train, task.y_train)


class EffectsAggregator(Aggregator):
    """Aggregator side: runs EM on the users' statistics in the set-up.

    Buffers: `w0` [d], `D` [d, d], `noise` and `minus_log_likelihood`, see `Effects`.
    """

    w0: Tensor
    D: Tensor
    noise: Tensor
    minus_log_likelihood: Tensor

    def __init__(self, problem: Problem, iterations: int, tolerance: float) -> None:
        super().__init__()
        self.iterations = iterations
        self.tolerance = tolerance
        shapes = {"w0": (problem.d,), "D": (problem.d, problem.d), "noise": (), "minus_log_likelihood": ()}
        for name, shape in shapes.items():
            self.register_buffer(name, problem.s.new_zeros(()).expand(shape))

    def answer(self, facts: Tensor) -> Tensor:
        """Return the models [K, d] for the `statistics` of all users."""
        effects = em(facts, len(self.w0), self.iterations, self.tolerance)
        self.w0, self.D, self.noise = effects.w0, effects.D, effects.noise
        self.minus_log_likelihood = effects.minus_log_likelihood
        return effects.W

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        raise NotImplementedError("After the set-up of random effects, nothing travels.")

    def figure_state(self) -> dict[str, Tensor]:
        return {"minus_log_likelihood": self.minus_log_likelihood}


class RandomEffects(Algorithm):
    """Linear models w_k ~ N(w0, D) for numbers, without a setting to tune: w0, D and the noise by maximum likelihood.

    A user's rows enter the likelihood through `statistics` only. They travel once, in the set-up: 2 + d + d(d + 1)/2
    numbers up and a model of d numbers down for each user. One round is enough. If users have fewer rows than features,
    the likelihood overfits; `Common` is then the better choice.

    Args:
        problem: data and loss, which has to be `Squared`. The regularizer and the reduction are not used.
        iterations: largest number of iterations of EM.
        tolerance: EM stops once the −log-likelihood falls by less than this per row.
        seed, participation, solver: without effect: nothing is random, and nobody is absent from a set-up.
        messages: must be "ivs".

    Raises:
        ConfigError: another loss, more than 300 features, sparse rows, no iterations, or messages="sums".

    Ref: Laird and Ware 1982.
    """

    regularized = False
    users: EffectsUsers
    aggregator: EffectsAggregator

    def __init__(
        self,
        problem: Problem,
        iterations: int = 200,
        tolerance: float = 1e-6,
        seed: int = 0,
        participation: Participation = Participation(),  # noqa: B008, it is frozen
        messages: MessageKind = "ivs",
        solver: LocalSolver[Any, Any] | None = None,
    ) -> None:
        if not isinstance(problem.loss, Squared):
            raise ConfigError(
                f"random_effects needs loss=squared, not {problem.loss.name}: its models are of numbers with normal "
                "noise. Choose algorithm=mocha with regularizer=common for other losses."
            )
        if problem.d > MOST_FEATURES:
            raise ConfigError(
                f"random_effects learns a covariance of all features, but there are {problem.d}, and at most "
                f"{MOST_FEATURES} are supported. Choose algorithm=mocha with regularizer=common instead."
            )
        problem.check_dense("random_effects")
        if iterations < 1:
            raise ConfigError(f"iterations={iterations} has to be at least 1. Give a number such as 200.")
        if messages != "ivs":
            raise ConfigError("random_effects sends statistics once, and no sums. Set communicator=coded or uncoded.")
        self.problem = problem
        self.seed = seed
        self.participation = participation
        self.users = EffectsUsers(problem)
        self.aggregator = EffectsAggregator(problem, iterations, tolerance)
        if len(problem.users) == problem.K:
            self.users.receive(np.arange(problem.K), self.aggregator.answer(self.users.facts()))

    @property
    def W(self) -> Tensor:
        return self.users.W.T

    def setup(self) -> tuple[Users, Aggregator]:
        """As `Algorithm.setup`: statistics up, models down."""
        return SetupUsers(self.users.facts(), self.users.receive), SetupAggregator(
            self.aggregator.answer, self.problem.K
        )

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"algorithm": "random_effects", "regularizer": "random_effects", "lam": 0.0}

    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        return {"primal": float(self.aggregator.minus_log_likelihood)}


@dataclass(frozen=True, eq=False)
class Mixed:
    """Models w_k = w0 + u_k of one score with u_k ~ N(0, D) and w0 ~ N(0, Γ).

    Attributes:
        W: most probable models [K, d].
        w0: most probable w0 [d].
        D: covariance of u_k [d, d].
        spread: variance of the components of w0, except for the intercept, whose prior is nearly flat; and another
            one for means of tasks.
        noise: variance of the noise; 1 for labels.
        evidence: log-likelihood of D, Γ and the noise; for labels, by Laplace's approximation.
        primal: Σ ω ℓ / noise + ½ Σ u_kᵀD⁻¹u_k + ½ w0ᵀΓ⁻¹w0.
        gap: duality gap, a bound of how much `primal` exceeds its minimum over all models; infinite if the last step
            was shortened.
        iterations: number of iterations.
        settled: whether the evidence and the models have converged.
    """

    W: Tensor
    w0: Tensor
    D: Tensor
    spread: Tensor
    noise: Tensor
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
        common: whether models may differ in their intercepts only.
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
        common: bool,
        iterations: int,
        tolerance: float,
        seed: int = 0,
    ) -> None:
        if iterations < 1:
            raise ConfigError(f"rounds={iterations} has to be at least 1. Give a number such as 200.")
        self.problem = problem
        self.seed = seed
        slopes = torch.ones(problem.d, dtype=torch.float64)
        slopes[problem.d - intercept :] = 0
        groups = torch.stack([slopes, 1 - slopes])[: 1 + intercept]
        choices = [groups[1:]] * (common or problem.K == 1) + [groups] * (problem.K > 1)
        self.fits: list[Mixed] = []
        models = []
        for score in range(problem.outputs):
            best = -math.inf
            for unit, learned in units:
                rows = _ScoreRows(problem, score, unit, slopes)
                for variances in choices:
                    fit = _fit(rows, variances, None, iterations, tolerance)
                    if (worth := fit.evidence - rows.volume - learned - len(variances)) > best:
                        best, chosen = worth, (rows, variances, fit)
            rows, variances, fit = chosen
            new, more = fit.w0, rows.with_means()
            p = more.shape[1]
            is_quick = problem.K * p**2 * float(variances.sum()) <= MOST_WORK
            if intercept and problem.K > 1 and p > problem.d and is_quick:
                other = _fit(more, variances, None, iterations, tolerance)
                if other.evidence > fit.evidence + 1:
                    rows, fit = more, other
            if variances is groups and problem.K > 1 and problem.d <= min(OBSERVED, len(rows.y) / problem.K):
                fit = _fit(rows, groups, fit, iterations, tolerance)
            self.fits.append(fit)
            models.append(rows.restored(fit.W, new if rows is more else fit.w0))  # means of new tasks are unknown
        self.W, self.w0 = torch.cat(models, dim=1).T.tensor_split([problem.K], dim=1)
        self.primal = sum(fit.primal for fit in self.fits)
        self.gap = sum(max(0.0, fit.gap) for fit in self.fits)  # rounding errors at an optimum may be below 0
        self.iterations = max(fit.iterations for fit in self.fits)
        self.settled = all(fit.settled for fit in self.fits)

    @staticmethod
    def supports(problem: Problem) -> bool:
        """Return whether loss, kind and size of a problem suit random effects."""
        suitable = type(problem.binary) in (Squared, Logistic) and not problem.is_sparse
        return suitable and problem.d <= MOST_FEATURES and problem.K * problem.d**2 <= MOST_NUMBERS


class _ScoreRows:
    """The rows of one score, with features of mean square 1 and targets in given units [K]."""

    def __init__(self, problem: Problem, score: int, units: Tensor, slopes: Tensor) -> None:
        self.loss, self.shape, self.counts = problem.binary, (problem.K, problem.d), problem.here
        self.is_binary = not self.loss.unbounded
        self.user = torch.repeat_interleave(torch.tensor(self.counts))
        self.X = torch.cat([task.x_train.double() for task in problem.tasks])
        self.weights = torch.cat([task.weights for task in problem.tasks])
        square = self.weights @ self.X.square() / len(self.X)
        self._scales, self._units = torch.where(square > 0, square, 1.0).sqrt(), units
        self.X /= self._scales
        self.y = torch.cat([task.y_train for task in problem.tasks])
        if problem.outputs > 1:
            self.y = torch.where(self.y == score, 1.0, -1.0).double()
        self.y = self.y / units[self.user]
        self.square = float(self.y.square().mean())
        mean = self.y.new_zeros(problem.K).index_add_(0, self.user, self.y) / torch.tensor(self.counts)
        self.within = float((self.y - mean[self.user]).square().mean())
        self.volume = float(units[self.user].log().sum())
        self.priors = slopes[None]
        self._means = self.X.new_zeros(problem.K, 0)
        self._curvature: Tensor | None = None

    def with_means(self) -> "_ScoreRows":
        """Return these rows with the means over their task of all features that vary within tasks as more features."""
        more, (K, d) = copy.copy(self), self.shape
        sums = self.X.new_zeros(K, d).index_add_(0, self.user, self.X * self.weights[:, None])
        means = sums / self.X.new_zeros(K).index_add_(0, self.user, self.weights)[:, None]
        varies = (self.X - means[self.user]).square().mean(0) > 1e-9
        more._means = means[:, varies]
        more.X = torch.cat([self.X, more._means[self.user]], dim=1)
        more.shape = (K, more.X.shape[1])
        more.priors = self.priors.new_zeros(2, more.shape[1])
        more.priors[0, :d], more.priors[1, d:] = self.priors[0], 1
        more._curvature = None
        return more

    def restored(self, W: Tensor, w0: Tensor) -> Tensor:
        """Return all users' models and w0 [K + 1, d] for features and targets without units."""
        d = len(self._scales)
        models = torch.cat([W[:, :d], w0[None, :d]])
        models[:-1, -1] += (self._means * W[:, d:]).sum(1)
        return models / self._scales * torch.cat([self._units, self._units.log().mean().exp()[None]])[:, None]

    def predictions(self, W: Tensor) -> Tensor:
        return (self.X * W[self.user]).sum(1)

    def at(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return Σ ωℓ, Σ ωℓ*, V = Σ_j ω a x [K, d] and the curvatures Σ_j ω ℓ'' xxᵀ [K, d, d] at models W [K, d]."""
        p = self.predictions(W)
        a = -self.loss.gradient(p, self.y)
        losses, conjugates = (self.weights @ each for each in (self.loss(p, self.y), self.loss.conjugate(a, self.y)))
        V = W.new_zeros(self.shape).index_add_(0, self.user, self.X * (self.weights * a)[:, None])
        if self._curvature is not None:
            return losses, conjugates, V, self._curvature
        second = (a.abs() * (1 - a.abs())).clamp_min(1e-9) if self.is_binary else torch.ones_like(a)
        weighted = self.X * (self.weights * second)[:, None]
        pairs = zip(*(torch.split(each, list(self.counts)) for each in (self.X, weighted)), strict=True)
        curvature = torch.stack([x.T @ other for x, other in pairs])
        if not self.is_binary:
            self._curvature = curvature
        return losses, conjugates, V, curvature


def _fit(rows: _ScoreRows, groups: Tensor, start: Mixed | None, iterations: int, tolerance: float) -> Mixed:
    """Fit models and variances by turns: a step of Newton's method for the models, an update of the variances.

    Args:
        rows: rows of one score.
        groups: components of u_k with one variance each, as rows of 0 and 1 [g, d]; others are 0.
        start: the fit with these groups, if D shall be full; its D is the prior.
        iterations, tolerance: as in `MixedEffects`.
    """
    (K, d), priors = rows.shape, rows.priors
    at = groups.sum(0).nonzero()[:, 0]  # the components of u_k that are not 0
    groups = groups[:, at]
    unit = priors.new_tensor(1.0 if rows.is_binary else rows.within or rows.square or 1.0)
    least, flat = 1e-8 * unit, 100 * max(float(unit), rows.square)  # the latter is the variance of the intercept of w0
    most = (1e2 if rows.is_binary else 1e16) * unit  # separable labels have no finite optimum
    noise, spread, variances = unit, (unit / d).expand(len(priors)), 0.2 * unit / groups.sum(1)
    W, D = priors.new_zeros(K, d), (variances @ groups).diag()
    if start is not None:
        noise, spread, W, D = start.noise, start.spread, start.W, start.D[at][:, at]
    prior, eye, before, is_fixed = D, torch.eye(len(at)).to(D), -math.inf, False
    _, _, V, curvature = rows.at(W)
    for iteration in range(1, iterations + 1):
        A = curvature / noise
        own = A[:, at][:, :, at]
        right = V / noise + (A @ W[..., None])[..., 0]
        LU, pivots = torch.linalg.lu_factor(eye + D @ own)
        S = torch.linalg.lu_solve(LU, pivots, D.expand_as(own))  # covariance of u_k given w0 and the rows
        S = (S + S.mT) / 2
        SA = S @ A[:, at]
        precision = (1 / spread) @ priors + (1 - priors.sum(0)) / flat
        N = A - A[:, :, at] @ SA
        P = N.sum(0) + precision.diag()
        C = torch.linalg.inv((P + P.T) / 2)
        w0 = C @ (right - (SA.mT @ right[:, at, None])[..., 0]).sum(0)
        rest = (right - A @ w0)[:, at]
        u = (S @ rest[..., None])[..., 0]
        change = w0 - W
        change[:, at] += u
        step = 1.0
        if rows.is_binary:  # a longer step might overshoot
            step = min(1.0, 5 / float(rows.predictions(change).abs().max().clamp_min(5)))
        W = W + step * change
        losses, conjugates, V, curvature = rows.at(W)
        penalty = 0.5 * ((u * (rest - (own @ u[..., None])[..., 0])).sum() + (precision * w0.square()).sum())
        duals = V / noise
        bound = 0.5 * (((duals[:, at] @ D) * duals[:, at]).sum() + (duals.sum(0).square() / precision).sum())
        primal = losses / noise + penalty
        gap = primal + conjugates / noise + bound if step == 1 else primal.new_tensor(math.inf)
        volume = LU.diagonal(dim1=1, dim2=2).abs().log().sum() + torch.linalg.slogdet(P).logabsdet
        volume = volume + priors.sum(1) @ spread.log()
        if not rows.is_binary:
            volume = volume + len(rows.y) * (2 * math.pi * noise).log()
        evidence = float(-primal - 0.5 * volume)
        is_fixed = is_fixed or (step == 1 and abs(evidence - before) <= tolerance * len(rows.y) ** 0.5)
        settled = is_fixed and step == 1 and float(gap) <= tolerance * abs(float(primal))
        covariance = D.new_zeros(d, d).index_put_((at[:, None], at), D)
        fit = Mixed(W, w0, covariance, spread, noise, evidence, float(primal), float(gap), iteration, settled)
        if settled:
            break
        if is_fixed:
            continue  # until the models have also converged
        before = evidence
        U = S.sum(0) + (SA @ C).transpose(0, 1).flatten(1) @ SA.transpose(0, 1).flatten(1).T  # Σ covariances of u_k
        reduced = N.sum(0) - N[:, :, at].transpose(0, 1).flatten(1) @ SA.flatten(0, 1)
        explained = (own * S).sum() + (C * reduced).sum()  # Σ_k tr(A_k T_k), for the covariances T_k of w_k
        determined = (priors.sum(1) - priors @ C.diagonal() / spread).clamp_min(1e-9)
        spread = ((priors @ w0.square()) / determined).clamp(least, most)
        if start is not None:
            D = (U + u.T @ u + OBSERVED * prior) / (K + OBSERVED)
        else:
            freedom = groups @ U.diagonal()
            determined = K * groups.sum(1) - freedom / variances.clamp_min(least)
            new = (groups @ u.square().sum(0)) / determined.clamp_min(1e-9)
            variances = torch.where((variances > least) & (determined > 1e-9), new.clamp_max(most), 0.0)
            D = (variances @ groups).diag()
        if not rows.is_binary:
            noise = ((2 * losses + noise * explained) / len(rows.y)).clamp_min(least)
    return fit
