"""FedU: any network, one per user, coupled by the regularizer."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.base import Aggregator, SetupAggregator, SetupUsers, Users
from hmtl.mtl.algorithms.gradients import ByGradients, Mixing, ModelUsers, told_nothing
from hmtl.mtl.regularizers import Regularizer, identity


class FedU(ByGradients):
    """R_k gradient steps at user k, then w_k ← w_k − μ_t·R_k·Σ_l A_kl w_l at the aggregator, all users at once.

    With A = ηL that is w_k − μ_t·R_k·η·Σ_l a_kl (w_k − w_l). A step of either kind weighs the same, however large the
    minibatches and whoever did how many, so that as μ_t falls the models approach a stationary point of P. A step so
    long that the models would diverge, μ_t·R_k times A's largest eigenvalue ≥ 2, is made in as many parts as it takes.

    Args, Raises: as in `ByGradients`; the regularizer must not learn Ω.

    Ref: Dinh et al. 2021, algorithm 1.
    """

    aggregator: "Coupling"

    def _users(self) -> ModelUsers:
        return ModelUsers(self.problem, self.solver, self.model, self.seed, self.participation, tells_steps=True)

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
