"""Communication: rounds between users, relays and server, and what they cost.

A communicator takes the two sides of a learner, its users and its aggregator, and plays rounds between nodes that know
only what was sent to them. It counts the bits of every link and computes transmission times. It depends on topologies
and codes but on no particular learner: it asks the two sides for intermediate values (IVs, the users' updates), models,
and what rows mean.
"""

from hmtl.communication.accounting.ledger import SETUP, TIERS, Bits, LinkLedger
from hmtl.communication.accounting.network import Network
from hmtl.communication.communicators.base import Communicator
from hmtl.communication.communicators.named import CodedHierarchical, Sums, Uncoded
from hmtl.communication.flows.ivs import IVs
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.links import InProcess, Links

__all__ = [
    "SETUP",
    "TIERS",
    "Bits",
    "CodedHierarchical",
    "Communicator",
    "IVs",
    "InProcess",
    "LinkLedger",
    "Links",
    "Network",
    "Sums",
    "SumsOfRows",
    "Uncoded",
]
