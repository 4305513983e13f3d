"""How long bits take: the paper's model of time."""

from collections.abc import Mapping
from dataclasses import dataclass

from hmtl.coding import loads
from hmtl.communication.ledger import RELAYS_TO_SERVER, RELAYS_TO_USERS, SERVER_TO_RELAYS, TIERS, USERS_TO_RELAYS
from hmtl.errors import ConfigError
from hmtl.topology import Topology

MEDIA = ("broadcast", "unicast")


@dataclass(frozen=True)
class Network:
    """Bandwidths [bit/s] of the two hops, and what the server's downlink is.

    Args:
        W1: between users and relays.
        W2: between relays and server.
        medium: `broadcast`: one transmission of the server reaches all relays (radio, satellite, IP multicast);
            `unicast`: it has to send a copy to each of them (TCP).

    Raises:
        ConfigError: a bandwidth that is not positive, or an unknown medium.
    """

    W1: float = 100e6
    W2: float = 100e6
    medium: str = "broadcast"

    def __post_init__(self) -> None:
        check_medium(self.medium)
        for name in ("W1", "W2"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"network.{name}={getattr(self, name)} is not positive: a bandwidth in bit/s is needed, say 1e8."
                )

    def seconds(self, bits: Mapping[str, float]) -> float:
        """T_comm: the bits of each tier divided by its bandwidth. Ref: Hu et al. 2022, eq. (13)."""
        users = bits[USERS_TO_RELAYS] + bits[RELAYS_TO_USERS]
        server = bits[RELAYS_TO_SERVER] + bits[SERVER_TO_RELAYS]
        return users / self.W1 + server / self.W2


def check_medium(medium: str) -> None:
    if medium not in MEDIA:
        raise ConfigError(f"network.medium={medium} is unknown: choose one of {', '.join(MEDIA)}.")


def tier_loads(topology: Topology, scheme: str, medium: str = "broadcast") -> dict[str, float]:
    """Loads of all four tiers in IVs, as the formulas have them.

    Under `unicast` each downlink message of a coded scheme is sent to every relay, an uncoded model still to one.
    """
    load = loads(topology, scheme)
    copies = len(topology.active) if medium == "unicast" and scheme != "uncoded" else 1
    return dict(zip(TIERS, (topology.K, load.uplink, load.downlink * copies, topology.K), strict=True))
