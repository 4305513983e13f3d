"""Plans for relays that need some IVs are decoded by their matrices; bounds are compared with all cuts."""

from itertools import product

import numpy as np
import pytest
from coding_oracles import execute
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial import cKDTree

from hmtl.coding import Plan, Uplinks, demand_bounds, demand_plan, demands, demands_of, loads, make_plan, serve
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
    pieces=st.sampled_from((1, 3)),
    medium=st.sampled_from(("broadcast", "unicast")),
)
def test_all_demands_are_met(
    t: Topology, seed: int, share: float, uplinks: bool | None, generation: int, pieces: int, medium: str
) -> None:
    """Relays send only what they hear, each relay that demands an IV decodes it, and a plan for all IVs costs more."""
    wanted = some_demands(t, seed, share)
    links = None if uplinks is None else Uplinks(tuple(1.0 + np.arange(len(t.active))), uplinks)
    how = {"max_pieces": pieces, "generation": generation, "uplinks": links}
    plan = demand_plan(t, wanted, seed, medium=medium, **how)
    up, down, copies, knows = execute(plan)
    assert knows[wanted].all()
    for block in plan.blocks:
        learning = {t.active[n] for n in block.aggregators}
        assert all(set(np.flatnonzero(wanted[:, k])) <= learning for k in block.users)
    assert plan.loads.uplink == pytest.approx(up.sum())
    assert plan.loads.downlink == pytest.approx(down)
    assert plan.loads.unicast == pytest.approx(copies)
    bound = demand_bounds(t, wanted)
    assert bound.uplink <= up.sum() + 1e-6
    assert bound.downlink <= down + 1e-9
    assert bound.unicast == (wanted & (t.G == 0)).sum() <= copies + 1e-9
    assert time(plan, medium) <= time(make_plan(t, seed=seed, **how), medium) + 1e-9


def time(plan: Plan, medium: str) -> float:
    """Return the time between relays and server in IVs at the speed of the server, as fast as the fastest relay."""
    sent, links = np.array([plan.loads.by_relay[i] for i in plan.topology.active]), plan.uplinks
    down = plan.loads.unicast if medium == "unicast" else plan.loads.downlink
    if links is None:
        return sent.sum() + down
    each = sent / np.array(links.bandwidths) * max(links.bandwidths, default=1)
    return (each.max(initial=0) if links.parallel else each.sum()) + down


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


def test_a_code_for_all_demands_may_be_cheapest() -> None:
    """Each of 3 relays misses one user; every relay halves what it hears of the other two."""
    plan = demand_plan(Topology(1 - np.eye(3, dtype=np.uint8)), np.eye(3, dtype=bool))
    assert (plan.loads.uplink, plan.loads.downlink) == (1.5, 1)


@pytest.mark.slow
def test_how_far_plans_are_from_the_bound() -> None:
    """Users on graphs of 1 to 6 nearest neighbours: the mean excess over the bound is below a fifth."""
    excess: list[float] = []
    rng = np.random.default_rng(14)
    while len(excess) < 100:
        K, H = int(rng.integers(6, 41)), int(rng.integers(3, 8))
        G = (rng.random((H, K)) < rng.uniform(0.2, 0.8)).astype(np.uint8)
        G[rng.integers(0, H, K), np.arange(K)] = 1
        t, users = Topology(G), rng.random((K, 2))
        near = np.zeros((K, K), dtype=bool)
        near[np.arange(K)[:, None], cKDTree(users).query(users, min(K, 2 + len(excess) % 6))[1]] = True
        asked = demands_of(near | near.T, serve(t, near | near.T), H)
        plan, bound, whole = demand_plan(t, asked).loads, demand_bounds(t, asked), loads(t)
        sent = plan.uplink + plan.downlink
        assert sent <= whole.uplink + whole.downlink + 1e-9
        if sent:
            excess.append(sent / (bound.uplink + bound.downlink))
    assert np.mean(excess) <= 1.2


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
