"""Plans for relays that need some IVs are decoded by their matrices; bounds are compared with all cuts."""

from itertools import product

import numpy as np
import pytest
from coding_oracles import execute
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial import cKDTree

from hmtl.coding import Uplinks, demand_bounds, demand_plan, demands, demands_of, loads, serve
from hmtl.errors import CodingError
from hmtl.testing.topologies import restricted, topologies
from hmtl.topology import Topology, geometric, symmetric

networks = topologies(max_H=5, max_K=25) | restricted(topologies(max_H=5, max_K=25))


def some_demands(t: Topology, seed: int, share: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wanted = rng.random((t.H, t.K)) < share
    return wanted & (t.degrees > 0) & t.G.any(axis=1)[:, None]


def some_needs(K: int, seed: int, share: float) -> np.ndarray:
    near = np.random.default_rng(seed).random((K, K)) < share
    return near | near.T | np.eye(K, dtype=bool)


@settings(max_examples=30)
@given(
    t=networks,
    seed=st.integers(0, 10**6),
    share=st.sampled_from((0.0, 0.1, 0.4, 1.0)),
    uplinks=st.sampled_from((None, False, True)),
    generation=st.sampled_from((3, 200)),
)
def test_all_demands_are_met(t: Topology, seed: int, share: float, uplinks: bool | None, generation: int) -> None:
    """Relays send only what they hear, and each relay that demands an IV decodes it."""
    wanted = some_demands(t, seed, share)
    links = None if uplinks is None else Uplinks(tuple(1.0 + np.arange(len(t.active))), uplinks)
    plan = demand_plan(t, wanted, seed, max_pieces=3, generation=generation, uplinks=links)
    up, down, copies, knows = execute(plan)
    assert knows[wanted].all()
    for block in plan.blocks:
        asking = [t.active[n] for n in block.aggregators]
        assert all(np.flatnonzero(wanted[:, k]).tolist() == asking for k in block.users)
    assert plan.loads.uplink == pytest.approx(up.sum())
    assert plan.loads.downlink == pytest.approx(down)
    assert plan.loads.unicast == copies == (wanted & (t.G == 0)).sum()
    bound = demand_bounds(t, wanted)
    assert bound.uplink <= up.sum() + 1e-6
    assert bound.downlink <= down + 1e-9
    assert bound.unicast == copies


@settings(max_examples=30)
@given(t=networks, seed=st.integers(0, 10**6), share=st.sampled_from((0.1, 0.4, 1.0)))
def test_bounds_are_those_of_all_cuts(t: Topology, seed: int, share: float) -> None:
    wanted, bound = some_demands(t, seed, share), None
    hearing = [set(t.relays_of(k)) for k in range(t.K)]
    asking = [set(np.flatnonzero(wanted[:, k]).tolist()) for k in range(t.K)]
    sets = [{i for i, inside in enumerate(bits) if inside} for bits in product((0, 1), repeat=t.H)]
    f = [sum(bool(N) and N <= S and not D <= S for N, D in zip(hearing, asking, strict=True)) for S in sets]
    least = linprog([1] * t.H, [[-float(i in S) for i in range(t.H)] for S in sets], [-n for n in f]).fun
    bound = demand_bounds(t, wanted)
    assert bound.uplink == pytest.approx(least, abs=1e-6)
    assert bound.downlink == max(f)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demands, "MOST_TABULATED", 0)
        fewer = demand_bounds(t, wanted)
        assert fewer.uplink <= bound.uplink + 1e-6
        assert fewer.downlink <= bound.downlink
        assert fewer.downlink >= max(0, *(wanted & (t.G == 0)).sum(axis=1))


@settings(max_examples=25)
@given(t=networks, seed=st.integers(0, 10**6), share=st.sampled_from((0.0, 0.05, 0.3)))
def test_who_serves_hears(t: Topology, seed: int, share: float) -> None:
    """Relays demand no more than if each user were served by the relay that hears most of its needs."""
    needs = some_needs(t.K, seed, share) & (t.degrees > 0)
    serving = serve(t, needs)
    assert all(t.G[i, k] if t.degrees[k] else i == -1 for k, i in enumerate(serving.tolist()))
    asked = demands_of(needs, serving, t.H)
    for i in range(t.H):
        assert np.flatnonzero(asked[i]).tolist() == sorted(
            {k for n in np.flatnonzero(serving == i) for k in np.flatnonzero(needs[n])}
        )
    best = (needs.astype(int) @ (t.G == 0).T + t.K * (t.G == 0).T).min(axis=1)[list(t.present)].sum()
    assert (asked & (t.G == 0)).sum() <= best


def test_all_demand_all() -> None:
    """The plan is that of scheme `optimal` if every relay aggregates."""
    t = symmetric(K=20, H=5, r=3)
    plan = demand_plan(t, np.ones((5, 20), dtype=bool))
    assert plan.loads == loads(t)
    assert [len(block.users) for block in plan.blocks] == [10, 10]  # uniform: one user of each type in each


def test_a_graph_by_distance_needs_little() -> None:
    """K=1000 users in the square, each with its 3 nearest: 15 and 8 IVs, where all of them take 873 and 873."""
    t = geometric(K=1000, H=10, radius=0.3, seed=0)
    users = t.layout[0]
    near = np.zeros((1000, 1000), dtype=bool)
    near[np.arange(1000)[:, None], cKDTree(users).query(users, 4)[1]] = True
    asked = demands_of(near | near.T, serve(t, near | near.T), t.H)
    plan, bound = demand_plan(t, asked), demand_bounds(t, asked)
    assert (loads(t).uplink, loads(t).downlink) == (873, 873)
    assert (plan.loads.uplink, plan.loads.downlink, plan.loads.unicast) == (15, 8, 15)
    assert (bound.uplink, bound.downlink) == pytest.approx((15, 8))


@pytest.mark.parametrize("setting", ["max_pieces", "generation"])
def test_settings_are_positive(setting: str) -> None:
    with pytest.raises(CodingError, match=f"{setting}=0"):
        demand_plan(symmetric(K=10, H=5, r=3), np.ones((5, 10), dtype=bool), **{setting: 0})
