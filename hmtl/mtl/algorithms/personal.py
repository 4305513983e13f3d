"""Ditto and pFedMe: any network, one for all users, and one for each user that is held near it and never travels.

K users, m parameters of a network. w is the model for all, v_k that of user k. Users predict with their own models; the
error of w on the same rows stands beside, as `global_test_error`.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.averaging import FedAvg
from hmtl.mtl.algorithms.base import Aggregator, Ids, Users, with_rows
from hmtl.mtl.algorithms.gradient_sums import Average
from hmtl.mtl.algorithms.gradients import ModelUsers
from hmtl.mtl.networks.models import MakeModel
from hmtl.mtl.problem import Problem, Rows
from hmtl.mtl.solvers.sgd import LocalSGD


class Personal(FedAvg):
    """A model for all, and models near it. The primal is Σ_k (s_k Σ_j ℓ(v_k) + (λ/2)‖v_k − w‖²), λ being `lam`."""

    users: "PersonalUsers"

    def __init__(self, problem: Problem, solver: LocalSGD, model: MakeModel, lam: float, **others: Any) -> None:
        self.lam = lam
        super().__init__(problem, solver, model, **others)

    def _users(self) -> "PersonalUsers":
        self.solver.check_pull("lam", self.lam)
        return self._personal(self.problem, self.solver, self.model, self.seed, self.participation, self.lam)

    @abstractmethod
    def _personal(self, *of: Any) -> "PersonalUsers":
        """The user side, of what a `ModelUsers` with a pull is made of."""

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"lam": self.lam}

    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        losses = measured["s"] @ measured["losses"]
        figures = {"primal": float(losses + self.lam / 2 * measured["apart"].sum())}
        of_all = self.problem.figures("test", measured["global_test_error"])  # none, where nobody has tests
        return figures | ({"global_test_error": of_all["test_error"]} if of_all else {})


class Ditto(Personal):
    """FedAvg's w, and beside it v_k by the same number of steps on user k's loss + (λ/2)‖v − w‖².

    In a round a user takes its steps from w, which it sends, and its steps from its last v_k, both on the same
    minibatches and with w as it was when the round began.

    Args, Raises: as in `FedAvg`; besides
        lam: λ ≥ 0; 0 is training alone, and the larger, the nearer are all to w. Below 2/step, beyond which local
            steps diverge.

    Ref: Li et al. 2021, *Ditto: fair and robust federated learning through personalization*, algorithm 1.
    """

    def _personal(self, *of: Any) -> "PersonalUsers":
        return PersonalUsers(*of)


class PFedMe(Personal):
    """θ_k ≈ argmin of user k's loss + (λ/2)‖θ − w_k‖², and w that moves towards them.

    In a round each user sets out from w_k = w and, R times, finds θ_k by the solver's steps from the last one, then
    moves w_k ← w_k − ηλ (w_k − θ_k). It sends w_k; w ← (1 − β) w + β · (mean of all w_k), each user weighing the same.

    (The paper takes its steps for θ_k on one minibatch, here they pass over the user's rows, which is nearer to the
    argmin. θ_k plays the part of v_k.)

    Args, Raises: as in `FedAvg`; besides
        lam: λ > 0, below 2/step, beyond which local steps diverge. The larger, the nearer is θ_k to w.
        eta: η > 0, up to 1/λ: there, w_k is θ_k.
        local_rounds: R ≥ 1.
        beta: β > 0; 1 is the mean, more goes beyond it.

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
            raise ConfigError(f"eta={eta:g}, lam={lam:g}: eta·lam, the share of the way to θ, has to be in (0, 1].")
        if local_rounds < 1 or not 0 < beta < math.inf:
            raise ConfigError(f"local_rounds={local_rounds}, beta={beta:g}: give at least 1, and a number above 0.")
        self.eta, self.local_rounds, self.beta = eta, local_rounds, beta
        super().__init__(problem, solver, model, lam, **others)

    def _personal(self, *of: Any) -> "PersonalUsers":
        return MoreauUsers(*of, share=self.eta * self.lam, local_rounds=self.local_rounds)

    def _average(self) -> Average:
        return Average(self.model.start, torch.ones_like(self._counts()), self.beta, self.problem.grid)

    def setup(self) -> tuple[Users, Aggregator] | None:
        return None  # nobody's number of rows plays a part


class PersonalUsers(ModelUsers):
    """User side: w as each user has it, W [K, m], and models of their own, V [K, m].

    What a local update makes of V is `pending` until it is settled; for whom it is, `pending` is V.
    """

    state = ("W", "V", "pending")

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self.V = self.pending = self.W

    @property
    def models(self) -> Tensor:
        return self.V

    def predictors(self, state: dict[str, Tensor]) -> Tensor:
        return state["V"]

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor, group: int = 0) -> tuple[Tensor, ...]:
        W, order = self.W[users], self._order(round, users, rows)
        new = self._steps(users, rows, W, order, budgets, round, group=group)
        return new, self._steps(users, rows, self.V[users], order, budgets, round, self.pull, W, time=1, group=group)

    def _hold(self, users: Ids, own: list[Tensor]) -> None:
        self.pending = with_rows(self.pending, users, own[0][users])

    def commit(self, users: Ids) -> None:
        self.V = with_rows(self.V, users, self.pending[users])

    def roll_back(self, users: Ids) -> None:
        self.pending = with_rows(self.pending, users, self.V[users])

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """As `ModelUsers`; besides ‖v_k − w_k‖² and the test error of w, [K]."""
        apart = (self.V - self.W).double().square().sum(1)
        errors = self._errors("test", self._predictions("test", self.W))
        return super().measure() | {"apart": apart, "global_test_error": errors}


class MoreauUsers(PersonalUsers):
    """User side of pFedMe: V is θ, and `share` is ηλ."""

    def __init__(self, *of: Any, share: float, local_rounds: int) -> None:
        super().__init__(*of)
        self.share, self.local_rounds = share, local_rounds
        self._usual = local_rounds * self._usual

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor, group: int = 0) -> tuple[Tensor, ...]:
        W, V = self.W[users], self.V[users]
        usual = self.solver.steps(rows.counts)
        for r in range(self.local_rounds):
            steps = (budgets - r * usual).clamp_min(0).minimum(usual)  # a straggler does not come to the last ones
            order = self._order(round * self.local_rounds + r, users, rows)
            V = self._steps(users, rows, V, order, steps, round, self.pull, W, time=r, group=group)
            moving = (steps > 0)[:, None].to(W)
            W = W - self.share * moving * (W - V)
        return W, V
