"""How long bits take: the paper's model of time, and links that it does not have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hmtl.coding import MEDIA, Aggregators, Loads, Uplinks, forwarders, loads
from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    TIERS,
    USERS_TO_RELAYS,
)
from hmtl.errors import ConfigError
from hmtl.topology import Topology

UPLINKS = ("shared", "parallel")
LEAST_BPS = 1e-6  # with less, times would be no numbers any more


@dataclass(frozen=True)
class Network:
    """Bandwidths [bit/s] of the two hops, and what the server's downlink and the relays' uplinks are.

    Args:
        W1: between users and relays.
        W2: between relays and server.
        medium: `broadcast`: one transmission of the server reaches all relays (radio, satellite, IP multicast);
            `unicast`: it has to send a copy to each of them (TCP).
        last_hop: the same of a relay and its users, for what is alike for all of them: sums.
        uplink_bps: of each relay to the server [H]; None: W2 for all.
        uplink: `shared`: one relay sends after the other; `parallel`: side by side, and the last to finish counts.

    Raises:
        ConfigError: a bandwidth below `LEAST_BPS`, or an unknown medium or uplink.
    """

    W1: float = 100e6
    W2: float = 100e6
    medium: str = "broadcast"
    uplink_bps: Sequence[float] | None = None
    uplink: str = "shared"
    last_hop: str = "broadcast"

    def __post_init__(self) -> None:
        check_medium(self.medium)
        check_medium(self.last_hop, "last_hop")
        if self.uplink not in UPLINKS:
            raise ConfigError(f"network.uplink={self.uplink} is unknown: choose one of {', '.join(UPLINKS)}.")
        if self.uplink_bps is not None:
            object.__setattr__(self, "uplink_bps", tuple(self.uplink_bps))  # whatever kind of list it comes as
        given = {f"uplink_bps[{i}]": bandwidth for i, bandwidth in enumerate(self.uplink_bps or ())}
        for name, bandwidth in {"W1": self.W1, "W2": self.W2, **given}.items():
            if not bandwidth >= LEAST_BPS:
                raise ConfigError(
                    f"network.{name}={bandwidth} is below {LEAST_BPS:g}: a bandwidth in bit/s is needed, say 1e8."
                )

    def seconds(self, bits: Mapping[str, ArrayLike]) -> float:
        """T_comm: the bits of each tier divided by its bandwidth.

        Args:
            bits: of each tier, in all or by link; from relays to server by relay [H], unless uplinks are alike and
                shared.

        Raises:
            ConfigError: as many `uplink_bps` as relays are needed.

        Ref: Hu et al. 2022, eq. (13).
        """
        total = {tier: float(np.sum(bits[tier])) for tier in TIERS}
        users = total[USERS_TO_RELAYS] + total[RELAYS_TO_USERS]
        up = np.atleast_1d(np.asarray(bits[RELAYS_TO_SERVER], dtype=np.float64))
        return users / self.W1 + total[SERVER_TO_RELAYS] / self.W2 + self._uplinks(len(up)).seconds(up)

    def uplinks(self, topology: Topology) -> Uplinks | None:
        """Of the active relays, as a plan needs to know them; None where they are alike and shared."""
        if self.uplink_bps is None and self.uplink == "shared":
            return None
        links = self._uplinks(topology.H)
        return replace(links, bandwidths=tuple(links.bandwidths[i] for i in topology.active))

    def forwarders(self, topology: Topology) -> NDArray[np.int64]:
        """[K] the relay that passes each user's IV on where nothing is coded, see `hmtl.coding.forwarders`."""
        return forwarders(topology, self.uplinks(topology))

    def _uplinks(self, H: int) -> Uplinks:
        bandwidths = (self.W2,) * H if self.uplink_bps is None else tuple(self.uplink_bps)
        if len(bandwidths) != H:
            raise ConfigError(
                f"network.uplink_bps has {len(bandwidths)} entries for H={H} relays: name one bandwidth for each relay."
            )
        return Uplinks(bandwidths, self.uplink == "parallel", self.W2)


def between_seconds(network: Network, load: Loads, V_bits: float) -> float:
    """How long V_bits for each IV of a load take between relays and server."""
    up = V_bits * np.array(load.by_relay)
    down = V_bits * load.down(network.medium)
    return network.seconds({**dict.fromkeys(TIERS, 0.0), RELAYS_TO_SERVER: up, SERVER_TO_RELAYS: down})


def check_medium(medium: str, name: str = "medium") -> None:
    if medium not in MEDIA:
        raise ConfigError(f"network.{name}={medium} is unknown: choose one of {', '.join(MEDIA)}.")


def tier_loads(
    topology: Topology,
    scheme: str,
    medium: str = "broadcast",
    load: Loads | None = None,
    aggregators: Aggregators = "all",
) -> dict[str, NDArray[np.float64]]:
    """Loads of all four tiers in IVs, as the formulas have them: from relays to server by relay [H], else in all.

    Under `unicast` each aggregator is sent a copy of its own of what it needs; an uncoded model goes to one relay.

    Args:
        load: where it is known already, or other than `loads(topology, scheme)`, as that of a plan can be.
        aggregators: who learns all IVs, see `hmtl.coding.loads`.
    """
    load = load or loads(topology, scheme, aggregators=aggregators, medium=medium)
    users = len(topology.present)
    by_tier = (users, load.by_relay, load.down(medium), users)
    return {tier: np.asarray(value, dtype=np.float64) for tier, value in zip(TIERS, by_tier, strict=True)}
