"""What relays and server send.

From a `Topology`, a scheme and a seed, this package computes the loads of the scheme, lower bounds of all schemes that
deliver the same IVs or sums to the same nodes, and a `Plan`: the matrices over GF(2^8) with which relays and server
combine messages and aggregators decode. `hmtl.gf256.matmul` applies them to bytes.

The names are those of the paper: a *user* is a client, a *relay* an edge server, and an *intermediate value*, IV, the
update that a client sends. A *load* is what a tier carries in a round, in IVs.
"""

from hmtl.coding.aggregators import MEDIA, AggregatorSet, Choice
from hmtl.coding.covers import cover
from hmtl.coding.formulas import Loads, forwarders
from hmtl.coding.plan import Block, Plan, block_of
from hmtl.coding.rates import Demand, Uplinks, demand_of
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
from hmtl.coding.sum_codes import MAX_SUM_PIECES, SumCode, add_terms, sum_bounds, sum_code, sum_codes, sum_loads

__all__ = [
    "CODED_SCHEMES",
    "MAX_SUM_PIECES",
    "MEDIA",
    "SCHEMES",
    "AggregatorSet",
    "Aggregators",
    "Block",
    "Choice",
    "Demand",
    "Loads",
    "Plan",
    "Scheme",
    "SumCode",
    "Uplinks",
    "add_terms",
    "best_aggregators",
    "block_of",
    "bounds",
    "cover",
    "demand_of",
    "forwarders",
    "loads",
    "make_plan",
    "obstacle",
    "resolve",
    "scheme_of",
    "sum_bounds",
    "sum_code",
    "sum_codes",
    "sum_loads",
    "uplink_bound",
]
