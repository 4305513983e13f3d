"""Allocations are exact, feasible, and optimal by an independent solver and among all vertices."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from coding_oracles import parts, theorem_1
from hypothesis import given

from hmtl.coding import allocation
from hmtl.coding.allocation import allocate, cheapest, even
from hmtl.testing.topologies import restricted, topologies
from hmtl.topology import Topology, any_r

HALF = Fraction(1, 2)


def uplink(part):
    """Return the IVs that the relays send to the server, (27)."""
    return sum(n * alpha for n, alpha in zip(part.n, part.alpha, strict=True))


@pytest.fixture
def fig_2():
    """The example of Fig. 2, its users numbered from 0."""
    heard = [(1, 3, 5, 6, 8, 9, 10), (1, 2, 3, 4, 10), (2, 4, 5), (6, 7, 9, 10), (1, 2, 6, 7, 8)]
    return Topology([[k in row for k in range(1, 11)] for row in heard])


def test_fig_2(fig_2):
    two, three = allocate(fig_2, cheapest, fig_2.active)
    assert (two.z, two.n, two.alpha, uplink(two), two.downlink) == (2, (3, 2, 2, 2, 2), (HALF,) * 5, Fraction(11, 2), 4)
    assert (three.z, three.n, uplink(three), three.downlink) == (3, (3, 2, 1, 2, 2), 3, 3)
    assert [part.alpha for part in allocate(fig_2, even, fig_2.active)] == [(HALF,) * 5, (Fraction(1, 3),) * 5]


@pytest.mark.parametrize("split", [cheapest, even])
@given(t=topologies() | restricted())
def test_fields_and_cover(split, t):
    expected = list(parts(t.G))
    found = allocate(t, split, t.active)
    assert [part.z for part in found] == [z for z, *_ in expected]
    for part, (_, users, hears, n) in zip(found, expected, strict=True):
        assert set(part.users) == users
        assert [{part.users[p] for p in heard} for heard in part.heard] == hears
        assert list(part.n) == n
        assert all(isinstance(alpha, Fraction) and 0 <= alpha <= 1 for alpha in part.alpha)
        for k in users:
            assert sum(alpha for alpha, heard in zip(part.alpha, hears, strict=True) if k in heard) >= 1


@given(t=topologies(max_H=5, max_K=25))
def test_paper_is_the_best_vertex(t):
    """Any H tight constraints give a candidate, and the best feasible one is the optimum."""
    for part in allocate(t, cheapest, t.active):
        rows = [[float(p in heard) for heard in part.heard] for p in range(len(part.users))]
        A = np.vstack([np.unique(rows, axis=0), np.eye(len(part.n))])
        b = np.r_[np.ones(len(A) - len(part.n)), np.zeros(len(part.n))]
        chosen = np.array(list(combinations(range(len(A)), len(part.n))))
        chosen = chosen[abs(np.linalg.det(A[chosen])) > 0.5]
        vertices = np.linalg.solve(A[chosen], b[chosen][:, :, None])[:, :, 0]
        feasible = (vertices @ A.T >= b - 1e-9).all(axis=1)
        assert float(uplink(part)) == pytest.approx((vertices[feasible] @ part.n).min(), abs=1e-9)


def test_fractions_beyond_floating_point():
    """Optima with denominators in the thousands are still exact, and as good as an independent solver's."""
    largest = 0
    for seed in range(4):
        t = any_r(K=20, H=20, r=10, seed=seed)
        (part,) = allocate(t, cheapest, t.active)
        largest = max(largest, *(alpha.denominator for alpha in part.alpha))
        assert all(sum(part.alpha[i] for i in t.relays_of(k)) >= 1 for k in range(20))
        assert float(uplink(part)) == pytest.approx(theorem_1(t.G, "paper")[0], abs=1e-6)
    assert largest > 10_000


def test_shares_without_exact_fractions_cover_all_types_at_nearly_the_least_cost(fig_2, monkeypatch):
    exact = [part.alpha for part in allocate(fig_2, cheapest, fig_2.active)]
    allocate.cache_clear()
    monkeypatch.setattr(allocation, "MAX_DENOMINATOR", 1)
    for part, alpha in zip(allocate(fig_2, cheapest, fig_2.active), exact, strict=True):
        assert all(sum(part.alpha[i] for i in fig_2.relays_of(k)) >= 1 for k in part.users)
        assert float(np.dot(part.n, part.alpha)) == pytest.approx(float(np.dot(part.n, alpha)), abs=1e-4)
    allocate.cache_clear()
