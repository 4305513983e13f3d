"""What secure sums add to the bits of a round in which everybody is present, as a dry round counts it.

Unless all users are neighbours, how many sealed shares pass the server, since no relay hears both users, is drawn in
every round. K users, each with k neighbours; H relays.
"""

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from hmtl.communication.accounting.ledger import TIERS, LinkLedger
from hmtl.communication.accounting.network import Network
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.links import InProcess
from hmtl.communication.messages import KEYS, SHARED, SHARES, UNMASK, Message
from hmtl.communication.prediction import dry_round
from hmtl.communication.secure.neighbors import Secure, lone
from hmtl.topology import Topology

AddedBits = dict[str, dict[str, NDArray[np.int64]]]
"""Bits of each kind of message and tier, by link of the ledger."""


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
    secure.check(t.K, t.G)
    alone = tuple(lone(t.G).sum(axis=1).tolist())
    chosen = secure.degree(t.K, t.K, alone)
    assert chosen is not None
    bits = {
        kind: {tier: int(each.sum()) for tier, each in by_tier.items()}
        for kind, by_tier in added_bits(t, secure, medium).items()
    }
    colluders, fewest = secure.colluders(t.K, t.K), secure.fewest(t.K, t.K, alone)
    return SecureCosts(chosen.neighbors, chosen.threshold, colluders, fewest, bits)


@lru_cache(8)
def added_bits(t: Topology, secure: Secure, medium: str = "broadcast") -> AddedBits:
    """Return the bits that secure sums add to a round over a medium from the server to relays, in a dry round."""
    none = LinkLedger(t.K, t.H)
    bits = {kind: {tier: none.per_link(tier)[:, 0] for tier in TIERS} for kind in (KEYS, SHARED, SHARES, UNMASK)}
    recipe = SumsOfRows(sums="whole", secure=secure)
    dry_round(recipe, t, Network(medium=medium), 1, partial(_Counting, bits=bits))
    return bits


class _Counting(InProcess):
    """Links that add the bits of some kinds of messages to `bits`."""

    def __init__(self, ledger: LinkLedger, bits: AddedBits) -> None:
        super().__init__(ledger)
        self.bits = bits

    def post(self, message: Message) -> None:
        before = self.ledger.per_link(message.tier)
        super().post(message)
        if message.kind in self.bits:
            self.bits[message.kind][message.tier] += (self.ledger.per_link(message.tier) - before).sum(axis=1)
