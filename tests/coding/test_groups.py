"""Groups of users that are coded together: costs by linear programmes over all cuts, mergers by trying all pairs."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from hmtl.coding import Uplinks
from hmtl.coding.groups import Costs, Group, _Merger, demanded, merged
from hmtl.testing.topologies import restricted, topologies
from hmtl.topology import Topology

networks = topologies(max_H=5, max_K=14) | restricted(topologies(max_H=5, max_K=14))
links = st.sampled_from((None, False, True))
media = st.sampled_from(("broadcast", "unicast"))


def uplinks_of(t: Topology, parallel: bool | None) -> Uplinks | None:
    return None if parallel is None else Uplinks(tuple(2.0 + np.arange(len(t.active)) % 3), parallel, 3.0)


def some_demands(t: Topology, seed: int) -> np.ndarray:
    wanted = np.random.default_rng(seed).random((t.H, t.K)) < 0.3
    return wanted & (t.degrees > 0) & t.G.any(axis=1)[:, None]


def cost_by_all_cuts(t: Topology, users: set[int], relays: set[int], links: Uplinks | None, medium: str) -> float:
    """Return the least time: R(S) ≥ the users that S alone hears, for all S that lack a relay that learns."""
    H = len(t.active)
    W = np.array(links.bandwidths) if links else np.ones(H)
    sets = [set(np.array(t.active)[list(S)].tolist()) for n in range(H) for S in combinations(range(H), n)]
    cuts = [S for S in sets if not relays <= S]
    heard = [set(t.relays_of(k)) for k in users]
    rows = [[-float(i in S) for i in t.active] + [0] for S in cuts]
    needs = [-sum(N <= S for N in heard) for S in cuts]
    slowest = links is not None and links.parallel
    deadlines = np.c_[np.diag(1 / W), -np.ones(H)].tolist() if slowest else []
    prices = [0.0] * H + [1.0] if slowest else [*(1 / W), 0.0]
    up = linprog(prices, rows + deadlines, needs + [0] * len(deadlines)).fun
    missed = [len(users - set(t.N(i))) for i in relays]
    return up * (3.0 if links else 1.0) + (max(missed) if medium == "broadcast" else sum(missed))


@settings(max_examples=30)
@given(t=networks, seed=st.integers(0, 10**6), parallel=links, medium=media)
def test_users_are_grouped_by_who_demands_them(t: Topology, seed: int, parallel: bool | None, medium: str) -> None:
    """Each group costs what all cuts demand, and a search for something cheaper stops."""
    wanted, uplinks = some_demands(t, seed), uplinks_of(t, parallel)
    groups, costs = demanded(t, wanted), Costs(t, uplinks, medium)
    grouped = [k for group in groups for k in group.users.tolist()]
    assert sorted(grouped) == np.flatnonzero((wanted & (t.G == 0)).any(axis=0)).tolist()
    assert len({tuple(group.relays) for group in groups}) == len(groups)
    for group in groups:
        assert all(np.flatnonzero(wanted[:, k]).tolist() == group.relays.tolist() for k in group.users)
        cost = cost_by_all_cuts(t, set(group.users.tolist()), set(group.relays.tolist()), uplinks, medium)
        assert costs.of(group) == pytest.approx(cost, rel=1e-5)
        assert costs.bound(group) == pytest.approx(cost, rel=1e-6)
        assert costs.of(group, stop=cost * (1 - 1e-3)) is None


@settings(max_examples=40)
@given(t=networks, seed=st.integers(0, 10**6), parallel=links, medium=media)
def test_no_two_merged_groups_cost_less_together(t: Topology, seed: int, parallel: bool | None, medium: str) -> None:
    wanted, uplinks = some_demands(t, seed), uplinks_of(t, parallel)
    before, costs = demanded(t, wanted), Costs(t, uplinks, medium)
    after = merged(before, costs)
    assert sorted(k for group in after for k in group.users) == sorted(k for group in before for k in group.users)
    sides = [(set(group.users.tolist()), set(group.relays.tolist())) for group in after]
    for users, relays in sides:
        parts = [group for group in before if users & set(group.users.tolist())]
        assert relays == {i for group in parts for i in group.relays.tolist()}
        apart = sum(
            cost_by_all_cuts(t, set(group.users.tolist()), set(group.relays.tolist()), uplinks, medium)
            for group in parts
        )
        assert cost_by_all_cuts(t, users, relays, uplinks, medium) <= apart * (1 + 1e-5)
    each = [cost_by_all_cuts(t, *side, uplinks, medium) for side in sides]
    for (a, one), (b, other) in combinations(enumerate(sides), 2):
        together = cost_by_all_cuts(t, one[0] | other[0], one[1] | other[1], uplinks, medium)
        assert together >= (each[a] + each[b]) * (1 - 1e-5) - 1e-5


@settings(max_examples=40)
@given(t=networks, seed=st.integers(0, 10**6), parallel=links, medium=media)
def test_costs_and_bounds_stay_right_as_groups_are_merged(
    t: Topology, seed: int, parallel: bool | None, medium: str
) -> None:
    """What a pair may save is at most what is left if only the downlink of the two together is paid."""
    wanted, uplinks = some_demands(t, seed), uplinks_of(t, parallel)
    costs = Costs(t, uplinks, medium)
    merger = _Merger(demanded(t, wanted), costs)
    while True:
        for n in np.flatnonzero(merger.remaining).tolist():
            assert merger.cost[n] == pytest.approx(costs.of(merger.groups[n]), rel=1e-5)
        for change, a, b, _ in merger.pairs:
            union = Group.union((merger.groups[a], merger.groups[b]))
            missed = len(union.users) - t.G[union.relays][:, union.users].sum(axis=1, dtype=np.int64)
            assert -change <= merger.cost[a] + merger.cost[b] - costs.down(missed) + 1e-6
        if not merger.merge():
            break


@pytest.mark.parametrize(("medium", "sent", "remaining"), [("broadcast", 8 + 4, 1), ("unicast", 8 + 8, 2)])
def test_an_exchange_is_one_group_if_relays_hear_the_same_messages(medium: str, sent: int, remaining: int) -> None:
    """Two relays hear 4 users each and demand the other four: sums serve both, copies of them do not."""
    t = Topology(np.kron(np.eye(2, dtype=np.uint8), np.ones(4, np.uint8)))
    costs = Costs(t, None, medium)
    groups = merged(demanded(t, t.G == 0), costs)
    assert len(groups) == remaining
    assert sum(costs.of(group) for group in groups) == pytest.approx(sent)


def test_the_union_of_groups_has_all_users_and_relays_once() -> None:
    union = Group.union([Group(np.array([1, 4]), np.array([0, 2])), Group(np.array([0]), np.array([2, 3]))])
    assert (union.users.tolist(), union.relays.tolist()) == ([0, 1, 4], [0, 2, 3])
