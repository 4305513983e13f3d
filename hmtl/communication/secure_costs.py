"""What secure sums add to the bits of a round in which everybody is present, by formula; see `nodes.secure`.

The formula is exact, but for sealed shares that pass the server, since no relay hears both users: unless all users are
neighbours, how many pairs these are is drawn in every round, and the formula gives their mean.

K users, each with k neighbours; H relays.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    TIERS,
    USERS_TO_RELAYS,
)
from hmtl.communication.messages import KEYS, SHARED, SHARES, UNMASK
from hmtl.communication.nodes.secure import ENTRY, NUMBER
from hmtl.communication.secure import protocol
from hmtl.communication.secure.crypto import DIGEST
from hmtl.communication.secure.neighbors import Secure
from hmtl.topology import Topology

AddedBits = dict[str, dict[str, NDArray[np.int64]]]
"""Bits of each kind of message and tier, by link of the ledger; from relays to users without broadcasts [K]."""


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


def secure_costs(t: Topology, secure: Secure, medium: str = "broadcast") -> SecureCosts:
    """Return what secure sums add to a round on a network, over a medium from the server to relays.

    Raises:
        ConfigError: there are too few users, or too many may collude.
    """
    secure.check(t.K)
    chosen = secure.degree(t.K, t.K)
    assert chosen is not None
    bits = {
        kind: {tier: int(each.sum()) for tier, each in by_tier.items()}
        for kind, by_tier in added_bits(t, chosen.neighbors, medium).items()
    }
    colluders, fewest = secure.colluders(t.K, t.K), secure.fewest(t.K, t.K)
    return SecureCosts(chosen.neighbors, chosen.threshold, colluders, fewest, bits)


def added_bits(t: Topology, k: int, medium: str = "broadcast") -> AddedBits:
    """Return the bits that secure sums add to a round over a medium from the server to relays."""
    K, each = t.K, np.ones(t.K, np.int64)
    hearing, serving = t.G.sum(axis=1, dtype=np.int64), np.bincount(t.serving, minlength=t.H)
    told = np.append(np.zeros(t.H, np.int64), 1) if medium == "broadcast" else np.append(np.ones(t.H, np.int64), 0)
    passed = np.rint(k / max(K - 1, 1) * np.bincount(t.serving, _unheard(t), t.H)).astype(np.int64)
    sealed, links = 1 + protocol.SEALED, int(hearing.sum())
    rows = {  # bytes on each link of a tier, from the users up and down to them again
        KEYS: (
            protocol.KEYS * each,
            protocol.KEYS * hearing,
            (3 * NUMBER + K * ENTRY + _bits(links)) * told,
            NUMBER + k * ENTRY + DIGEST * (t.degrees - 1),
        ),
        SHARED: (_bits(k) * each, _bits(k * serving), _bits(K) * told, _bits(k) * t.degrees),
        SHARES: (k * protocol.SEALED * each, sealed * passed, sealed * np.append(passed, 0), k * sealed * each),
        UNMASK: (
            k * protocol.SHARE * each,
            _bits(k * serving) + protocol.SHARE * K * (serving > 0),
            (_bits(K) + _bits(K * k)) * told,
            (NUMBER + _bits(k)) * t.degrees,
        ),
    }
    tiers = USERS_TO_RELAYS, RELAYS_TO_SERVER, SERVER_TO_RELAYS, RELAYS_TO_USERS
    return {kind: {tier: 8 * sent for tier, sent in zip(tiers, by_tier, strict=True)} for kind, by_tier in rows.items()}


def _unheard(t: Topology) -> NDArray[np.int64]:
    """Return how many users each user has no relay in common with [K]."""
    types = [list(users) for users in t.types.values()]
    hears = t.G[:, [users[0] for users in types]].T.astype(np.float32)
    many = (hears @ hears.T == 0) @ np.array([len(users) for users in types])
    unheard = np.zeros(t.K, np.int64)
    for users, number in zip(types, many.tolist(), strict=True):
        unheard[users] = number
    return unheard


def _bits(values: Any) -> Any:
    """Return how many bytes hold as many bits."""
    return -(-values // 8)
