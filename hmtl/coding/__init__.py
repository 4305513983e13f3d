"""What to send.

In: a `Topology`, a scheme, a seed. Out: the loads of the scheme, bounds on those of any, and a `Plan`: the GF(2^8)
matrices with which relays and server combine messages and relays decode. `gf256.matmul` applies them to bytes.
"""

from hmtl.coding.bounds import Loads, bounds, forwarders, loads
from hmtl.coding.optimal import Demand, Uplinks
from hmtl.coding.plan import CODED_SCHEMES, Block, Plan, make_plan

__all__ = [
    "CODED_SCHEMES",
    "Block",
    "Demand",
    "Loads",
    "Plan",
    "Uplinks",
    "bounds",
    "forwarders",
    "loads",
    "make_plan",
]
