"""FedAvg: any network, one for all users; and FedProx, whose users are held back while they train.

K users, m parameters of a network.
"""

from typing import Any

import torch
from torch import Tensor

from hmtl.mtl.algorithms.base import Aggregator, Ids, SetupAggregator, SetupUsers, Users
from hmtl.mtl.algorithms.gradients import ByGradients, Mixing, ModelUsers, told_nothing
from hmtl.mtl.models import MakeModel
from hmtl.mtl.problem import Problem
from hmtl.mtl.sgd import LocalSGD


class FedAvg(ByGradients):
    """One network for all users, w = Σ_k n_k w_k / Σ_k n_k; the problem's regularizer plays no part.

    Args, Raises: as in `ByGradients`. A user who drops out counts with its last model, the mean of the round before.

    Ref: McMahan et al. 2017.
    """

    aggregator: "Averaging"

    def _aggregator(self, start: Tensor) -> "Averaging":
        return Averaging(start, self._counts())

    def _counts(self) -> Tensor:
        return torch.tensor(self.problem.rows.counts)[:, None].to(self.problem.rows.s)

    def setup(self) -> tuple[Users, Aggregator] | None:
        return SetupUsers(self._counts(), told_nothing), SetupAggregator(self.aggregator.prepare, self.problem.K)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        del described["regularizer"], described["lam"]
        return described

    def _objective(self, measured: dict[str, Tensor]) -> dict[str, float]:
        return {"primal": float(measured["losses"])}


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


class Averaging(Mixing):
    """w ← (1 − β) w + β · (mean of the users' models): FedAvg's mean with β = 1.

    Args:
        start: [K, m], the users' first models, all the same.
        counts: [K, 1], the users' numbers of rows, by which the mean weighs them.
        beta: β.
    """

    def __init__(self, start: Tensor, counts: Tensor, beta: float = 1.0) -> None:
        super().__init__(start)
        self.beta = beta
        self.prepare(counts)

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        last = self.models
        mean = super().update(users, ivs)
        if self.beta != 1:
            self.models = torch.lerp(last, mean, self.beta)
        return self.models

    def prepare(self, facts: Tensor) -> Tensor:
        """The users' n_k, [K, 1], to what they are told, nothing: [K, 0]."""
        self.counts = facts[:, 0].to(self.models.device)
        return facts[:, :0]

    def mixing(self, steps: Tensor) -> Tensor:
        return (self.counts / self.counts.sum()).expand(len(self.counts), -1)
