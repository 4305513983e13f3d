"""SCAFFOLD: FedAvg whose users correct their steps by how their gradients differ from those of all users.

K users, m parameters. What is averaged has 2m numbers: the model w, and the gradient c.
"""

import torch
from torch import Tensor

from hmtl.mtl.algorithms.fedavg import AverageTerms, FedAvg
from hmtl.mtl.algorithms.networks import LocalTraining, Sending, StatefulUsers
from hmtl.mtl.problem import Rows


def with_gradient(start: Tensor) -> Tensor:
    """Return the first model [m] and the first c, zeros: [2m]."""
    return torch.cat([start, torch.zeros_like(start)])


class ScaffoldUsers(StatefulUsers):
    """User side: `W` [K, 2m] are w and c as received, and `V` [K, m] is c_k, each user's own control variate.

    An IV is the new model and the mean gradient g_k of the user's steps, [2m]. The aggregator averages g_k − c, the
    change of c_k, so that c stays the average of all c_k.
    """

    def __init__(self, local: LocalTraining, sending: Sending) -> None:
        start = local.model.start
        super().__init__(local, sending, torch.zeros_like(start), start=with_gradient(start))

    def predictors(self, state: dict[str, Tensor]) -> Tensor:
        return state["W"].chunk(2, dim=1)[0]

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        w, c = self.W[users].chunk(2, dim=1)
        correction, order = c - self.V[users], self._order(round, users, rows)
        new = self._steps(users, rows, w, order, budgets, round, correction=correction)
        gradient = (w - new) / (self.local.solver.rate(round) * budgets.clamp_min(1).to(w)[:, None])
        return torch.cat([new, gradient], dim=1), gradient - correction


class Scaffold(FedAvg):
    """FedAvg with control variates: user k takes steps w ← w − μ_t (∇_k − c_k + c), so that steps do not drift apart.

    c_k is the mean gradient of user k's last round, and c the average of all c_k. Afterwards
    c_k ← c_k − c + (w − w_k)/(μ_t T_k) for T_k steps from w to w_k (option II of the paper). c and all c_k start at 0.
    Averages are weighted by numbers of rows, as in FedAvg; in the paper all users weigh the same. Users send twice as
    many numbers as in FedAvg. If users are absent, w is the average over the others, and c remains that over all.

    Args, Raises: as in `FedAvg`. An absent user keeps its c_k.

    Ref: Karimireddy et al. 2020.
    """

    @property
    def bounded(self) -> bool:
        return False  # c would no longer be the average of all c_k, and `agree` would restore it from them

    @property
    def common(self) -> Tensor:
        assert isinstance(self.aggregator, AverageTerms)
        return self._average_of(self.aggregator).chunk(2)[0]

    @property
    def _start(self) -> Tensor:
        return with_gradient(self.model.start)

    @property
    def _of_all(self) -> int:
        return len(self.model.start)

    def _users(self, sending: Sending) -> ScaffoldUsers:
        self.solver.check_correction()
        return ScaffoldUsers(self._local, sending)
