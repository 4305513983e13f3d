"""Loads and bounds in closed form against Theorems 1 to 3 restated."""

from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import CODED_SCHEMES, SCHEMES, Loads, Uplinks, bounds, forwarders, loads, scheme_of
from hmtl.errors import CodingError
from hmtl.testing.topologies import restricted, topologies
from hmtl.topology import Topology, symmetric


def test_fig_2():
    heard = [(1, 3, 5, 6, 8, 9, 10), (1, 2, 3, 4, 10), (2, 4, 5), (6, 7, 9, 10), (1, 2, 6, 7, 8)]
    t = Topology([[k in row for k in range(1, 11)] for row in heard])
    assert loads(t, "paper") == Loads(8.5, 7)
    assert loads(t) == loads(t, "optimal") == Loads(7, 7)
    assert loads(t, "equal") == Loads(float(Fraction(53, 6)), 7)
    assert loads(t, "uncoded") == Loads(10, 10)
    assert bounds(t) == Loads(6.5, 7)


@given(t=topologies() | restricted())
def test_theorem_2(t):
    rows = [row[t.G.any(axis=0)] for row in t.G if row.any()]
    missed = [sum(1 - int(heard) for heard in row) for row in rows]
    if len(rows) > 1:
        assert bounds(t).uplink == pytest.approx(sum(missed) / (len(rows) - 1), abs=1e-12)
    assert bounds(t).downlink == max(missed, default=0)
    for scheme in ("paper", "equal"):
        assert loads(t, scheme).uplink >= bounds(t).uplink - 1e-12
        assert loads(t, scheme).downlink >= bounds(t).downlink
    assert loads(t, "paper").uplink <= loads(t, "equal").uplink + 1e-12


@given(H=st.integers(2, 6), data=st.data(), copies=st.integers(1, 2))
def test_theorem_3_symmetric_networks_are_optimal(H, data, copies):
    r = data.draw(st.integers(1, H))
    K = copies * comb(H, r)
    optimum = Loads(float(Fraction(K * (H - r), H - 1)), float(K - Fraction(r * K, H)))
    t = symmetric(K, H, r)
    assert loads(t, "optimal") == loads(t, "paper") == loads(t, "equal") == bounds(t) == optimum


def test_one_active_relay_needs_nothing():
    t = Topology([[1, 1, 1], [0, 0, 0]])
    assert loads(t) == loads(t, "paper") == loads(t, "equal") == bounds(t) == Loads(0, 0)


def test_inactive_relays_take_no_part():
    rows = [[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 1]]
    with_idle = Topology([rows[0], [0] * 4, *rows[1:], [0] * 4])
    for scheme in ("uncoded", "optimal", "paper", "equal"):
        alone, beside_idle = loads(Topology(rows), scheme), loads(with_idle, scheme)
        assert beside_idle == alone
        assert sum(alone.by_relay) == pytest.approx(alone.uplink)
        first, *others = alone.by_relay
        assert beside_idle.by_relay == (first, 0, *others, 0)
    assert bounds(with_idle) == bounds(Topology(rows))


@given(
    t=topologies(max_H=4, max_K=6) | restricted(topologies(max_H=4, max_K=6)),
    seed=st.integers(0, 99),
    parallel=st.booleans(),
)
def test_uncoded_forwarders_take_the_least_time(t, seed, parallel):
    """Compared with every choice of a relay for each user."""
    bandwidths = np.random.default_rng(seed).choice([0.5, 1, 3, 10], len(t.active))
    uplinks = Uplinks(tuple(bandwidths), parallel)
    time = {i: 1 / w for i, w in zip(t.active, bandwidths, strict=True)}

    def seconds(chosen):
        each = [chosen.count(i) * time[i] for i in t.active]
        return max(each) if parallel else sum(each)

    found = forwarders(t, uplinks).tolist()
    assert all(t.G[i, k] if i >= 0 else not t.G[:, k].any() for k, i in enumerate(found))
    choices = product(*(relays for k in range(t.K) if (relays := t.relays_of(k))))
    if t.active:
        assert seconds(found) == pytest.approx(min(map(seconds, choices)))
    sent = loads(t, "uncoded", uplinks)
    assert sent.by_relay == tuple(map(found.count, range(t.H)))
    assert sent.uplink == sent.downlink == t.G.any(axis=0).sum()
    assert forwarders(t) is t.serving


@pytest.mark.parametrize(("name", "among"), [("uncoded", CODED_SCHEMES), ("best", tuple(SCHEMES))])
def test_unknown_schemes(name, among):
    with pytest.raises(CodingError, match=f"scheme={name}"):
        scheme_of(name, among)
