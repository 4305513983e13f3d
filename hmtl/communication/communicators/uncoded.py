"""The communicator of uncoded rounds: relays forward IVs, the server aggregates. K users."""

from hmtl.coding import Loads, loads
from hmtl.communication.accounting.network import Network
from hmtl.communication.communicators.base import Communicator, MakeLinks
from hmtl.communication.links import InProcess
from hmtl.topology import Moving, Topology


class Uncoded(Communicator):
    """Relays forward IVs and models, the server aggregates; loads are (K, K, K, K).

    Ref: Hu et al. 2022, Example 1.

    Args:
        topology: who hears whom, in all rounds or round by round.
        network, wire, links: see `Communicator`; the relays that forward are chosen for the least time.
    """

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        wire: str | None = None,
        *,
        links: MakeLinks = InProcess,
    ) -> None:
        super().__init__(topology, network, "uncoded", wire, links)

    @property
    def theory(self) -> Loads:
        return loads(self.topology, self.scheme.name, self.network.uplinks(self.topology))
