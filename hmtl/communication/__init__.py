"""Sending it, counting it.

In: one round's IVs [K, m] and the global update. Out: the models [K, m] as the users received them, bits by link, and
seconds. Knows topologies and codes; of learning, only the function that it is handed.
"""

from hmtl.communication.coded import CodedHierarchical
from hmtl.communication.communicator import Communicator, Uncoded
from hmtl.communication.ledger import TIERS, Bits, LinkLedger
from hmtl.communication.network import Network, tier_loads

__all__ = ["TIERS", "Bits", "CodedHierarchical", "Communicator", "LinkLedger", "Network", "Uncoded", "tier_loads"]
