"""FedU: any network, one per user, coupled by the regularizer; and FedAvg, one network for all.

K users, m parameters of a network. Messages hold one user per row: local models [K, m] up, models [K, m] down.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.base import Algorithm
from hmtl.mtl.models import FlatModel, MakeModel, seeded
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem
from hmtl.mtl.regularizers import Regularizer, identity
from hmtl.mtl.sgd import LocalSGD


class FedU(Algorithm):
    """R_k gradient steps at user k, then w_k ← w_k − μ_t·R_k·Σ_l A_kl w_l at the aggregator, all users at once.

    With A = ηL that is w_k − μ_t·R_k·η·Σ_l a_kl (w_k − w_l). A step of either kind weighs the same, however large the
    minibatches and whoever did how many, so that as μ_t falls the models approach a stationary point of P. A step so
    long that the models would diverge, μ_t·R_k times A's largest eigenvalue ≥ 2, is made in as many parts as it takes.

    Args:
        problem: data, loss, regularizer; any loss, also of several classes.
        solver: the users' steps.
        model: called with the numbers of features and of outputs, gives the network. Everything is computed in the
            type of its parameters, float32 by default.
        seed: of the first parameters, the same for all users, of the order of rows, and of participation.
        participation: who does how much in a round, which the aggregator knows; the IV of a user who drops out is its
            last model.

    Raises:
        ConfigError: the model does not fit the data, or the regularizer learns Ω.

    Ref: Dinh et al. 2021, algorithm 1.
    """

    def __init__(
        self,
        problem: Problem,
        solver: LocalSGD,
        model: MakeModel,
        seed: int = 0,
        participation: Participation = Participation(),  # noqa: B008, it is frozen
    ) -> None:
        name = type(self).__name__
        if not isinstance(solver, LocalSGD):
            raise ConfigError(f"{name} works by gradients, {type(solver).__name__} does not. Choose solver=sgd.")
        participation.check(problem.K)
        self.problem, self.solver, self.seed, self.participation = problem, solver, seed, participation
        rows = problem.rows
        self.model = FlatModel(model, rows.X[0, :2], problem.outputs, seed)
        start = self.model.start
        self._rows = replace(rows, **{part: getattr(rows, part).to(start.dtype) for part in ("X", "y", "s")})
        self._W = start.repeat(problem.K, 1)
        self._steps = solver.steps(rows.counts)
        self._rounds = torch.tensor(0)  # at the aggregator
        self._A = self._coupling()
        self._steepest = float(torch.linalg.eigvalsh(self._A)[-1])

    def _coupling(self) -> Tensor:
        """A [K, K], float64."""
        regularizer = self.problem.regularizer
        if type(regularizer).update_omega is not Regularizer.update_omega:
            raise ConfigError(
                f"{type(regularizer).__name__} learns how the tasks relate, FedU is told. "
                "Choose regularizer=graph, mean or ridge."
            )
        Omega = regularizer.start_omega(self.problem.K).to(self.problem.rows.s)
        regularizer.inverse_coupling(Omega)  # refuses what is no coupling
        return regularizer.coupling(Omega)

    def mixing(self, round: int) -> Tensor:
        """M [K, K] of the global update: models M·W, of local models W [K, m]."""
        length = self.solver.rate(round) * self.participation.budgets(self._steps, self.seed, round).to(self._A)
        longest = float(length.max()) * self._steepest
        parts = 1 if longest < 2 else math.ceil(longest)
        part = identity(self._A) - length[:, None] / parts * self._A
        mixing: Tensor = torch.linalg.matrix_power(part, parts)
        return mixing

    def local_update(self, round: int) -> Tensor:
        rows = self._rows
        order = self.solver.draw(self.seed, round, range(self.problem.K), rows.counts)
        budgets = self.participation.budgets(self._steps, self.seed, round)
        with seeded(self.seed, "dropout", round, device=self._W.device):
            return self.solver.solve(self.model, self.problem.loss, rows, self._W, order, budgets, round)

    def local_work(self, round: int, user: int) -> None:
        rows, one = self._rows.of(user), slice(user, user + 1)
        order = self.solver.draw(self.seed, round, [user], rows.counts)
        with seeded(self.seed, "dropout", round, device=self._W.device):
            self.solver.solve(self.model, self.problem.loss, rows, self._W[one], order, self._steps[one], round)

    def global_update(self, ivs: Tensor) -> Tensor:
        mixing = self.mixing(int(self._rounds))
        self._rounds += 1
        return mixing.to(ivs) @ ivs

    def receive(self, models: Tensor) -> None:
        self._W = models

    @property
    def W(self) -> Tensor:
        """The users' parameters, [m, K]."""
        return self._W.T

    def _predictions(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each user its predictions for its rows, and y."""
        self.model.module.eval()
        for w, task in zip(self._W, self.problem.tasks, strict=True):
            x, y = (task.x_train, task.y_train) if split == "train" else (task.x_test, task.y_test)
            yield self.model(self.model.split(w), x.to(w)), y.to(w.device)

    @torch.no_grad()
    def errors(self, split: str) -> Tensor:
        error = self.problem.loss.error
        return torch.stack([error(prediction, y).mean() for prediction, y in self._predictions(split)])

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        loss, W = self.problem.loss, self._W.to(self._A)
        losses = [loss(prediction, y).double().sum() for prediction, y in self._predictions("train")]
        primal = self.problem.rows.s @ torch.stack(losses) + 0.5 * (self._A @ W * W).sum()
        return {"primal": float(primal), **super().metrics()}

    def state_dict(self) -> dict[str, Any]:
        return {"users": {"W": self._W.clone()}, "aggregator": {"rounds": self._rounds.clone()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._W = state["users"]["W"].to(self._W, copy=True)
        self._rounds = state["aggregator"]["rounds"].clone()


class FedAvg(FedU):
    """One network for all users, w = Σ_k n_k w_k / Σ_k n_k; the problem's regularizer plays no part.

    Args: as in `FedU`. A user who drops out counts with its last model, which is the mean of the round before.

    Ref: McMahan et al. 2017.
    """

    def _coupling(self) -> Tensor:
        return torch.zeros(self.problem.K, self.problem.K).to(self.problem.rows.s)

    def mixing(self, round: int) -> Tensor:
        counts = torch.tensor(self.problem.rows.counts).to(self._A)
        return (counts / counts.sum()).expand_as(self._A)
