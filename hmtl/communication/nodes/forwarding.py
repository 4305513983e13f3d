"""Nodes of an uncoded round: relays forward IVs, the server aggregates. K users."""

from collections.abc import Sequence

import numpy as np
import torch

from hmtl.communication.messages import IN_VAIN, IVS, Message, by_user
from hmtl.communication.nodes.aggregation import Aggregation, PackedModels
from hmtl.communication.nodes.base import Relay, Server
from hmtl.communication.planning.planner import Planner


class ForwardingRelay(Relay):
    """A relay that forwards some of the IVs that it heard."""

    def forward(self) -> list[Message]:
        """Send the IVs of the users whom the plan assigns to this relay."""
        users = np.flatnonzero(self.planner.forwarders(self.attendance.heard) == self.i)
        at = torch.from_numpy(self._row[users])
        return [self._to_server(IVS, self._ivs["payload"], self._ivs["overhead"], users, at)]


class ForwardingServer(Server):
    """A server that aggregates the IVs that relays forward.

    Args:
        planner: plans of the network.
        aggregation: computes the models.
    """

    def __init__(self, planner: Planner, aggregation: Aggregation) -> None:
        super().__init__(planner)
        self.aggregation = aggregation
        self._dtype = torch.float64

    def gather(self, messages: Sequence[Message]) -> None:
        """Take the IVs that the relays forwarded."""
        if self.empty or self._lacks(self.attendance.relays, messages):
            return
        users, ivs = by_user(messages)
        self.aggregation.keep(self.round, self.name, users, ivs)
        self._dtype = messages[0].dtype

    def aggregate(self) -> None:
        """Compute the models of all IVs."""
        if not self.empty and not self.silent:
            self.aggregation.update(b"", self._dtype)

    def hand_back(self) -> list[Message]:
        """Send the models to the relays that deliver them."""
        if self.silent:
            return self._verdict(IN_VAIN, self.attendance.relays)
        models = self.aggregation.models(b"")
        return self._model_messages(models) if models else []

    def _model_messages(self, models: PackedModels) -> list[Message]:
        everybody = torch.arange(self.topology.K)
        return list(self._to_serving(models, everybody.numpy(), everybody))
