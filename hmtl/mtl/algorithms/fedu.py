"""FedU: any network, one per user, coupled by the regularizer; and FedAvg, one network for all.

K users, m parameters of a network. Messages hold one user per row: local models [K, m] up, in FedU with the number of
steps behind them as a further column, models [K, m] down.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.base import NOBODY, Aggregator, Algorithm, Ids, SetupAggregator, SetupUsers, Users, with_rows
from hmtl.mtl.models import FlatModel, MakeModel, seeded
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem
from hmtl.mtl.regularizers import Regularizer, identity
from hmtl.mtl.sgd import LocalSGD


class ByGradients(Algorithm):
    """Local steps of minibatch gradient descent on any network; what the aggregator makes of the models is left open.

    Args:
        problem: data, loss, regularizer; any loss, also of several classes.
        solver: the users' steps.
        model: called with the numbers of features and of outputs, gives the network. Everything is computed in the
            type of its parameters, float32 by default.
        seed: of the first parameters, the same for all users, of the order of rows, and of participation.
        participation: who does how much in a round; for the IV of a user who drops out, the aggregator takes the last
            model that it made for it.

    Raises:
        ConfigError: the model does not fit the data, or the regularizer cannot be used.
    """

    users: "ModelUsers"
    tells_steps: bool

    def __init__(
        self,
        problem: Problem,
        solver: LocalSGD,
        model: MakeModel,
        seed: int = 0,
        participation: Participation = Participation(),  # noqa: B008, it is frozen
    ) -> None:
        if not isinstance(solver, LocalSGD):
            name = type(self).__name__
            raise ConfigError(f"{name} works by gradients, {type(solver).__name__} does not. Choose solver=sgd.")
        participation.check(problem.K)
        self.problem, self.solver, self.seed, self.participation = problem, solver, seed, participation
        self.model = FlatModel(model, problem.rows.X[0, :2], problem.outputs, seed)
        self.users = ModelUsers(problem, solver, self.model, seed, participation, self.tells_steps)
        self.aggregator = self._aggregator(self.users.W)

    @abstractmethod
    def _aggregator(self, start: Tensor) -> Aggregator:
        """The aggregator side, that knows the users' first models [K, m]."""

    @property
    def W(self) -> Tensor:
        """The users' parameters, [m, K]."""
        return self.users.W.T


class FedU(ByGradients):
    """R_k gradient steps at user k, then w_k ← w_k − μ_t·R_k·Σ_l A_kl w_l at the aggregator, all users at once.

    With A = ηL that is w_k − μ_t·R_k·η·Σ_l a_kl (w_k − w_l). A step of either kind weighs the same, however large the
    minibatches and whoever did how many, so that as μ_t falls the models approach a stationary point of P. A step so
    long that the models would diverge, μ_t·R_k times A's largest eigenvalue ≥ 2, is made in as many parts as it takes.

    Args, Raises: as in `ByGradients`; the regularizer must not learn Ω.

    Ref: Dinh et al. 2021, algorithm 1.
    """

    aggregator: "Coupling"
    tells_steps = True

    def _aggregator(self, start: Tensor) -> "Coupling":
        return Coupling(start, self.problem.regularizer, self.solver.rate)

    def setup(self) -> tuple[Users, Aggregator] | None:
        facts = self.problem.facts()
        if not facts.shape[1]:
            return None
        return SetupUsers(facts, told_nothing), SetupAggregator(self.aggregator.prepare, self.problem.K)

    @torch.no_grad()
    def _objective(self, measured: dict[str, Tensor]) -> dict[str, float]:
        A = self.aggregator.A
        W = measured["W"].to(A)
        return {"primal": float(measured["losses"] + 0.5 * (A @ W * W).sum())}


class FedAvg(ByGradients):
    """One network for all users, w = Σ_k n_k w_k / Σ_k n_k; the problem's regularizer plays no part.

    Args, Raises: as in `ByGradients`. A user who drops out counts with its last model, the mean of the round before.

    Ref: McMahan et al. 2017.
    """

    aggregator: "Averaging"
    tells_steps = False

    def _aggregator(self, start: Tensor) -> "Averaging":
        return Averaging(start, self._counts())

    def _counts(self) -> Tensor:
        return torch.tensor(self.problem.rows.counts)[:, None].to(self.problem.rows.s)

    def setup(self) -> tuple[Users, Aggregator]:
        return SetupUsers(self._counts(), told_nothing), SetupAggregator(self.aggregator.prepare, self.problem.K)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        del described["regularizer"], described["lam"]
        return described

    def _objective(self, measured: dict[str, Tensor]) -> dict[str, float]:
        return {"primal": float(measured["losses"])}


class ModelUsers(Users):
    """User side: rows in the type of the models, and these, W [K, m]. A local update leaves them as they are."""

    def __init__(
        self,
        problem: Problem,
        solver: LocalSGD,
        model: FlatModel,
        seed: int,
        participation: Participation,
        tells_steps: bool,
    ) -> None:
        self.problem, self.solver, self.model, self.seed = problem, solver, model, seed
        self.participation, self.tells_steps = participation, tells_steps
        rows, start = problem.rows, model.start
        self.rows = replace(rows, **{part: getattr(rows, part).to(start.dtype) for part in ("X", "y", "s")})
        self.numbers = len(start)
        self.W = start.repeat(problem.K, 1)
        self._steps = solver.steps(rows.counts)

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        order = self.solver.draw(self.seed, round, range(self.problem.K), self.rows.counts)
        budgets = self.participation.budgets(self._steps, self.seed, round)
        budgets[idle] = 0
        with seeded(self.seed, "dropout", round, device=self.W.device):
            W = self.solver.solve(self.model, self.problem.loss, self.rows, self.W, order, budgets, round)
        if self.tells_steps:
            W = torch.cat([W, budgets[:, None].to(W)], dim=1)
        working = budgets.numpy() > 0
        return working.nonzero()[0], W if working.all() else W[working]

    def local_work(self, round: int, user: int) -> None:
        rows, one = self.rows.of(user), slice(user, user + 1)
        order = self.solver.draw(self.seed, round, [user], rows.counts)
        with seeded(self.seed, "dropout", round, device=self.W.device):
            self.solver.solve(self.model, self.problem.loss, rows, self.W[one], order, self._steps[one], round)

    def receive(self, users: Ids, models: Tensor) -> None:
        self.W = with_rows(self.W, users, models)

    def _predictions(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each user its predictions for its rows, and y."""
        self.model.module.eval()
        for w, task in zip(self.W, self.problem.tasks, strict=True):
            x, y = (task.x_train, task.y_train) if split == "train" else (task.x_test, task.y_test)
            yield self.model(self.model.split(w), x.to(w)), y.to(w.device)

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """Σ s ℓ (a scalar), W [K, m], train and test error [K]."""
        loss, found = self.problem.loss, {split: list(self._predictions(split)) for split in ("train", "test")}
        losses = torch.stack([loss(prediction, y).double().sum() for prediction, y in found["train"]])
        errors = {
            f"{split}_error": torch.stack([loss.error(prediction, y).mean() for prediction, y in each])
            for split, each in found.items()
        }
        return {"losses": self.problem.rows.s @ losses, "W": self.W, **errors}

    def state_dict(self) -> dict[str, Tensor]:
        return {"W": self.W.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.W = state["W"].to(self.W, copy=True)


class Mixing(Aggregator):
    """Aggregator side: the last models [K, m] that it made, which stand in for those of users who were not heard."""

    state = ("models", "rounds")

    def __init__(self, start: Tensor) -> None:
        self.models, self.rounds = start, torch.tensor(0)

    @abstractmethod
    def mixing(self, steps: Tensor) -> Tensor:
        """M [K, K] of the update to M·W, of local models W [K, m] after so many steps each, [K] float64."""

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        m = self.models.shape[1]
        steps = torch.zeros(len(self.models), dtype=torch.float64, device=ivs.device)
        if ivs.shape[1] > m:
            steps[users] = ivs[:, m].double()
        W = with_rows(self.models, users, ivs[:, :m].contiguous().to(self.models))
        mixing = self.mixing(steps)
        self.rounds += 1
        self.models = mixing.to(W) @ W
        return self.models

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in self.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].to(getattr(self, name), copy=True))


class Coupling(Mixing):
    """FedU's: steps down the penalty ½ tr(W A Wᵀ).

    Args:
        start: [K, m], the users' first models.
        regularizer: gives A.
        rate: μ_t of a round t.
    """

    def __init__(self, start: Tensor, regularizer: Regularizer, rate: Callable[[int], float]) -> None:
        super().__init__(start)
        if regularizer.learns:
            raise ConfigError(
                f"{type(regularizer).__name__} learns how the tasks relate, FedU is told. "
                "Choose regularizer=graph, mean or ridge."
            )
        self.regularizer, self.rate = regularizer, rate
        self._couple()

    def _couple(self) -> None:
        K, device = len(self.models), self.models.device
        Omega = self.regularizer.start_omega(K).to(device, torch.float64)
        self.regularizer.inverse_coupling(Omega)  # refuses what is no coupling
        self.A = self.regularizer.coupling(Omega)
        self.steepest = float(torch.linalg.eigvalsh(self.A)[-1])

    def prepare(self, facts: Tensor) -> Tensor:
        """What the users told of themselves, [K, f], to what they are told, nothing: [K, 0]."""
        self.regularizer = self.regularizer.prepared(facts).to(self.models.device)
        self._couple()
        return facts[:, :0]

    def mixing(self, steps: Tensor) -> Tensor:
        length = self.rate(int(self.rounds)) * steps.to(self.A)
        longest = float(length.max()) * self.steepest
        parts = 1 if longest < 2 else math.ceil(longest)
        part = identity(self.A) - length[:, None] / parts * self.A
        mixing: Tensor = torch.linalg.matrix_power(part, parts)
        return mixing


class Averaging(Mixing):
    """FedAvg's: the mean, weighed by the users' numbers of rows, `counts` [K, 1]."""

    def __init__(self, start: Tensor, counts: Tensor) -> None:
        super().__init__(start)
        self.prepare(counts)

    def prepare(self, facts: Tensor) -> Tensor:
        """The users' n_k, [K, 1], to what they are told, nothing: [K, 0]."""
        self.counts = facts[:, 0].to(self.models.device)
        return facts[:, :0]

    def mixing(self, steps: Tensor) -> Tensor:
        return (self.counts / self.counts.sum()).expand(len(self.counts), -1)


def told_nothing(users: Ids, extras: Tensor) -> None:
    """What users do with the answer to a set-up that holds no numbers."""
