"""FedAvg: any network, one for all users; and FedProx, whose users are held back while they train.

K users, m parameters of a network.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hmtl.mtl.algorithms.base import Aggregator, Ids, Users
from hmtl.mtl.algorithms.gradient_sums import Average, AveragingSums, AveragingUsers
from hmtl.mtl.algorithms.gradients import ByGradients, ModelUsers, told_nothing
from hmtl.mtl.algorithms.setup import SetupAggregator, SetupUsers
from hmtl.mtl.networks.models import MakeModel
from hmtl.mtl.problem import Problem
from hmtl.mtl.solvers.sgd import LocalSGD


class FedAvg(ByGradients):
    """One network for all users, w = Σ_k n_k w_k / Σ_k n_k; the problem's regularizer plays no part.

    Args, Raises: as in `ByGradients`. A user who drops out counts with its last model, the mean of the round before.

    Ref: McMahan et al. 2017.
    """

    regularized = False
    aggregator: "Averaging | AveragingSums"

    def _aggregator(self, start: Tensor) -> "Averaging":
        return Averaging(self._average(), len(start))

    def _average(self) -> Average:
        """How models are made of sums, on any side."""
        return Average(self.model.start, self._counts(), 1.0, self.problem.grid)

    def _counts(self) -> Tensor:
        return torch.tensor(self.problem.counts)[:, None].to(self.problem.s)

    @property
    def q(self) -> int:
        return 1

    def in_sums(self) -> None:
        inner = self._users()
        self.users = AveragingUsers(inner, self._average())
        self.aggregator = AveragingSums(inner.numbers, self.problem.grid, inner.W.device)

    def setup(self) -> tuple[Users, Aggregator] | None:
        learn = self.users.learn if isinstance(self.users, AveragingUsers) else told_nothing
        return SetupUsers(self._counts()[self.problem.users], learn), SetupAggregator(
            self.aggregator.prepare, self.problem.K
        )

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        del described["regularizer"], described["lam"]
        return described

    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        return {"primal": float(measured["s"] @ measured["losses"])}


class FedProx(FedAvg):
    """FedAvg whose users minimise their loss + (μ/2)‖w − w_global‖², w_global being what the round began with.

    So users whose rows differ drift less far apart in a round of many steps.

    Args, Raises: as in `FedAvg`; besides
        mu: μ ≥ 0; 0 is FedAvg, bit for bit. Below 2/step, beyond which local steps diverge.

    Ref: Li et al. 2020, *Federated optimization in heterogeneous networks*.
    """

    def __init__(self, problem: Problem, solver: LocalSGD, model: MakeModel, mu: float, **others: Any) -> None:
        self.mu = mu
        super().__init__(problem, solver, model, **others)

    def _users(self) -> ModelUsers:
        self.solver.check_pull("mu", self.mu)
        return ModelUsers(self.problem, self.solver, self.model, self.seed, self.participation, self.mu)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"mu": self.mu}


class Averaging(Aggregator):
    """w ← (1 − β) w + β · (mean of the users' models): FedAvg's mean with β = 1. It keeps a sum, see `Average`."""

    def __init__(self, average: Average, K: int) -> None:
        self.average, self.K = average, K
        self.S = torch.zeros(1, len(average.start), dtype=torch.int64, device=average.start.device)

    @property
    def models(self) -> Tensor:
        """The users' models [K, m], all the same."""
        return self.average.models(self.S).expand(self.K, -1)

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        terms = self.average.terms(users, ivs.to(self.S.device), self.average.models(self.S))
        self.S = self.average.grid.added(self.S, terms.added(torch.arange(len(users))))
        return self.models

    def prepare(self, facts: Tensor) -> Tensor:
        """The users' n_k, [K, 1], to what they are told, nothing: [K, 0]."""
        self.average.learn(facts)
        return facts[:, :0]

    def state_dict(self) -> dict[str, Tensor]:
        return {"S": self.S.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.S = state["S"].to(self.S, copy=True)
