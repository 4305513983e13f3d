"""Nodes of an uncoded round: relays forward IVs, the server aggregates. K users."""

from collections.abc import Sequence

import numpy as np
import torch

from hmtl.communication.messages import IVS, Message
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.server import Server
from hmtl.communication.planning.planner import Planner


class ForwardingRelay(Relay):
    """A relay that forwards some of the IVs that it heard."""

    def forward(self) -> list[Message]:
        """Send the IVs of the users for whom the plan names this relay."""
        users = np.flatnonzero(self.planner.forwarders(self.attendance.heard) == self.i)
        at = torch.from_numpy(self._row[users])
        message = self._to_server(IVS, self._ivs["payload"], self._ivs["overhead"], users, at)
        if self.reliable:
            self._ivs = {}
        return [message]


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

    def nobody_aggregates(self) -> bool:
        return not self._reports

    def gather(self, messages: Sequence[Message]) -> None:
        """Take the IVs that the relays forwarded."""
        if self.empty or self._lacks(self.attendance.relays, messages):
            return
        self.aggregation.open(self.round, self.name, self.attendance.users, *self.sizes)
        self.aggregation.gather(messages)
        self._dtype = messages[0].dtype

    def aggregate(self) -> None:
        """Compute the models of all IVs."""
        if not self.empty and not self.silent:
            self.aggregation.update(b"", self._dtype)

    def hand_back(self) -> list[Message]:
        """Send each user's model to a relay within range of the user."""
        if self.silent:
            return self._in_vain()
        models = self.aggregation.models(b"")
        if models is None:
            return []
        everybody = torch.arange(self.topology.K)
        return list(self._to_serving(models, everybody.numpy(), everybody))

    def close(self) -> None:
        self.aggregation.close()
