"""What Ditto and pFedMe share: one network for all users, and near it one per user, which never travels.

K users, m parameters. w is the shared model, v_k the personal model of user k. Users predict with their personal
models; the error of w on the same rows is reported as `global_test_error`.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hmtl.mtl.algorithms.base import Ids, with_rows
from hmtl.mtl.algorithms.fedavg import FedAvg
from hmtl.mtl.algorithms.networks import LocalTraining, NetworkUsers, Sending
from hmtl.mtl.networks.flat import MakeModel
from hmtl.mtl.problem import Problem, Rows
from hmtl.mtl.solvers.sgd import LocalSGD


class PersonalUsers(NetworkUsers):
    """User side: the shared model as each user has it, `W` [K, m], and the personal models, `V` [K, m].

    A local update leaves the new personal models in `pending` [K, m].

    Args: as in `NetworkUsers`; `pull` is λ.
    """

    V: Tensor
    pending: Tensor

    def __init__(self, local: LocalTraining, sending: Sending, pull: float) -> None:
        super().__init__(local, sending, pull)
        self.register_buffer("V", self.W)
        self.register_buffer("pending", self.W)

    @property
    def models(self) -> Tensor:
        return self.V

    def predictors(self, state: dict[str, Tensor]) -> Tensor:
        return state["V"]

    @abstractmethod
    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        """As `NetworkUsers._train`; the further models are the new personal ones."""

    def _hold(self, users: Ids, own: list[Tensor]) -> None:
        self.pending = with_rows(self.pending, users, own[0][users])

    def commit(self, users: Ids) -> None:
        super().commit(users)
        self.V = with_rows(self.V, users, self.pending[users])

    def roll_back(self, users: Ids) -> None:
        self.pending = with_rows(self.pending, users, self.V[users])

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """As `NetworkUsers.measure`, and ‖v_k − w_k‖² and the test error of w, [K] each."""
        square_distances = (self.V - self.W).double().square().sum(1)
        errors = self.evaluation.test_errors(self.W)
        return super().measure() | {"square_distances": square_distances, "global_test_error": errors}


class PersonalAlgorithm(FedAvg):
    """A shared model and personal models near it; the primal is Σ_k (s_k Σ_j ℓ(v_k) + (λ/2)‖v_k − w‖²).

    Args, Raises: as in `FedAvg`, and
        lam: λ ≥ 0, below 2/step, from where on local steps diverge.
    """

    def __init__(self, problem: Problem, solver: LocalSGD, model: MakeModel, lam: float, **others: Any) -> None:
        self.lam = lam
        super().__init__(problem, solver, model, **others)

    @abstractmethod
    def _users(self, sending: Sending) -> PersonalUsers:
        """Return the user side."""

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"lam": self.lam}

    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        losses = measured["s"] @ measured["losses"]
        figures = {"primal": float(losses + self.lam / 2 * measured["square_distances"].sum())}
        of_shared = self.problem.figures("test", measured["global_test_error"])  # empty if there are no test rows
        return figures | ({"global_test_error": of_shared["test_error"]} if of_shared else {})
