"""The optimum against all partitions and the multicast linear program, and rates against all subsets."""

from fractions import Fraction
from itertools import combinations
from math import ceil

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from hmtl.coding import Demand, Uplinks, bounds, loads
from hmtl.coding.rates import Program, Rates
from hmtl.testing.topologies import restricted, topologies
from hmtl.topology import Topology, any_r


def heard(*rows):
    return Topology([[*map(int, row)] for row in rows])


def partitions(relays):
    """Yield all partitions of a list, as lists of lists."""
    if not relays:
        yield []
        return
    for rest in partitions(relays[1:]):
        yield [[relays[0]], *rest]
        for j in range(len(rest)):
            yield [*rest[:j], [relays[0], *rest[j]], *rest[j + 1 :]]


def worth(G, parts):
    """Return the lower bound of the relays' total that a partition proves."""
    unheard = sum(int((~G[part].any(axis=0)).sum()) for part in parts)
    return Fraction(unheard, len(parts) - 1)


def best_worth(G):
    return max((worth(G, parts) for parts in partitions(list(range(len(G)))) if len(parts) > 1), default=Fraction())


def subsets(G):
    """Return the proper subsets of relays [2^H − 2, H], and how many users no other relay hears."""
    H = len(G)
    chosen = [S for size in range(1, H) for S in combinations(range(H), size)]
    members = np.array([[i in S for i in range(H)] for S in chosen], dtype=float).reshape(-1, H)
    return members, np.array([(~G[row == 0].any(axis=0)).sum() for row in members], dtype=float)


def active(t):
    return t.G[t.G.any(axis=1)][:, t.G.any(axis=0)]


@given(t=topologies(max_H=6) | restricted(topologies(max_H=6)).filter(lambda t: t.active))
def test_optimum_is_the_best_of_all_partitions(t):
    G = active(t)
    least, partition = Demand(G).optimum
    assert least == best_worth(G)
    assert sorted(i for part in partition for i in part) == list(range(len(G)))
    if len(G) > 1:
        assert worth(G, [list(part) for part in partition]) == least
    found = loads(t, "optimal")
    assert found.uplink == float(least)
    assert found.downlink == max(int((row == 0).sum()) for row in G)
    assert found.uplink >= bounds(t).uplink - 1e-12


@given(t=topologies() | restricted())
def test_never_above_the_paper(t):
    optimal, paper = loads(t, "optimal"), loads(t, "paper")
    assert optimal.uplink <= paper.uplink + 1e-12
    assert optimal.downlink <= paper.downlink
    assert sum(optimal.by_relay) == pytest.approx(optimal.uplink)


@examples(20)
@given(t=topologies(max_H=5, max_K=12))
def test_multicast_linear_program(t):
    """Each relay gets what it misses as a flow of its own through shared rates."""
    G = active(t).astype(int)
    H, K = G.shape
    flows = [(j, k, i) for j in range(H) for k in range(K) if not G[j, k] for i in range(H) if G[i, k]]
    covers, within = np.zeros((H * K, H + len(flows))), np.zeros((H * H, H + len(flows)))
    for place, (j, k, i) in enumerate(flows, start=H):
        covers[j * K + k, place] = within[j * H + i, place] = 1
    within[np.arange(H * H), np.tile(np.arange(H), H)] = -1
    missed = (1 - G).ravel()
    cost = np.r_[np.ones(H), np.zeros(len(flows))]
    expected = linprog(cost, within, np.zeros(H * H), covers[missed == 1], missed[missed == 1]).fun
    assert float(Demand(G.astype(np.uint8)).optimum[0]) == pytest.approx(expected, abs=1e-7)


@examples(100)
@given(t=topologies(max_H=6, max_K=20), max_pieces=st.integers(1, 6))
def test_rates_suffice_are_fewest_and_even(t, max_pieces):
    G = active(t)
    members, needed = subsets(G)
    least = best_worth(G)
    rates = Demand(G).rates(max_pieces)
    c, x = rates.pieces, np.array(rates.counts)
    assert (members @ x >= c * needed).all()
    loads_of = {c: Fraction(ceil(c * least), c) for c in range(1, max_pieces + 1)}
    assert Fraction(int(x.sum()), c) == loads_of[c] == min(loads_of.values())
    assert c == min(c for c, load in loads_of.items() if load == loads_of[rates.pieces])
    if max_pieces >= len(G) - 1:
        assert loads_of[c] == least
    if len(G) > 1:
        H = len(G)
        enough = LinearConstraint(np.c_[members, np.zeros(len(members))], c * needed, np.inf)
        total = LinearConstraint(np.r_[np.ones(H), 0][None], x.sum(), x.sum())
        below_largest = LinearConstraint(np.c_[np.eye(H), -np.ones(H)], -np.inf, 0)
        even = milp(np.r_[np.zeros(H), 1], integrality=np.ones(H + 1), constraints=[enough, total, below_largest])
        assert x.max() == round(even.fun)


@examples(150)
@example(t=heard("0111", "1110", "1101"), bandwidths=[1.0, 1.5, 1.5], parallel=False, max_pieces=2)
@example(  # the fewest pieces keep links busy for longer
    t=heard("11100101101010", "10010110111110", "11011100011111", "10001110011110"),
    bandwidths=[1.5, 10.0, 1.0, 1.0],
    parallel=True,
    max_pieces=1,
)
@given(
    t=topologies(max_H=5, max_K=16),
    bandwidths=st.lists(st.sampled_from((1.0, 1.5, 2.0, 10.0)), min_size=6, max_size=6),
    parallel=st.booleans(),
    max_pieces=st.integers(1, 3),
)
def test_unequal_links_take_the_least_time(t, bandwidths, parallel, max_pieces):
    G = active(t)
    H, W = len(G), np.array(bandwidths[: len(G)])
    members, needed = subsets(G)
    uplinks = Uplinks(tuple(W), parallel)
    rates = Program(Demand(G), uplinks).rates(range(H), max_pieces)
    x = np.array(rates.counts)
    assert (members @ x >= rates.pieces * needed).all()
    if H == 1:
        return
    times, totals = {}, {}
    for c in range(1, max_pieces + 1):
        enough = LinearConstraint(members, c * needed, np.inf)
        if not parallel:
            times[c] = milp(1 / W, integrality=np.ones(H), constraints=enough).fun / c
            continue
        last = LinearConstraint(np.c_[np.eye(H) / W[:, None], -np.ones(H)], -np.inf, 0)
        wide = LinearConstraint(np.c_[members, np.zeros(len(members))], c * needed, np.inf)
        end = milp(np.r_[np.zeros(H), 1], integrality=np.r_[np.ones(H), 0], constraints=[wide, last]).fun
        most = Bounds(0, np.floor(end * W + 1e-6))
        totals[c] = milp(np.ones(H), integrality=np.ones(H), constraints=enough, bounds=most).fun
        times[c] = end / c
    assert uplinks.seconds(x) / rates.pieces == pytest.approx(min(times.values()))
    assert rates.pieces == min(c for c, time in times.items() if time <= min(times.values()) * (1 + 1e-8))
    if parallel:
        assert x.sum() == round(totals[rates.pieces])


def test_rates_that_may_not_be_the_smallest_suffice(monkeypatch):
    """If the search for the smallest rates that take the least time ends early, they are larger and take as long."""
    G, links = active(any_r(K=30, H=6, r=2)), Uplinks((1.0, 2.0, 3.0) * 2, parallel=True)
    smallest, whole = Program(Demand(G), links).rates([0, 1], 1), Program._whole
    monkeypatch.setattr(Program, "_whole", lambda *args, within=0.0: None if within else whole(*args))
    rates = Program(Demand(G), links).rates([0, 1], 1)
    assert links.seconds(np.array(rates.counts)) <= links.seconds(np.array(smallest.counts)) + 1e-9
    assert all(Demand(G).lacking(np.array(rates.counts), 1, j) == [] for j in (0, 1))


def test_slack_takes_fewer_pieces():
    G = any_r(K=1000, H=20, r=6).G
    assert Demand(G).optimum[0] == Fraction(14000, 19)
    assert Demand(G).rates(19).pieces == 19
    assert Demand(G).rates(8).pieces == 7
    assert Demand(G).rates(8, slack=0.005).pieces == 1


def test_relays_that_others_do_not_need_send_nothing():
    assert Demand(np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=np.uint8)).rates(4) == Rates(1, (1, 1, 0))
    assert Demand(np.ones((3, 4), dtype=np.uint8)).rates(4) == Rates(1, (0, 0, 0))
    assert Demand(np.ones((1, 4), dtype=np.uint8)).rates(4) == Rates(1, (0,))


@pytest.mark.parametrize("ratio", [1e3, 1e10, 1e15])
def test_links_of_any_ratio(ratio):
    """Relays 0 and 3 are so slow that they send only what no other relay hears."""
    t = any_r(K=30, H=4, r=2)
    found = loads(t, "optimal", Uplinks((1.0, ratio, ratio, 1.0), parallel=True))
    alone = Fraction(sum(t.relays_of(k) == (0, 3) for k in range(30)))
    assert found.by_relay[0] + found.by_relay[3] == pytest.approx(float(alone))
