"""pFedMe: a network per user, the proximal point of a shared network that moves towards them."""

import math
from typing import Any

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.base import Aggregator, Users
from hmtl.mtl.algorithms.networks import LocalTraining, Sending
from hmtl.mtl.algorithms.personal import PersonalAlgorithm, PersonalUsers
from hmtl.mtl.networks.flat import MakeModel
from hmtl.mtl.problem import Problem, Rows
from hmtl.mtl.solvers.sgd import LocalSGD, Proximal


class PFedMeUsers(PersonalUsers):
    """User side of pFedMe: the personal models `V` are θ.

    Args: as in `PersonalUsers`, and
        share: ηλ, the share of the way to θ that w_k moves.
        local_rounds: R.
    """

    def __init__(self, local: LocalTraining, sending: Sending, pull: float, share: float, local_rounds: int) -> None:
        super().__init__(local, sending, pull)
        self.share = share
        self.local_rounds = local_rounds
        self.usual = local_rounds * self.usual

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        W, V = self.W[users], self.V[users]
        usual = self.local.solver.steps(rows.counts)
        for r in range(self.local_rounds):
            steps = (budgets - r * usual).clamp_min(0).minimum(usual)  # a straggler makes no steps in the last ones
            order = self._order(round * self.local_rounds + r, users, rows)
            V = self._steps(users, rows, V, order, steps, round, Proximal(self.pull, W), time=r)
            moving = (steps > 0)[:, None].to(W)
            W = W - self.share * moving * (W - V)
        return W, V


class PFedMe(PersonalAlgorithm):
    """θ_k ≈ argmin of user k's loss + (λ/2)‖θ − w_k‖², and a shared w that moves towards all θ_k.

    In a round, each user starts from w_k = w. R times it improves θ_k by the steps of the solver and then moves
    w_k ← w_k − ηλ (w_k − θ_k). It sends w_k; w ← (1 − β) w + β · (mean of all w_k), with equal weights.

    The paper improves θ_k on one minibatch; here the steps pass over all rows of the user, which comes nearer to the
    argmin.

    Args, Raises: as in `FedAvg`, and
        lam: λ > 0, below 2/step, from where on local steps diverge. The larger λ, the nearer is θ_k to w.
        eta: η > 0, at most 1/λ; with 1/λ, w_k is θ_k.
        local_rounds: R ≥ 1.
        beta: β > 0; 1 is the mean, and a larger β goes beyond it.

    Ref: Dinh et al. 2020, *Personalized federated learning with Moreau envelopes*, algorithm 1.
    """

    def __init__(
        self,
        problem: Problem,
        solver: LocalSGD,
        model: MakeModel,
        lam: float,
        eta: float,
        local_rounds: int = 5,
        beta: float = 1.0,
        **others: Any,
    ) -> None:
        if not (eta > 0 and 0 < eta * lam <= 1):
            raise ConfigError(
                f"eta={eta:g}, lam={lam:g}: eta·lam, the share of the way to θ, is not in (0, 1]. Change eta or lam."
            )
        if local_rounds < 1 or not 0 < beta < math.inf:
            raise ConfigError(
                f"local_rounds={local_rounds}, beta={beta:g}: give at least 1 local round, and a finite beta above 0."
            )
        self.eta = eta
        self.local_rounds = local_rounds
        self.beta = beta
        super().__init__(problem, solver, model, lam, **others)

    def _users(self, sending: Sending) -> PFedMeUsers:
        self.solver.check_proximal("lam", self.lam)
        return PFedMeUsers(self._local, sending, self.lam, self.eta * self.lam, self.local_rounds)

    def _weights(self) -> Tensor:
        return torch.ones_like(super()._weights())

    def setup(self) -> tuple[Users, Aggregator] | None:
        return None  # all users weigh the same
