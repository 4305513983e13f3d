"""Generated networks: rules hold exactly, and draws follow their law (fixed seeds, enumerated laws)."""

from collections import Counter
from itertools import combinations, product
from math import comb, hypot, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from hmtl.errors import TopologyError
from hmtl.topology import Topology, any_r, geometric, heterogeneous, symmetric


def column_counts(t):
    return Counter(map(tuple, t.G.T.tolist()))


@pytest.mark.parametrize(("H", "r"), [(H, r) for H in range(2, 7) for r in range(1, H + 1)])
def test_symmetric_is_as_even_as_can_be(H, r):
    subsets = comb(H, r)
    for K in {1, 2, subsets - 1 or 1, *range(subsets, 2 * subsets, 3), 7 * subsets + subsets // 2}:
        t = symmetric(K, H, r)
        assert (t.K, t.H) == (K, H)
        assert set(t.degrees) == {r}
        counts = column_counts(t)
        assert sum(counts.values()) == K
        assert max(counts.values()) == -(-K // subsets)
        assert subsets > K or (len(counts) == subsets and min(counts.values()) == K // subsets)
        per_relay = t.G.sum(axis=1, dtype=int)
        assert per_relay.max() - per_relay.min() <= (K % subsets != 0)


@given(st.integers(2, 60), st.data())
def test_symmetric_with_more_subsets_than_users(H, data):
    r, K = data.draw(st.integers(1, H)), data.draw(st.integers(1, 200))
    t = symmetric(K, H, r)
    per_relay = t.G.sum(axis=1, dtype=int)
    assert per_relay.max() - per_relay.min() <= 1
    assert max(column_counts(t).values()) == -(-K // comb(H, r))


def test_any_r_draws_every_subset_alike():
    K, H, r = 20_000, 6, 3
    t = any_r(K, H, r, seed=1)
    assert set(t.degrees) == {r}
    assert chisquare([len(t.types.get(subset, ())) for subset in combinations(range(H), r)]).pvalue > 1e-4
    follows = Counter(zip(map(t.relays_of, range(K - 1)), map(t.relays_of, range(1, K)), strict=True))
    pairs = list(product(combinations(range(H), r), repeat=2))
    assert chisquare([follows[pair] for pair in pairs]).pvalue > 1e-4  # users do not depend on each other


@pytest.mark.parametrize(
    ("K", "H", "r", "d"),
    [
        (4, 2, 1.25, 0.0),
        pytest.param(3, 4, 4 / 3, 0.0, marks=pytest.mark.slow),
        (4, 2, 1.5, 0.25),
    ],
)
def test_heterogeneous_is_uniform_over_all_such_matrices(K, H, r, d):
    sizes = heterogeneous(K, H, r, d).G.sum(axis=1)
    rows = [[row for row in product((0, 1), repeat=K) if sum(row) == size] for size in sizes]
    legal = [G for G in product(*rows) if all(map(any, zip(*G, strict=True)))]
    draws = 12 * len(legal)
    drawn = Counter(tuple(map(tuple, heterogeneous(K, H, r, d, seed).G.tolist())) for seed in range(draws))
    assert set(drawn) <= set(legal)
    assert chisquare([drawn[G] for G in legal]).pvalue > 1e-4


@pytest.mark.parametrize(
    ("K", "H", "r", "d"),
    [
        (40, 4, 1.1, 0.05),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((30, 4, 2, 0.2), (40, 8, 1.5, 0.1), (60, 2, 1.3, 0))
        ),
    ],
)
def test_heterogeneous_has_as_many_users_with_one_relay_as_the_uniform_law(K, H, r, d):
    def ways(sizes, users):  # matrices without empty column, by inclusion and exclusion
        return sum((-1) ** j * comb(users, j) * prod(comb(users - j, n) for n in sizes) for j in range(users + 1))

    sizes = [int(n) for n in heterogeneous(K, H, r, d).G.sum(axis=1)]
    without = [[n - (i == j) for j, n in enumerate(sizes)] for i in range(H)]
    expected = K * sum(ways(rest, K - 1) for rest in without if min(rest) >= 0) / ways(sizes, K)
    seen = np.array([len(heterogeneous(K, H, r, d, seed).I(1)) for seed in range(100)])
    assert abs(seen.mean() - expected) <= 4 * seen.std() / len(seen) ** 0.5 + 1e-9


@given(st.integers(1, 60), st.integers(1, 5), st.floats(0, 1), st.floats(-1, 1), st.integers(0, 99))
@settings(deadline=None)
def test_heterogeneous_sizes_are_exact(K, half, at, tilt, seed):
    H = 2 * half
    r = 1 + at * (H - 1)
    d = tilt * min(r / H, 1 - r / H)
    t = heterogeneous(K, H, r, d, seed)
    per_relay = t.G.sum(axis=1, dtype=int)
    assert per_relay.sum() == round(r * K)
    assert (abs(per_relay[:half] - (r / H + d) * K) < 1 + 1e-6).all()
    assert (abs(per_relay[half:] - (r / H - d) * K) < 1 + 1e-6).all()
    assert t.degrees.min() >= 1
    assert t == heterogeneous(K, H, r, d, seed)


@given(st.integers(1, 40), st.integers(2, 8), st.floats(0.01, 2), st.integers(0, 99))
@settings(deadline=None)
def test_geometric_hears_within_the_radius_and_the_nearest_always(K, H, radius, seed):
    t = geometric(K, H, radius, seed)
    users, relays = t.layout
    for k in range(K):
        far = [hypot(*(users[k] - relays[i])) for i in range(H)]
        assert t.relays_of(k) == tuple(i for i in range(H) if far[i] <= radius or far[i] == min(far))
    assert ((users >= 0) & (users <= 1)).all()
    assert ((relays >= 0) & (relays <= 1)).all()
    assert geometric(K, H, radius, seed) == t
    assert geometric(K, H, float("inf"), seed).r == H


def test_geometric_points_are_uniform():
    users, relays = geometric(5000, 500, 0.1, seed=3).layout
    for points in (users, relays):
        cells = Counter(map(tuple, (points * 4).astype(int).tolist()))
        assert chisquare([cells[cell] for cell in product(range(4), repeat=2)]).pvalue > 1e-4


def test_a_single_relay_hears_all():
    assert symmetric(4, 1, 1) == any_r(4, 1, 1) == geometric(4, 1, 0.1) == Topology([[1] * 4])


def test_seeds_differ():
    for make in (
        lambda seed: any_r(30, 6, 3, seed),
        lambda seed: heterogeneous(30, seed=seed),
        lambda seed: geometric(30, 5, 0.4, seed),
    ):
        assert make(1) == make(1) != make(2)


def test_whole_degrees_may_be_floats():
    assert any_r(10, 5, 3.0) == any_r(10, 5, 3)


@pytest.mark.parametrize("make", [symmetric, any_r])
@pytest.mark.parametrize(
    ("K", "H", "r", "setting"),
    [
        (20, 5, 9, "r=9"),
        (20, 5, 0, "r=0"),
        (20, 5, 2.5, "r=2.5"),
        (20, 5, float("nan"), "r=nan"),
        (20, 5, float("inf"), "r=inf"),
        (0, 5, 3, "K=0"),
        (2.5, 5, 3, "K=2.5"),
        (20, 0, 1, "H=0"),
        (10**9, 5, 3, "K=1000000000"),
    ],
)
def test_errors_of_counts(make, K, H, r, setting):
    with pytest.raises(TopologyError, match=setting):
        make(K, H, r)


@pytest.mark.parametrize(
    "arguments", [{"K": 0}, {"H": 5}, {"r": 0.9}, {"r": 4.1}, {"d": 0.51}, {"d": -0.6}, {"d": float("nan")}]
)
def test_errors_of_heterogeneous(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(TopologyError, match=f"{name}={value}"):
        heterogeneous(**{"K": 20, **arguments})


@pytest.mark.parametrize("radius", [0, -1, float("nan")])
def test_errors_of_geometric(radius):
    with pytest.raises(TopologyError, match="radius="):
        geometric(20, 5, radius)
