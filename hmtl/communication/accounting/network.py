"""Transmission times: the paper's model, extended by unicast and by unequal uplinks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from hmtl.coding import MEDIA, Uplinks
from hmtl.communication.accounting.access import Access, LinkFile, access_of, read_links
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
MIN_BPS = 1e-6  # bit/s; with less, times would not be finite


@dataclass(frozen=True)
class Network:
    """Bandwidths [bit/s] of the two hops, and the media of downlinks and uplinks.

    Args:
        W1: between users and relays.
        W2: between relays and server.
        medium: `broadcast`: one transmission of the server reaches all relays (radio, satellite, IP multicast);
            `unicast`: the server sends a copy to each relay (TCP).
        uplink_bps: bandwidth of each relay to the server [H]; None: W2 for all relays.
        uplink: `shared`: relays send one after the other; `parallel`: all at once, and the slowest one counts.
        last_hop: `broadcast` or `unicast` from a relay to its users, for sums, whose row is the same for all users.
        links: file with the access link of each node (see `hmtl.communication.accounting.access`), from which the
            seconds of a round then follow; it replaces W1, W2, uplink_bps and uplink.

    Raises:
        ConfigError: a bandwidth is below `MIN_BPS`, a medium or an uplink is unknown, or the file holds no links.
    """

    W1: float = 100e6
    W2: float = 100e6
    medium: str = "broadcast"
    uplink_bps: Sequence[float] | None = None
    uplink: str = "shared"
    last_hop: str = "broadcast"
    links: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("medium", MEDIA), ("uplink", UPLINKS), ("last_hop", MEDIA)):
            if (kind := getattr(self, name)) not in known:
                raise ConfigError(f"network.{name}={kind} is unknown. Choose one of {', '.join(known)}.")
        if self.uplink_bps is not None:
            object.__setattr__(self, "uplink_bps", tuple(self.uplink_bps))  # makes any sequence hashable
        given = {f"uplink_bps[{i}]": bandwidth for i, bandwidth in enumerate(self.uplink_bps or ())}
        for name, bandwidth in {"W1": self.W1, "W2": self.W2, **given}.items():
            if not bandwidth >= MIN_BPS:
                raise ConfigError(
                    f"network.{name}={bandwidth} is below {MIN_BPS:g}. Set a bandwidth in bit/s, such as 1e8."
                )
        _ = self._file  # raises if it is not a file of links

    @cached_property
    def _file(self) -> LinkFile | None:
        return None if self.links is None else read_links(self.links)

    @property
    def rates(self) -> str:
        """The rates of the links, in words."""
        if self.links:
            return f"the rates of {self.links}"
        inner = [bps / 1e6 for bps in (self.W2, *(self.uplink_bps or ()))]
        behind, first = f"{min(inner):g}" + f" to {max(inner):g}" * (min(inner) < max(inner)), f"{self.W1 / 1e6:g}"
        return f"{first} Mbit/s" if behind == first else f"{first} Mbit/s to users and {behind} Mbit/s to the server"

    def access(self, topology: Topology) -> Access | None:
        """Return each node's own link, as the network's file has them; None if the network names no file."""
        return access_of(self._file, topology, str(self.links)) if self._file else None

    def seconds(self, bits: Mapping[str, ArrayLike]) -> float:
        """Return T_comm [s]: the bits of each tier divided by its bandwidth, summed over tiers.

        Args:
            bits: bits of each tier, in total or by link. Those from relays to server must be by relay [H], unless
                uplinks are equal and shared.

        Raises:
            ConfigError: `uplink_bps` does not name one bandwidth for each relay.

        Ref: Hu et al. 2022, eq. (13).
        """
        total = {tier: float(np.sum(bits[tier])) for tier in TIERS}
        users = total[USERS_TO_RELAYS] + total[RELAYS_TO_USERS]
        up = np.atleast_1d(np.asarray(bits[RELAYS_TO_SERVER], dtype=np.float64))
        return users / self.W1 + total[SERVER_TO_RELAYS] / self.W2 + self._uplinks(len(up)).seconds(up)

    def uplinks(self, topology: Topology) -> Uplinks | None:
        """Return the uplinks of the active relays for a plan; None if they are equal and shared.

        With a file of links, they work in parallel, unless the server's own link is the narrower one.
        """
        if access := self.access(topology):
            up = np.array([access.links[1 + i, 0] for i in topology.active])
            (server_up, server_down), least = access.links[0, :2].tolist(), float(up.min(initial=np.inf))
            if server_down <= least:
                return None
            return Uplinks(tuple(up.clip(max=server_down).tolist()), bool(up.sum() <= 2 * server_down), server_up)
        if self.uplink_bps is None and self.uplink == "shared":
            return None
        links = self._uplinks(topology.H)
        return replace(links, bandwidths=tuple(links.bandwidths[i] for i in topology.active))

    def _uplinks(self, H: int) -> Uplinks:
        bandwidths = (self.W2,) * H if self.uplink_bps is None else tuple(self.uplink_bps)
        if len(bandwidths) != H:
            raise ConfigError(
                f"network.uplink_bps has {len(bandwidths)} entries for H={H} relays. Name one bandwidth for each relay."
            )
        return Uplinks(bandwidths, self.uplink == "parallel", self.W2)
