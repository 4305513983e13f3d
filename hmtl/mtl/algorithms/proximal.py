"""FedProx, Ditto and pFedMe: the proximal term (λ/2)‖w − anchor‖² holds users near a shared model.

K users, m parameters. In Ditto and pFedMe, w is the shared model, and v_k the personal model of user k, which never
travels. Users predict with their personal models; measures of w have the prefix `global_`.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.fedavg import AveragedUsers, FedAvg
from hmtl.mtl.algorithms.networks import LocalTraining, NetworkUsers, Sending, StatefulUsers
from hmtl.mtl.algorithms.setup_exchange import SetupAggregator, SetupUsers
from hmtl.mtl.networks.flat import MakeModel
from hmtl.mtl.problem import Problem, Rows
from hmtl.mtl.solvers.networks import NetworkSolver, Proximal


class FedProx(FedAvg):
    """FedAvg whose users minimise their loss + (μ/2)‖w − w_global‖², w_global being the previous round's model.

    The proximal term keeps users with different data from drifting apart in a round of many steps.

    Args, Raises: as in `FedAvg`, and
        mu: μ in [0, 2/step); larger values make local steps diverge. 0 is FedAvg, bit for bit.

    Ref: Li et al. 2020, *Federated optimization in heterogeneous networks*.
    """

    def __init__(self, problem: Problem, solver: NetworkSolver, model: MakeModel, mu: float, **options: Any) -> None:
        self.mu = mu
        super().__init__(problem, solver, model, **options)

    def _users(self, sending: Sending) -> NetworkUsers:
        self.solver.check_proximal("mu", self.mu)
        return AveragedUsers(self._local, sending, self.mu)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"mu": self.mu}


class PersonalUsers(StatefulUsers):
    """User side: each user's copy of the shared model, `W` [K, m], and the personal models, `V` [K, m]."""

    def __init__(self, local: LocalTraining, sending: Sending, pull: float) -> None:
        super().__init__(local, sending, local.model.start, pull)

    def predictors(self, state: dict[str, Tensor]) -> Tensor:
        return state["V"]

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """As `NetworkUsers.measure`, and ‖v_k − w_k‖² of parameters and the measures of w on test rows, [K] each."""
        m = sum(shape.numel() for name, shape in self.model.shapes.items() if name not in self.model.buffers)
        square_distances = (self.V - self.W)[:, :m].double().square().sum(1)  # buffers come last
        own = super().measure() | {"square_distances": square_distances}
        return own | self.measured_on("test", self.W, "global_")


class PersonalAlgorithm(FedAvg):
    """A shared model and personal models near it; the primal is Σ_k (s_k Σ_j ℓ(v_k) + (λ/2)‖v_k − w‖²).

    Args, Raises: as in `FedAvg`, and
        lam: λ in [0, 2/step); larger values make local steps diverge.
    """

    def __init__(self, problem: Problem, solver: NetworkSolver, model: MakeModel, lam: float, **options: Any) -> None:
        self.lam = lam
        super().__init__(problem, solver, model, **options)

    @property
    def remembers(self) -> bool:
        return False  # a user's term follows from w alone

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"lam": self.lam}

    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        losses = measured["losses"].sum()
        figures = {"primal": float(losses + self.lam / 2 * measured["square_distances"].sum())}
        return figures | self.problem.figures("global_test", measured)


class DittoUsers(PersonalUsers):
    """User side of Ditto: both models take the same number of steps on the same minibatches."""

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        W, order = self.W[users], self._order(round, users, rows)
        new = self._steps(users, rows, W, order, budgets, round)
        proximal = Proximal(self.pull, W)
        return new, self._steps(users, rows, self.V[users], order, budgets, round, 1, proximal=proximal)


class Ditto(PersonalAlgorithm):
    """FedAvg's w, and v_k from the same number of steps on user k's loss + (λ/2)‖v − w‖².

    In a round, a user takes steps from w, which give the model that it sends, and steps from its last v_k, which are
    held near the w with which the round began. Both use the same minibatches.

    Args, Raises: as in `FedAvg`, and
        lam: λ in [0, 2/step); larger values make local steps diverge. With 0, each v_k is trained on its own; the
            larger λ, the nearer v_k is to w.

    Ref: Li et al. 2021, *Ditto: fair and robust federated learning through personalization*, algorithm 1.
    """

    def _users(self, sending: Sending) -> DittoUsers:
        self.solver.check_proximal("lam", self.lam)
        return DittoUsers(self._local, sending, self.lam)


class PFedMeUsers(PersonalUsers):
    """User side of pFedMe: the personal models `V` are θ.

    Args: as in `PersonalUsers`, and
        share: ηλ, the share of the way to θ_k that w_k moves.
        local_rounds: R.
    """

    def __init__(self, local: LocalTraining, sending: Sending, pull: float, share: float, local_rounds: int) -> None:
        super().__init__(local, sending, pull)
        self.share = share
        self.local_rounds = local_rounds
        self.usual = local_rounds * self.usual

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        W = V = self.W[users]
        usual = self.local.solver.steps(rows.counts)
        for r in range(self.local_rounds):
            steps = (budgets - r * usual).clamp_min(0).minimum(usual)  # a straggler skips the last steps
            order = self._order(round * self.local_rounds + r, users, rows)
            V = self._steps(users, rows, V, order, steps, round, r, proximal=Proximal(self.pull, W))
            moving = (steps > 0)[:, None].to(W)
            W = W - self.share * moving * (W - V)
        return W, V


class PFedMe(PersonalAlgorithm):
    """θ_k ≈ argmin of user k's loss + (λ/2)‖θ − w_k‖², and a shared w that moves towards all θ_k.

    In a round, each user starts from θ_k = w_k = w. R times it improves θ_k by the solver's steps and then moves
    w_k ← w_k − ηλ (w_k − θ_k). It sends w_k, and w ← (1 − β) w + β · (mean of all w_k), with equal weights.

    The paper improves θ_k on one minibatch; here the steps pass over all of the user's rows, which comes nearer to the
    argmin. The paper does not say where θ_k starts; its authors' code starts at w, too.

    Args, Raises: as in `FedAvg`, and
        lam: λ in (0, 2/step); larger values make local steps diverge. The larger λ, the nearer θ_k is to w.
        eta: η in (0, 1/λ]; None: 1/λ, with which w_k becomes θ_k.
        local_rounds: R ≥ 1.
        beta: β > 0; 1 is the mean, and a larger β goes beyond it.

    Ref: Dinh et al. 2020, *Personalized federated learning with Moreau envelopes*, algorithm 1.
    """

    def __init__(
        self,
        problem: Problem,
        solver: NetworkSolver,
        model: MakeModel,
        lam: float,
        eta: float | None = None,
        local_rounds: int = 1,
        beta: float = 1.0,
        **options: Any,
    ) -> None:
        if eta is None:
            eta = 1 / lam if lam else 1.0
        if not (eta > 0 and 0 < eta * lam <= 1):
            raise ConfigError(
                f"eta={eta:g}, lam={lam:g}: eta·lam, the share of the way to θ_k, is not in (0, 1]. Change eta or lam."
            )
        if local_rounds < 1 or not 0 < beta < math.inf:
            raise ConfigError(
                f"local_rounds={local_rounds}, beta={beta:g}: give at least 1 local round, and a finite beta above 0."
            )
        self.eta = eta
        self.local_rounds = local_rounds
        self.beta = beta
        super().__init__(problem, solver, model, lam, **options)

    def _users(self, sending: Sending) -> PFedMeUsers:
        self.solver.check_proximal("lam", self.lam)
        return PFedMeUsers(self._local, sending, self.lam, self.eta * self.lam, self.local_rounds)

    def _weights(self) -> Tensor:
        return torch.ones_like(super()._weights())

    def setup(self) -> tuple[SetupUsers, SetupAggregator] | None:
        return None  # all users weigh the same
