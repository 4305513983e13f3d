"""Covers against brute force, and the bounds of covers that are not proven optimal."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import Uplinks, cover
from hmtl.coding.covers import ShareProgram
from hmtl.coding.rates import demand_of
from hmtl.testing.topologies import restricted, topologies
from hmtl.topology import Topology, any_r


def least(t: Topology, weigh) -> float:
    """Return the least weight over all sets of relays that hear all present users."""
    sets = (s for n in range(len(t.active) + 1) for s in combinations(t.active, n))
    return min(weigh(s) for s in sets if not len(t.present) or t.G[list(s)][:, list(t.present)].any(axis=0).all())


@given(
    t=restricted(topologies(max_H=7, max_K=12)),
    speeds=st.lists(st.sampled_from((1.0, 2.0, 5.0)), min_size=7, max_size=7),
    kind=st.sampled_from(("alike", "shared", "parallel")),
)
def test_no_set_of_relays_costs_less(t: Topology, speeds: list[float], kind: str) -> None:
    links = Uplinks(tuple(speeds[: len(t.active)]), kind == "parallel") if kind != "alike" and t.active else None
    seconds = {i: min(speeds[: len(t.active)]) / speeds[n] if links else 1.0 for n, i in enumerate(t.active)}
    found = cover(t, links)
    add = max if kind == "parallel" else sum
    cost = least(t, lambda s: add(seconds[i] for i in s) if s else 0)
    assert found.cost == pytest.approx(cost)
    assert found.proven
    if t.active:  # as the integer program for more relays has it
        program = ShareProgram(demand_of(t).hears, links)
        x, bound = program.solve(1)
        assert program.time(x.round()) == pytest.approx(cost)
        assert bound == pytest.approx(cost, abs=1e-5)
    heard = t.G[list(found.relays)]
    assert heard[:, list(t.present)].any(axis=0).all()
    assert kind == "parallel" or (heard * (heard.sum(axis=0) == 1)).any(axis=1).all(), "each of them is needed"
    if links is None:
        assert len(found.relays) == found.cost


def test_many_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    """An integer program finds as few relays; stopped early, it returns a valid bound."""
    t = any_r(K=40, H=12, r=3)
    best = cover(t)
    monkeypatch.setattr("hmtl.coding.covers.MAX_COVER_RELAYS", 0)
    again = cover(t)
    assert again.proven
    assert len(again.relays) == len(best.relays)
    assert again.bound == len(best.relays)
    monkeypatch.setattr("hmtl.coding.covers.MAX_COVER_NODES", 1)
    t = any_r(K=1000, H=40, r=3)
    large = cover(t)
    assert large.bound <= large.cost == len(large.relays)
    assert t.G[list(large.relays)].any(axis=0).all()
