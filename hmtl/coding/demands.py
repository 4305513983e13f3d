"""Codes and bounds for relays that need the IVs of some users only.

Users that the same relays demand are coded together, as a network with these relays as aggregators. Users that are
heard by all relays that demand them need no code.

Shapes: K users, H relays; needs, bool [K, K], row k: the users whose IVs user k's model depends on; demands, bool
[H, K], row i: the users whose IVs relay i needs, heard or not; serving, int64 [K], the relay that computes each user's
model.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from hmtl.coding.block import Block
from hmtl.coding.codes import CodeSettings, code_of
from hmtl.coding.formulas import Loads
from hmtl.coding.omniscience import Demand, Uplinks
from hmtl.coding.plan import Plan
from hmtl.coding.rates import over_sets, users_within
from hmtl.topology import Topology

MOST_TABULATED = 20  # relays up to which all sets are used as cuts
SWEEPS = 10  # of the local search over all users

Table = NDArray[np.bool_]


class DemandPlan(Plan):
    """A plan with which each relay learns the IVs that it demands; no model passes the server."""

    @cached_property
    def loads(self) -> Loads:
        """The loads of the plan in IVs, without padding."""
        return Loads.of(self.topology, self.sent, *self.received)


def serve(t: Topology, needs: Table) -> NDArray[np.int64]:
    """Choose the relay that computes each user's model, such that relays demand few IVs.

    A local search, which may miss the best choice: a user starts at the relay that hears most of the users that it
    needs, and moves if another relay then demands fewer IVs for all its users. Absent users have -1.
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
) -> DemandPlan:
    """Return a plan with which relays learn the IVs that they demand.

    Args:
        t: the topology.
        demands: of active relays for present users.
        seed, max_pieces, generation, uplinks: see `make_plan`; each group of users is coded like scheme `optimal`.

    Raises:
        CodingError: `max_pieces` or `generation` is below 1, or no code was found.
    """
    settings = CodeSettings(seed, max_pieces, generation, uplinks)
    blocks = tuple(
        block for D, users in _groups(t, demands).items() for block in _code(t, np.array(D), users, settings)
    )
    some = tuple(np.flatnonzero(demands.any(axis=1)).tolist())
    return DemandPlan(t, "optimal", seed, some, uplinks, blocks)


def demand_bounds(t: Topology, demands: Table) -> Loads:
    """Return lower bounds of the loads of any scheme with these demands.

    They come from cuts through the network. Let f(S) be the number of users that only the set S of relays hears and
    another relay demands. The messages of S carry their IVs, so Σ_{i∈S} R_i ≥ f(S); a linear programme gives the
    smallest Σ_i R_i. The server's broadcast carries them, too, so the downlink is at least f(S). With `unicast`, each
    relay gets what it misses. With more than 20 relays, only the sets of one relay and of all but one are used.
    """
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


def _groups(t: Topology, demands: Table) -> dict[tuple[int, ...], NDArray[np.int64]]:
    """Return the users that need a code, by the set of relays that demand them."""
    users = np.flatnonzero((demands & (t.G == 0)).any(axis=0))
    kinds, of = np.unique(demands[:, users].T, axis=0, return_inverse=True)
    return {tuple(np.flatnonzero(kind).tolist()): users[of.ravel() == n] for n, kind in enumerate(kinds)}


def _code(
    t: Topology,
    D: NDArray[np.int64],
    users: NDArray[np.int64],
    settings: CodeSettings,
) -> Iterator[Block]:
    """Yield the code of users that relays D demand, among the relays involved."""
    active = np.array(t.active)
    G = t.G[active][:, users]
    some = np.flatnonzero(G.any(axis=1) | np.isin(active, D))  # positions of the relays that take part
    if uplinks := settings.uplinks:
        bandwidths = tuple(uplinks.bandwidths[n] for n in some.tolist())
        settings = replace(settings, uplinks=replace(uplinks, bandwidths=bandwidths))
    places = np.flatnonzero(np.isin(active[some], D)).tolist()
    for block in code_of(users, G[some], places, settings):
        heard: list[tuple[int, ...]] = [()] * len(active)
        uplink = [torch.zeros(0, 0, dtype=torch.uint8)] * len(active)
        for n, known, rows in zip(some.tolist(), block.heard, block.uplink, strict=True):
            heard[n], uplink[n] = known, rows
        aggregators = tuple(some[list(block.aggregators)].tolist())
        yield replace(block, heard=tuple(heard), uplink=tuple(uplink), aggregators=aggregators)


def _least_over_all(f: NDArray[np.int64], H: int) -> float:
    """Return the smallest Σ_i R_i with Σ_{i∈S} R_i ≥ f(S) for all sets S."""
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
    """Return the smallest rates R with Σ_{i∈S} R_i ≥ f(S) for the given sets."""
    from scipy.optimize import linprog  # here, because most networks do not need it

    return np.asarray(linprog(np.ones(sets.shape[1]), A_ub=-sets.astype(float), b_ub=-f).x)
