"""FedProx: FedAvg whose users stay near the model with which a round begins."""

from typing import Any

from hmtl.mtl.algorithms.fedavg import FedAvg
from hmtl.mtl.algorithms.networks import NetworkUsers, Sending
from hmtl.mtl.networks.flat import MakeModel
from hmtl.mtl.problem import Problem
from hmtl.mtl.solvers.sgd import LocalSGD


class FedProx(FedAvg):
    """FedAvg whose users minimise their loss + (μ/2)‖w − w_global‖², w_global being the model of the round before.

    The proximal term keeps users with different data from drifting apart in a round of many steps.

    Args, Raises: as in `FedAvg`, and
        mu: μ ≥ 0, below 2/step, from where on local steps diverge. 0 is FedAvg, bit for bit.

    Ref: Li et al. 2020, *Federated optimization in heterogeneous networks*.
    """

    def __init__(self, problem: Problem, solver: LocalSGD, model: MakeModel, mu: float, **others: Any) -> None:
        self.mu = mu
        super().__init__(problem, solver, model, **others)

    def _users(self, sending: Sending) -> NetworkUsers:
        self.solver.check_proximal("mu", self.mu)
        return NetworkUsers(self._local, sending, self.mu)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"mu": self.mu}
