"""The choice of who learns the sums: the server, or relays that together hear everybody, whichever takes less time.

Let relays A learn the sums. Each of them adds the terms of users whom all of A hear. The terms of the other users, who
are *apart*, are added by any relays and the server, which sends A one row. Each relay of A sends its users a row. If
the server learns the sums, relays send it shares of the sum of all terms, and users get shares of its row.

A minimal set A suffices: a larger one has no fewer users apart, and sends no fewer rows to users. The *cost* is the
time of the uplink, the downlink and the last hop, in rows at the speed of the server's downlink.

Shapes: H active relays; T types, which are distinct sets of relays that hear a user; hears [T, H].
"""

from dataclasses import dataclass
from math import ceil, inf
from typing import Any

import numpy as np

from hmtl.coding.aggregators import Choice
from hmtl.coding.covers import cover
from hmtl.coding.rates import Uplinks, demand_of
from hmtl.coding.sum_codes import MOST_PIECES, apart, sum_codes
from hmtl.topology import Topology

MOST_NODES = 1000  # of the integer programme's search tree
MOST_WORK = 10**6  # nodes times constraints
MOST_ROWS = 5000  # of constraints; if there are more, the smallest set that hears everybody is tried


@dataclass(frozen=True)
class Hops:
    """The hops of a row of sums.

    Attributes:
        uplinks: of the active relays.
        downlink, last: bandwidths from server to relays, and from relays to users, in the unit of the uplinks.
        medium, last_hop: `broadcast`, or `unicast` with a copy for each relay, and for each user.
    """

    uplinks: Uplinks
    downlink: float
    last: float
    medium: str = "broadcast"
    last_hop: str = "broadcast"


def best_sum_aggregators(t: Topology, hops: Hops, most_pieces: int = MOST_PIECES) -> Choice:
    """Return the relays that learn the sums at the least cost; none: the server does, at no higher cost.

    An integer programme finds the relays. If the choice is `proven`, no other relays, nor the server, take less time by
    the schemes of this module, in shares of any size. Schemes of other kinds can (docs/theory/sums.md).

    Args:
        t: the topology.
        hops: bandwidths and media.
        most_pieces: see `sum_code`; 1: relays send whole rows.
    """
    if not t.active:
        return Choice((), 0.0, 0.0)
    server, bound = _cost(t, hops, most_pieces, ())
    least = _least(t, hops)
    if least >= server:
        return Choice((), server, min(server, bound))
    A, relays_least = _relays(t, hops, most_pieces == 1)
    cost, relays_bound = _cost(t, hops, most_pieces, A)
    bound = min(bound, max(least, relays_least), relays_bound)
    return Choice(A, cost, bound) if cost < server * (1 - 1e-9) else Choice((), server, min(server, bound))


def _cost(t: Topology, hops: Hops, most_pieces: int, A: tuple[int, ...]) -> tuple[float, float]:
    """Return the cost if the relays A, or the server, learn the sums, and a lower bound for shares of any size."""
    up, spread = sum_codes(t, A, hops.uplinks, most_pieces)
    sent = apart(t, A)
    slowest = min(hops.uplinks.among(t, sent).bandwidths, default=inf)
    costs = []
    for rows_up, rows_down in ((up.cost, spread.cost), (up.bound, spread.bound)):
        down = 1.0 if hops.medium == "broadcast" else len(A) or rows_down
        last = rows_down if hops.last_hop == "broadcast" else len(t.present)
        costs.append(hops.downlink * (rows_up / slowest + last / hops.last) + down * bool(sent.active))
    return costs[0], costs[1]


def _least(t: Topology, hops: Hops) -> float:
    """Return a lower bound of the cost if relays A learn the sums; infinite if the server then costs no more.

    If A is in no N(k), all users are apart, as for the server. Otherwise, any relay of A could send one row more, and
    the server would learn the sums.
    """
    hears, code, sets = demand_of(t).hears, sum_codes(t, (), hops.uplinks)[0], cover(t, None)
    common = hears.astype(np.float32) @ hears.T.astype(np.float32)
    if not common.min(axis=1).any():  # A hears everybody, so N(k) would, too
        return inf
    relays = ceil(sets.bound - 1e-6)
    up, lacking = max(0.0, code.bound - 1) / min(hops.uplinks.bandwidths), not hears.all(axis=0).any()
    last = relays if hops.last_hop == "broadcast" else len(t.present)
    return hops.downlink * (up + last / hops.last) + lacking * (1 if hops.medium == "broadcast" else relays)


def _relays(t: Topology, hops: Hops, whole: bool) -> tuple[tuple[int, ...], float]:
    """Return the relays that learn the sums at the least cost, and a bound for others; infinite if they are the best.

    The variables of the integer programme are: whether each relay learns the sums [H], how many rows it sends [H],
    whether the users of each type are apart [T], the rows of a broadcast, and the time of parallel uplinks.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # here, because most learners need no sums
    from scipy.sparse import block_array, csr_array, eye_array

    hears = demand_of(t).hears
    fewer = hears.astype(np.float32) @ ~hears.T == 0  # [T, T] whether the relays of a type are among those of another
    hears = hears[(fewer <= fewer.T).all(axis=0)]  # what holds for a type holds for the types that more relays hear
    T, H = hears.shape
    types, relays = np.nonzero(~hears)
    if len(types) > MOST_ROWS:
        return cover(t, None).relays, 0.0
    n, parallel = len(types), hops.uplinks.parallel
    missing = csr_array((np.ones(n), (np.arange(n), relays)), shape=(n, H))
    of_type = csr_array((np.ones(n), (np.arange(n), types)), shape=(n, T))
    heard, each, one = csr_array(hears.astype(float)), eye_array(T), np.ones((T, 1))
    up = hops.downlink / np.asarray(hops.uplinks.bandwidths)
    last = hops.downlink / hops.last
    copies = (hops.medium == "unicast") * (~hears).any(axis=0)  # to relays that do not hear everybody
    learning = copies + (last if hops.last_hop == "broadcast" else 0)
    tie = 1e-6 * np.linspace(1, 2, H) * min(up.min(), 1, last)  # in favour of few relays
    cost = np.r_[learning + tie, up * (not parallel), np.zeros(T), float(hops.medium == "broadcast"), float(parallel)]
    rest = 0.0 if hops.last_hop == "broadcast" else last * len(t.present)
    constraints = block_array(
        [
            [-missing, None, of_type, None, None],  # a type is apart if a relay that learns the sums does not hear it
            [heard, None, None, None, None],
            [None, heard, -each, None, None],
            [None, None, -each, one, None],
            [None, -eye_array(H) * up, None, None, np.ones((H, 1))],
        ]
    )
    lower = np.r_[np.zeros(n), np.ones(T), np.zeros(2 * T + H)]
    solution: Any = milp(
        cost,
        constraints=LinearConstraint(constraints.tocsr(), lower, inf),
        bounds=Bounds(0, np.r_[np.ones(2 * H + T + 1), inf]),
        integrality=np.r_[np.ones(H), np.full(H, whole), np.zeros(T + 2)],
        options={"node_limit": max(1, min(MOST_NODES, MOST_WORK // len(lower))), "mip_rel_gap": 0.0},
    )
    learns = np.ones(H, bool) if solution.x is None else solution.x[:H] > 0.5  # all relays hear everybody
    A = tuple(t.active[n] for n in np.flatnonzero(learns).tolist())
    return A, inf if solution.status == 0 else float((solution.mip_dual_bound or 0.0) + rest - tie.sum())
