"""Sending it, counting it.

In: the two sides of a learner, users and aggregator. Out: rounds played between nodes (users, relays, server) that know
only what was sent to them; bits by link, and seconds. Knows topologies and codes; of learning, only how to ask the
sides for IVs (intermediate values: the clients' updates) and models.
"""

from hmtl.communication.communicator import Communicator
from hmtl.communication.hierarchical import CodedHierarchical, Uncoded
from hmtl.communication.ledger import SETUP, TIERS, Bits, LinkLedger
from hmtl.communication.links import InProcess, Links
from hmtl.communication.network import Network, tier_loads
from hmtl.communication.partial import CodedPartial
from hmtl.communication.round import Outcome
from hmtl.communication.sums import Sums

__all__ = [
    "SETUP",
    "TIERS",
    "Bits",
    "CodedHierarchical",
    "CodedPartial",
    "Communicator",
    "InProcess",
    "LinkLedger",
    "Links",
    "Network",
    "Outcome",
    "Sums",
    "Uncoded",
    "tier_loads",
]
