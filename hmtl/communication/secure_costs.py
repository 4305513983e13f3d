"""What secure sums add to the bits of a round in which everybody is present, by formula; see `nodes.secure`.

K users, each with k neighbours; H relays.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    TIERS,
    USERS_TO_RELAYS,
)
from hmtl.communication.messages import KEYS, SHARES, UNMASK
from hmtl.communication.nodes.secure import NUMBER
from hmtl.communication.secure import protocol
from hmtl.communication.secure.neighbors import Secure
from hmtl.topology import Topology

Added = dict[str, dict[str, NDArray[np.int64]]]
"""Bits of each kind of message and tier, by user [K], or by relay between relays and server [H]."""


@dataclass(frozen=True)
class SecureCosts:
    """What secure sums add to a round, all of it overhead.

    Attributes:
        neighbors, threshold: k and t, see `Degree`.
        colluding: how many users may collude with relays and server.
        fewest: how few users may be behind a sum.
        bits: bits by kind of message and tier.
    """

    neighbors: int
    threshold: int
    colluding: int
    fewest: int
    bits: dict[str, dict[str, int]]

    @property
    def by_tier(self) -> dict[str, int]:
        """The bits of all kinds by tier."""
        return {tier: sum(bits[tier] for bits in self.bits.values()) for tier in TIERS}


def secure_costs(t: Topology, secure: Secure) -> SecureCosts:
    """Return what secure sums add to a round on a network.

    Raises:
        ConfigError: there are too few users, or too many may collude.
    """
    secure.check(t.K)
    chosen = secure.degree(t.K, t.K)
    assert chosen is not None
    bits = {
        kind: {tier: int(each.sum()) for tier, each in by_tier.items()}
        for kind, by_tier in added_bits(t, chosen.neighbors).items()
    }
    colluders, fewest = secure.colluders(t.K, t.K), secure.fewest(t.K, t.K)
    return SecureCosts(chosen.neighbors, chosen.threshold, colluders, fewest, bits)


def added_bits(t: Topology, k: int) -> Added:
    """Return the bits that secure sums add to a round.

    All relays of a user pass on its keys; what follows passes the one that serves it.
    """
    hearing, serving = t.G.sum(axis=1, dtype=np.int64), np.bincount(t.serving, minlength=t.H)
    each = np.ones(t.K, np.int64)
    rows = {  # bytes that a user sends and receives, and how many rows each relay passes on to the server
        KEYS: (protocol.KEYS, 2 * NUMBER + k * (NUMBER + protocol.KEYS), hearing),
        SHARES: (k * protocol.SEALED, k * (1 + protocol.SEALED), serving),
        UNMASK: (k * protocol.SHARE, NUMBER + k, serving),
    }
    return {
        kind: {
            USERS_TO_RELAYS: 8 * sent * each,
            RELAYS_TO_SERVER: 8 * sent * passed,
            SERVER_TO_RELAYS: 8 * received * serving,
            RELAYS_TO_USERS: 8 * received * each,
        }
        for kind, (sent, received, passed) in rows.items()
    }
