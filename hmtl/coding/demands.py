"""Relays that need the IVs of some users only, as a model may hang on few others': who serves whom, code, and bounds.

Users whom the same relays demand are coded together, as a network of their own with these relays as aggregators; users
whom all that demand them hear cost nothing.

Shapes: K users, H relays; needs, bool [K, K], row k: whose IVs user k's model is computed from; demands, bool [H, K],
row i: whose IVs relay i needs, heard or not; serving, int64 [K], the relay that computes each user's model.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from hmtl.coding.block import Block
from hmtl.coding.formulas import Loads
from hmtl.coding.generations import check_sizes
from hmtl.coding.optimal import Demand, Uplinks
from hmtl.coding.plan import Plan, code_of
from hmtl.coding.programme import over_sets, users_within
from hmtl.errors import CodingError
from hmtl.topology import Topology

MOST_TABULATED = 20  # relays, all sets of which are cuts to bound the load by
SWEEPS = 10  # over all users, after which who serves whom stays as it is

Table = NDArray[np.bool_]


class DemandPlan(Plan):
    """A plan after which each relay holds the IVs that it demands; no model passes the server."""

    @cached_property
    def loads(self) -> Loads:
        return Loads.of(self.topology, self.sent, *self.received)


def serve(t: Topology, needs: Table) -> NDArray[np.int64]:
    """The relay that computes each user's model, one that hears the user, such that relays have few IVs to ask for.

    A user starts at the relay that hears the most of what its model needs, and moves while another relay, for all its
    users together, has fewer to ask for then. A local search: another choice may be better. Absent users have -1.
    """
    hears = t.G.astype(bool)
    misses = needs.astype(np.float32) @ (~hears).T.astype(np.float32)  # [K, H]
    misses[~hears.T] = np.inf
    least, present = misses.min(axis=1), np.array(t.present, dtype=np.int64)
    balanced = t.serving  # of as good relays, the one that evens out how many users they serve
    serving = np.where(misses[np.arange(t.K), balanced] == least, balanced, misses.argmin(axis=1))
    serving[t.degrees == 0] = -1
    asked = np.zeros((t.H, t.K), dtype=np.int64)  # by how many of the relay's users
    np.add.at(asked, serving[present], needs[present])
    for _ in range(SWEEPS):
        moved = False
        for k in present[least[present] > 0].tolist():
            asked[serving[k]] -= needs[k]
            more = (needs[k] & ~hears & (asked == 0)).sum(axis=1)
            at = int(np.where(hears[:, k], more, t.K + 1).argmin())
            if more[at] < more[serving[k]]:
                serving[k], moved = at, True
            asked[serving[k]] += needs[k]
        if not moved:
            break
    return serving


def demands_of(needs: Table, serving: NDArray[np.int64], H: int) -> Table:
    """What relays demand: the IVs that the models of the users whom they serve need."""
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
) -> DemandPlan:
    """A plan that brings relays the IVs that they demand; equal arguments give equal plans.

    Args:
        t: the topology.
        demands: of each relay.
        seed, max_pieces, generation, uplinks: see `make_plan`; each group of users is coded as scheme `optimal` is.

    Raises:
        CodingError: demands of another shape, of a user whom nobody hears or of a relay that hears nobody; sizes below
            1; or no code was found.
    """
    check_sizes(max_pieces, generation)
    _check(t, demands)
    blocks = tuple(
        block
        for D, users in _groups(t, demands).items()
        for block in _code(t, np.array(D), users, seed, max_pieces, generation, uplinks)
    )
    some = tuple(np.flatnonzero(demands.any(axis=1)).tolist())
    return DemandPlan(t, "optimal", seed, some, uplinks, blocks)


def demand_bounds(t: Topology, demands: Table) -> Loads:
    """Loads that no scheme with these demands can fall below: cuts through the network.

    For any set S of relays, the others learn of S by what S sends alone, and want the f(S) users whom only S hears and
    one of them demands. So Σ_{i∈S} R_i ≥ f(S), which a linear programme makes the least Σ_i R_i of; and as what the
    server sends to all is all that these others are told, the downlink is at least f(S) for each S. Sent as copies,
    each relay gets what it misses. With more than 20 relays, the sets are those of one relay and of all but one.

    Other demands, as of another choice of who serves whom, have other bounds.
    """
    _check(t, demands)
    missing = demands & (t.G == 0)
    users = np.flatnonzero(missing.any(axis=0))
    if not len(users):
        return Loads(0.0, 0.0)
    G, D = t.G[:, users], demands[:, users]
    if t.H <= MOST_TABULATED:
        f = users_within(Demand(G)) - users_within(Demand(((G == 1) | D).astype(np.uint8)))  # of each set [2^H]
        least, most = _least_over_all(f, t.H), int(f.max())
    else:
        sets = np.concatenate([np.eye(t.H, dtype=bool), ~np.eye(t.H, dtype=bool)])
        inside = (~sets).astype(np.float32) @ G.astype(np.float32) == 0  # N(k) ⊆ S [sets, n]
        wanted = (~sets).astype(np.float32) @ D.astype(np.float32) > 0
        each = (inside & wanted).sum(axis=1)
        least, most = float(_solve(sets, each).sum()), int(each.max())
    return Loads(least, float(most), unicast=float(missing.sum()))


def _check(t: Topology, demands: Table) -> None:
    if demands.shape != t.G.shape or demands.dtype != bool:
        raise CodingError(
            f"demands has shape {demands.shape} and type {demands.dtype}, but says of each relay and user whether the "
            f"relay needs the user's IV. Give {t.G.shape} of bool."
        )
    if len(lost := np.flatnonzero(demands.any(axis=0) & (t.degrees == 0))):
        raise CodingError(f"user {lost[0]} is demanded, but no relay hears it. Demand the IVs of present users.")
    if len(idle := np.setdiff1d(np.flatnonzero(demands.any(axis=1)), t.active)):
        raise CodingError(f"relay {idle[0]} hears nobody, and has demands: it serves nobody. Leave its row empty.")


def _groups(t: Topology, demands: Table) -> dict[tuple[int, ...], NDArray[np.int64]]:
    """The users that have to be coded, by the relays that demand them, in the order of these."""
    users = np.flatnonzero((demands & (t.G == 0)).any(axis=0))
    kinds, of = np.unique(demands[:, users].T, axis=0, return_inverse=True)
    return {tuple(np.flatnonzero(kind).tolist()): users[of.ravel() == n] for n, kind in enumerate(kinds)}


def _code(
    t: Topology,
    D: NDArray[np.int64],
    users: NDArray[np.int64],
    seed: int,
    max_pieces: int,
    generation: int,
    uplinks: Uplinks | None,
) -> Iterator[Block]:
    """The code of a group whom the relays D demand, among the relays that hear some of them or demand them."""
    active = np.array(t.active)
    G = t.G[active][:, users]
    some = np.flatnonzero(G.any(axis=1) | np.isin(active, D))  # places of the relays that take part
    if uplinks:
        uplinks = replace(uplinks, bandwidths=tuple(uplinks.bandwidths[n] for n in some.tolist()))
    places = np.flatnonzero(np.isin(active[some], D)).tolist()
    for block in code_of(users, G[some], places, seed, max_pieces, generation, uplinks):
        heard: list[tuple[int, ...]] = [()] * len(active)
        uplink = [torch.zeros(0, 0, dtype=torch.uint8)] * len(active)
        for n, known, rows in zip(some.tolist(), block.heard, block.uplink, strict=True):
            heard[n], uplink[n] = known, rows
        aggregators = tuple(some[list(block.aggregators)].tolist())
        yield replace(block, heard=tuple(heard), uplink=tuple(uplink), aggregators=aggregators)


def _least_over_all(f: NDArray[np.int64], H: int) -> float:
    """The least Σ_i R_i with Σ_{i∈S} R_i ≥ f(S) for all sets S, which come to the programme as they are violated."""
    members = np.arange(H)
    sets = np.concatenate([np.eye(H, dtype=bool), ~np.eye(H, dtype=bool)])
    while True:
        rates = _solve(sets, f[sets @ (1 << members)])
        lack = over_sets(rates, np.add, 0.0) - f
        worst = int(lack.argmin())
        if lack[worst] > -1e-6:
            return float(rates.sum())
        sets = np.concatenate([sets, [worst >> members & 1 == 1]])


def _solve(sets: Table, f: NDArray[np.int64]) -> NDArray[np.float64]:
    from scipy.optimize import linprog  # here, as most networks do without

    found = linprog(np.ones(sets.shape[1]), A_ub=-sets.astype(float), b_ub=-f)
    return np.asarray(found.x)
