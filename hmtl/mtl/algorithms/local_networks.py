"""Local training of networks: the baseline of FedAvg and its relatives, in which nothing travels.

K users, m parameters.
"""

from torch import Tensor

from hmtl.mtl.algorithms.base import Aggregator, Ids, MessageKind, with_rows
from hmtl.mtl.algorithms.networks import LocalTraining, NetworkAlgorithm, NetworkUsers, Sending
from hmtl.mtl.problem import Rows


class SendNothing(Sending):
    """Users send rows without numbers [n, 0]."""

    def __init__(self) -> None:
        super().__init__(0)

    def encode(self, users: Ids, ivs: Tensor, last: Tensor) -> Tensor:
        return ivs[:, :0]


class LocalNetworkUsers(NetworkUsers):
    """User side: a user's model is what its own steps lead to; `pending` [K, m] holds it until it is committed."""

    pending: Tensor

    def __init__(self, local: LocalTraining) -> None:
        super().__init__(local, SendNothing())
        self.register_buffer("pending", self.W)

    @property
    def origin(self) -> Tensor:
        return self.model.start[:0]

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        models = super()._train(round, users, rows, budgets)
        return (*models, *models)

    def _hold(self, users: Ids, own: list[Tensor]) -> None:
        self.pending = with_rows(self.pending, users, own[0][users])

    def commit(self, users: Ids) -> None:
        super().commit(users)
        self.W = with_rows(self.W, users, self.pending[users])


class NoAggregator(Aggregator):
    """The aggregator side of an algorithm in which nothing travels."""

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        return ivs


class LocalNetworks(NetworkAlgorithm):
    """Each user trains a network on its own rows. Nothing travels, and the regularizer of the problem is not used.

    Args, Raises: as in `NetworkAlgorithm`; `messages` has no effect.
    """

    regularized = False

    def _sides(self, messages: MessageKind) -> tuple[NetworkUsers, Aggregator]:
        return LocalNetworkUsers(self._local), NoAggregator()
