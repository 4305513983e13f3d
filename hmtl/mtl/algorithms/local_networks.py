"""Local training of networks: the baseline of FedAvg and its relatives, in which nothing travels.

K users, m parameters.
"""

from torch import Tensor

from hmtl.mtl.algorithms.base import Aggregator, Ids, MessageKind
from hmtl.mtl.algorithms.networks import LocalTraining, NetworkAlgorithm, Sending, StatefulUsers
from hmtl.mtl.problem import Rows


class LocalNetworkUsers(StatefulUsers):
    """User side: `V` [K, m] are the users' models, and rows have no numbers, [n, 0]."""

    def __init__(self, local: LocalTraining) -> None:
        super().__init__(local, Sending(0), local.model.start, start=local.model.start[:0])

    def predictors(self, state: dict[str, Tensor]) -> Tensor:
        return state["V"]

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        models = self._steps(users, rows, self.V[users], self._order(round, users, rows), budgets, round)
        return models[:, :0], models


class NoAggregator(Aggregator):
    """The aggregator side of an algorithm in which nothing travels."""

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        return ivs


class LocalNetworks(NetworkAlgorithm):
    """Each user trains a network on its own rows. Nothing travels, and the regularizer of the problem is not used.

    Args, Raises: as in `NetworkAlgorithm`; `messages` has no effect.
    """

    regularized = False

    def _sides(self, messages: MessageKind) -> tuple[LocalNetworkUsers, Aggregator]:
        return LocalNetworkUsers(self._local), NoAggregator()
