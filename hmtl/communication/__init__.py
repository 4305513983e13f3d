"""Sending it, counting it.

In: the two sides of a learner, users and aggregator. Out: rounds played between nodes (users, relays, server) that know
only what was sent to them; bits by link, and seconds. Knows topologies and codes; of learning, only how to ask the
sides for IVs (intermediate values: the clients' updates) and models.
"""

from hmtl.communication.accounting.ledger import SETUP, TIERS, Bits, LinkLedger
from hmtl.communication.accounting.network import Network, tier_loads
from hmtl.communication.communicators.base import Communicator
from hmtl.communication.communicators.coded import CodedHierarchical, Uncoded
from hmtl.communication.communicators.partial import CodedPartial
from hmtl.communication.communicators.sums import Sums
from hmtl.communication.links import InProcess, Links
from hmtl.communication.round import Outcome

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
