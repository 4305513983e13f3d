"""Ditto: FedAvg's network for all users, and for each user a network near it."""

from torch import Tensor

from hmtl.mtl.algorithms.networks import Sending
from hmtl.mtl.algorithms.personal import PersonalAlgorithm, PersonalUsers
from hmtl.mtl.problem import Rows
from hmtl.mtl.solvers.sgd import Proximal


class DittoUsers(PersonalUsers):
    """User side of Ditto: both models take the same number of steps on the same minibatches."""

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        W, order = self.W[users], self._order(round, users, rows)
        new = self._steps(users, rows, W, order, budgets, round)
        proximal = Proximal(self.pull, W)
        return new, self._steps(users, rows, self.V[users], order, budgets, round, proximal, time=1)


class Ditto(PersonalAlgorithm):
    """FedAvg's w, and v_k from the same number of steps on user k's loss + (λ/2)‖v − w‖².

    In a round, a user takes steps from w, which give the model that it sends, and steps from its last v_k. Both use the
    same minibatches, and the w with which the round began.

    Args, Raises: as in `FedAvg`, and
        lam: λ ≥ 0, below 2/step, from where on local steps diverge. 0 trains v_k alone; the larger λ, the nearer is v_k
            to w.

    Ref: Li et al. 2021, *Ditto: fair and robust federated learning through personalization*, algorithm 1.
    """

    def _users(self, sending: Sending) -> DittoUsers:
        self.solver.check_proximal("lam", self.lam)
        return DittoUsers(self._local, sending, self.lam)
