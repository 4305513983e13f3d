"""Codes and bounds for relays that need the IVs of only some users.

Users that the same relays demand are coded together, as in a network with these relays as aggregators. Users that
different relays demand are coded together, too, if that is cheaper (see `groups`). Users that are heard by all relays
that demand them need no code.

Shapes: K users, H relays; needs, bool [K, K], row k: the users whose IVs user k's model depends on; demands, bool
[H, K], row i: the users whose IVs relay i needs, heard or not; serving, int64 [K], the relay that computes each user's
model.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from hmtl.coding.codes import CodeSettings, code_of
from hmtl.coding.formulas import Loads
from hmtl.coding.groups import Costs, Group, Involved, demanded, merged
from hmtl.coding.plan import Block, DemandPlan
from hmtl.coding.rates import TOLERANCE, Demand, Uplinks, over_sets
from hmtl.topology import Topology

MOST_TABULATED = 20  # relays up to which all sets are used as cuts
SWEEPS = 10  # of the local search over all users

Table = NDArray[np.bool_]


def serve(t: Topology, needs: Table) -> NDArray[np.int64]:
    """Choose the relay that computes each user's model, such that relays demand few IVs.

    This is a local search, which may miss the best choice: each user starts at the relay that hears most of the users
    that it needs, and moves to another relay if this one then demands fewer additional IVs. Absent users have -1.
    """
    hears = t.G.astype(bool)
    misses = needs.astype(np.float32) @ (~hears).T.astype(np.float32)  # [K, H]
    misses[~hears.T] = np.inf
    least, present = misses.min(axis=1), np.array(t.present, dtype=np.int64)
    ties = t.serving  # among equally good relays, the one that balances the number of users
    serving = np.where(misses[np.arange(t.K), ties] == least, ties, misses.argmin(axis=1))
    serving[t.degrees == 0] = -1
    demanding = np.zeros((t.H, t.K), dtype=np.int64)  # number of the relay's users that need each user
    np.add.at(demanding, serving[present], needs[present])
    for _ in range(SWEEPS):
        moved = False
        for k in present[least[present] > 0].tolist():
            demanding[serving[k]] -= needs[k]
            more = (needs[k] & ~hears & (demanding == 0)).sum(axis=1)
            at = int(np.where(hears[:, k], more, t.K + 1).argmin())
            if more[at] < more[serving[k]]:
                serving[k], moved = at, True
            demanding[serving[k]] += needs[k]
        if not moved:
            break
    return serving


def demands_of(needs: Table, serving: NDArray[np.int64], H: int) -> Table:
    """Return the IVs that the models of each relay's users depend on."""
    demands = np.zeros((H, len(serving)), dtype=bool)
    present = serving >= 0
    np.logical_or.at(demands, serving[present], needs[present])
    return demands


def demand_plan(
    t: Topology,
    demands: Table,
    seed: int = 0,
    *,
    max_pieces: int = 8,
    generation: int = 200,
    uplinks: Uplinks | None = None,
    medium: str = "broadcast",
) -> DemandPlan:
    """Return a plan with which relays learn the IVs that they demand.

    The plan never costs more than that of `make_plan` with the same settings, in which all relays learn all IVs.

    Args:
        t: the topology.
        demands: of active relays for present users.
        seed, max_pieces, generation, uplinks: see `make_plan`; each group of users is coded like scheme `optimal`.
        medium: `broadcast` or `unicast`, for which the plan is cheap; it serves both.

    Raises:
        CodingError: `max_pieces` or `generation` is below 1, or no code was found.
    """
    settings, costs = CodeSettings(seed, max_pieces, generation, uplinks), Costs(t, uplinks, medium)
    apart = demanded(t, demands)
    demanding = tuple(np.flatnonzero(demands.any(axis=1)).tolist())

    def plan_of(groups: Iterable[Group]) -> DemandPlan:
        blocks = tuple(block for group in groups for block in _code(t, group, settings))
        return DemandPlan(t, "optimal", seed, demanding, uplinks, blocks)

    plan = plan_of(merged(apart, costs))
    if apart:
        missed = np.flatnonzero((t.degrees > 0) & ~t.G[list(t.active)].all(axis=0))
        for group in (Group.union(apart), Group(missed, np.array(t.active))):
            if costs.bound(group) < costs.of_plan(plan) * (1 - TOLERANCE):
                plan = min(plan, plan_of([group]), key=costs.of_plan)  # whole pieces can cost more than the bound
    return plan


def demand_bounds(t: Topology, demands: Table) -> Loads:
    """Return lower bounds of the loads of any scheme that delivers these IVs to these relays.

    Models may need less than the IVs, such as sums of them, and the bounds may not be tight: chains of relays that
    decode in turn can give larger ones (docs/theory/demands.md). These come from cuts through the network. Let f(S) be
    the number of users that only the set S of relays hears and another relay demands. The messages of S carry their
    IVs, so Σ_{i∈S} R_i ≥ f(S); a linear programme gives the smallest Σ_i R_i. The server's broadcast carries them, too,
    so the downlink is at least f(S). With `unicast`, each relay gets what it misses. With more than 20 relays, only the
    sets of one relay and of all but one are used.
    """
    from scipy.optimize import linprog  # here, because most networks do not need it

    missing = demands & (t.G == 0)
    users = np.flatnonzero(missing.any(axis=0))
    if not len(users):
        return Loads(0.0, 0.0)
    G, D, members = t.G[:, users], demands[:, users], np.arange(t.H)
    sets = np.concatenate([np.eye(t.H, dtype=bool), ~np.eye(t.H, dtype=bool)])
    if tabulated := t.H <= MOST_TABULATED:
        f = Demand(G).within - Demand(G | D).within  # of each set [2^H]
        cuts = f[sets @ (1 << members)]
    else:
        outside = (~sets).astype(np.float32)
        f = cuts = ((outside @ G.astype(np.float32) == 0) & (outside @ D.astype(np.float32) > 0)).sum(axis=1)
    while True:
        rates = linprog(np.ones(t.H), A_ub=-sets.astype(float), b_ub=-cuts).x
        lack = over_sets(rates, np.add, 0.0) - f if tabulated else np.zeros(1)
        worst = int(lack.argmin())
        if lack[worst] > -1e-6:
            return Loads(float(rates.sum()), float(f.max()), unicast=float(missing.sum()))
        sets, cuts = np.concatenate([sets, [worst >> members & 1 == 1]]), np.append(cuts, f[worst])


def _code(t: Topology, group: Group, settings: CodeSettings) -> Iterator[Block]:
    """Yield the code of a group, among the relays involved."""
    involved = Involved.of(t, group, settings.uplinks)
    places, active = involved.places.tolist(), len(t.active)
    settings = replace(settings, uplinks=involved.uplinks)
    for block in code_of(group.users, involved.hears, involved.learning, settings):
        heard: list[tuple[int, ...]] = [()] * active
        uplink = [torch.zeros(0, 0, dtype=torch.uint8)] * active
        for n, known, rows in zip(places, block.heard, block.uplink, strict=True):
            heard[n], uplink[n] = known, rows
        aggregators = tuple(places[n] for n in block.aggregators)
        yield replace(block, heard=tuple(heard), uplink=tuple(uplink), aggregators=aggregators)
