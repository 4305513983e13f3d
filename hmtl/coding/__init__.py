"""What to send.

In: a `Topology`, a scheme, a seed. Out: the loads of the scheme, bounds on those of any, and a `Plan`: the GF(2^8)
matrices with which relays and server combine messages and relays decode. `gf256.matmul` applies them to bytes.

Words are the paper's: a *user* is a client, a *relay* an edge server, an *intermediate value*, IV, the update that a
client sends, and an *iteration* a round. A *load* is what a tier carries in an iteration, in IVs.
"""

from hmtl.coding.aggregators import MEDIA, Choice
from hmtl.coding.block import Block
from hmtl.coding.covers import Cover, cover, sum_bounds, sum_loads
from hmtl.coding.demands import DemandPlan, demand_bounds, demand_plan, demands_of, serve
from hmtl.coding.formulas import Loads, forwarders
from hmtl.coding.optimal import Demand, Uplinks
from hmtl.coding.plan import Plan
from hmtl.coding.schemes import (
    CODED_SCHEMES,
    SCHEMES,
    Aggregators,
    Scheme,
    best_aggregators,
    bounds,
    loads,
    make_plan,
    obstacle,
    resolve,
    scheme_of,
    uplink_bound,
)

__all__ = [
    "CODED_SCHEMES",
    "MEDIA",
    "SCHEMES",
    "Aggregators",
    "Block",
    "Choice",
    "Cover",
    "Demand",
    "DemandPlan",
    "Loads",
    "Plan",
    "Scheme",
    "Uplinks",
    "best_aggregators",
    "bounds",
    "cover",
    "demand_bounds",
    "demand_plan",
    "demands_of",
    "forwarders",
    "loads",
    "make_plan",
    "obstacle",
    "resolve",
    "scheme_of",
    "serve",
    "sum_bounds",
    "sum_loads",
    "uplink_bound",
]
