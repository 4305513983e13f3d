"""Who learns the sums: against all sets of relays that hear everybody, each with a linear programme of its own."""

import sys
from itertools import combinations

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from hmtl.coding import Hops, Uplinks, best_sum_aggregators, cover, sum_bounds, sum_loads
from hmtl.testing.topologies import restricted, topologies
from hmtl.topology import Topology, any_r, symmetric


def least_seconds(users: list[set[int]], seconds: dict[int, float], parallel: bool) -> float:
    """The least time until relays have sent, for each user, a row in all, by those that hear it."""
    relays = sorted(seconds)
    if not users:
        return 0.0
    hear = np.array([[float(i in near) for i in relays] for near in users])
    cost = np.array([seconds[i] for i in relays])
    if not parallel:
        return float(linprog(cost, A_ub=-hear, b_ub=-np.ones(len(hear))).fun)
    H = len(relays)
    A = np.vstack([np.c_[-hear, np.zeros(len(hear))], np.c_[np.diag(cost), -np.ones(H)]])
    return float(linprog(np.r_[np.zeros(H), 1.0], A_ub=A, b_ub=np.r_[-np.ones(len(hear)), np.zeros(H)]).fun)


def by_brute_force(t: Topology, hops: Hops) -> float:
    near = [set(t.relays_of(k)) for k in t.present]
    seconds = dict(zip(t.active, (hops.downlink / w for w in hops.uplinks.bandwidths), strict=True))
    alike, last = dict.fromkeys(t.active, 1.0), hops.downlink / hops.last

    def total(up: float, copies: float, spread: float) -> float:
        down = (1 if hops.medium == "broadcast" else copies) * (up > 0)
        return up + down + last * (spread if hops.last_hop == "broadcast" else len(near))

    shares = least_seconds(near, alike, parallel=False)
    costs = [total(least_seconds(near, seconds, hops.uplinks.parallel), shares, shares)]
    for n in range(1, len(t.active) + 1):
        for A in map(set, combinations(t.active, n)):
            if all(A & relays for relays in near):
                apart = [relays for relays in near if not relays >= A]
                costs.append(total(least_seconds(apart, seconds, hops.uplinks.parallel), n, n))
    return min(costs)


well_heard = st.builds(any_r, st.integers(2, 9), st.just(5), st.sampled_from((3, 4)), st.integers(0, 10**6))


@examples(250)
@given(
    t=restricted(topologies(max_H=5, max_K=10)) | well_heard,
    seed=st.integers(0, 10**6),
    parallel=st.booleans(),
    last=st.sampled_from((0.3, 1.0, 4.0, 1000.0)),
    medium=st.sampled_from(("broadcast", "unicast")),
    last_hop=st.sampled_from(("broadcast", "unicast")),
)
def test_nobody_else_learns_the_sums_sooner(
    t: Topology, seed: int, parallel: bool, last: float, medium: str, last_hop: str
) -> None:
    speeds = np.random.default_rng(seed).choice((0.1, 0.5, 1.0, 5.0), len(t.active))
    hops = Hops(Uplinks(tuple(speeds.tolist()), parallel), 2.0, last, medium, last_hop)
    choice = best_sum_aggregators(t, hops)
    if not t.active:
        assert (choice.relays, choice.cost) == ((), 0)
        return
    least = by_brute_force(t, hops)
    assert choice.bound <= least * (1 + 1e-6)
    assert least * (1 - 1e-6) <= choice.cost
    assert choice.proven == (choice.cost <= least * (1 + 1e-6))
    assert choice.proven or parallel, "with five relays, shares of up to 8 pieces meet the bound of shared uplinks"
    heard = t.G[list(choice.relays)].any(axis=0) if choice.relays else t.G.any(axis=0)
    assert heard[list(t.present)].all()
    load = sum_loads(t, hops.uplinks, A=choice.relays)
    down = load.down(medium)
    last_rows = load.last_hop if last_hop == "broadcast" else len(t.present)
    up = hops.uplinks.seconds(np.array(load.by_relay)[list(t.active)])
    assert choice.cost == pytest.approx(2.0 * (up + last_rows / last) + down)


@pytest.mark.parametrize(("H", "r", "K", "seed", "medium"), [(5, 3, 10, 31, "broadcast"), (5, 3, 10, 38, "unicast")])
def test_a_search_that_ends_early_claims_no_more_than_is_true(
    monkeypatch: pytest.MonkeyPatch, H: int, r: int, K: int, seed: int, medium: str
) -> None:
    """It misses the quickest relays here, and must not call its choice proven."""
    monkeypatch.setattr("hmtl.coding.summing.MOST_WORK", 1)
    t = any_r(K, H, r, seed)
    speeds = np.random.default_rng(seed).choice((0.1, 0.5, 1.0, 5.0), len(t.active))
    hops = Hops(Uplinks(tuple(speeds.tolist()), False), 2.0, 1.0, medium, "unicast")
    choice, least = best_sum_aggregators(t, hops), by_brute_force(t, hops)
    assert choice.bound <= least * (1 + 1e-6)
    assert choice.cost > least * (1 + 1e-6)
    assert not choice.proven


@examples(100)
@given(t=topologies(max_H=5, max_K=10) | well_heard, parallel=st.booleans(), last=st.sampled_from((0.3, 1.0, 1000.0)))
def test_a_greedy_choice_bounds_what_it_missed(t: Topology, parallel: bool, last: float) -> None:
    """As in a network that is too large for integer programmes."""
    hops = Hops(Uplinks((1.0,) * len(t.active), parallel), 2.0, last)
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("covers.MOST_ENUMERATED", "covers.MOST_SEARCHED", "summing.MOST_ROWS"):
            module, name = limit.split(".")
            patch.setattr(sys.modules[f"hmtl.coding.{module}"], name, 0)
        forget()
        choice = best_sum_aggregators(t, hops)
    forget()
    least = by_brute_force(t, hops)
    assert choice.bound <= least * (1 + 1e-6)
    assert least * (1 - 1e-6) <= choice.cost <= least * (1 + choice.excess) * (1 + 1e-6)


def forget() -> None:
    """Forget results that were computed with other limits."""
    cover.cache_clear()
    sys.modules["hmtl.coding.sum_codes"]._shares_sent.cache_clear()


@given(t=restricted(topologies(max_H=6, max_K=12)), seed=st.integers(0, 10**6))
def test_bounds_if_relays_learn_the_sums(t: Topology, seed: int) -> None:
    """The bounds are those of a linear programme, and no load is below them."""
    rng, A = np.random.default_rng(seed), list[int]()
    for i in rng.permutation(t.H).tolist():
        if not t.G[A].any(axis=0)[list(t.present)].all():
            A.append(i)
    if not A:
        return
    bound, load = sum_bounds(t, A), sum_loads(t, A=A)
    apart = [set(t.relays_of(k)) for k in t.present if not set(A) <= set(t.relays_of(k))]
    assert bound.uplink == pytest.approx(least_seconds(apart, dict.fromkeys(t.active, 1.0), False), abs=1e-8)
    assert bound.downlink == load.downlink == bool(apart)
    assert bound.unicast == sum(not t.G[i, list(t.present)].all() for i in A) <= len(A)
    assert bound.uplink <= load.uplink + 1e-8
    assert bound.last_hop <= load.last_hop + 1e-8
    assert load.unicast == len(A) * bool(apart)


@pytest.mark.parametrize(
    ("t", "A", "up", "down", "last"),
    [
        (symmetric(20, 5, 3), (0, 1, 2), 2, 1, 3),
        (any_r(40, 5, 3), (0, 1, 2), 2, 1, 3),
        (symmetric(20, 5, 4), (0, 1), 1, 1, 2),
        (symmetric(20, 5, 5), (3,), 0, 0, 1),
    ],
)
def test_loads_of_whole_rows(t: Topology, A: tuple[int, ...], up: float, down: float, last: float) -> None:
    load = sum_loads(t, None, 1, A)
    assert (load.uplink, load.downlink, load.last_hop) == (up, down, last)
