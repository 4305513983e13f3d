"""Random effects: users' models are draws from one normal distribution, whose mean and covariance EM learns.

K users, d features, n_k rows of user k, N rows in total.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.base import NOBODY, Aggregator, Algorithm, Ids, MessageKind, Users, with_rows
from hmtl.mtl.algorithms.setup_exchange import SetupAggregator, SetupUsers
from hmtl.mtl.losses import Squared
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem
from hmtl.mtl.solvers.base import LocalSolver

MOST_FEATURES = 300  # D and each user's statistics have d² numbers, and an iteration takes K·d³ operations


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
        d, zero = problem.d, problem.s.new_zeros(())
        for name, value in (
            ("w0", zero.expand(d)),
            ("D", zero.expand(d, d)),
            ("noise", zero),
            ("minus_log_likelihood", zero),
        ):
            self.register_buffer(name, value)

    def answer(self, facts: Tensor) -> Tensor:
        """Return the models [K, d] for the `statistics` of all users."""
        effects = em(facts, len(self.w0), self.iterations, self.tolerance)
        self.w0, self.D, self.noise, self.minus_log_likelihood = (
            effects.w0,
            effects.D,
            effects.noise,
            effects.minus_log_likelihood,
        )
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
