"""Neighbors and thresholds keep the promised probabilities, computed another way."""

from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from scipy.stats import binom, hypergeom

from hmtl.communication.secure.neighbors import Secure, circle, degree, lone
from hmtl.errors import ConfigError


@pytest.mark.parametrize("n", [2, 3, 10, 20, 50, 100, 257, 1000, 3000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_probabilities(n: int, share: float) -> None:
    T = int(share * n)
    chosen = degree(n, T)
    assert chosen is not None
    k, t = chosen.neighbors, chosen.threshold
    assert n * hypergeom.sf(t - 1, n - 1, T, k) <= 2**-40 * (1 + 1e-6), "no user has t neighbors who collude"
    assert t == 1 or n * hypergeom.sf(t - 2, n - 1, T, k) > 2**-40 * (1 - 1e-6), "t is the least"
    if k < n - 1:
        assert n**2 / 2 * (0.3 + share) ** k <= 2**-40, "others are connected"
        assert n * binom.cdf(t - 1, k, 0.7) <= 2**-20, "t neighbors answer"
        secure = Secure(share)
        assert secure.fewest(n, n) >= 0.7 * n


@pytest.mark.parametrize(
    ("n", "alone"), [(24, (8, 4)), (60, (3, 6)), (60, (20,)), (200, (40, 0, 30)), (1000, (200,)), (1000, (50,) * 4)]
)
def test_lone_users_hold_no_shares_and_those_of_a_relay_may_all_be_lost(n: int, alone: tuple[int, ...]) -> None:
    """Lone users of the others follow the protocol, as their relays do."""
    secure, T = Secure(0.1), n // 10
    chosen = secure.degree(n, n, alone)
    k, t, holders = chosen.neighbors, chosen.threshold, n - sum(alone)
    assert n * hypergeom.sf(t - 1, n - 1, T, k) <= 2**-40 * (1 + 1e-6), "no user has t neighbors who collude"
    assert t <= holders - 1
    if k < n - 1:
        assert n**2 / 2 * (0.3 + (T + max(alone)) / n) ** k <= 2**-40, "others are connected"
        held = np.arange(k + 1)
        few = hypergeom.pmf(held, n - 1, holders - 1, k) @ binom.cdf(t - 1, held, 0.7)
        assert n * few <= 2**-20, "t neighbors hold shares and answer"
    assert secure.fewest(n, n, alone) >= T + max(alone) + 2
    assert secure.accepted(n, n, k) == chosen, "users who know n and k know t"


def test_networks_with_too_many_lone_users_are_refused() -> None:
    """Unless nobody has two relays: no user is then safe from a lying relay, and all hold shares."""
    for many, right in ((0, True), (8, True), (17, True), (21, False), (24, True)):
        G = np.ones((2, 24), np.uint8)
        G[1, : many // 2] = G[0, many // 2 : many] = 0
        assert lone(G).sum() == (many if many < 24 else 0)
        if right:
            Secure().check(24, G)
        else:
            with pytest.raises(ConfigError, match=f"only one relay hears {many} of K=24"):
                Secure().check(24, G)


def test_a_user_takes_no_number_of_neighbors_that_cannot_be_right() -> None:
    secure = Secure()
    assert [secure.accepted(24, 24, k) for k in (0, 22, 24)] == [None] * 3
    assert [secure.accepted(n, 24, 23) for n in (-1, 0, 23, 25)] == [None] * 4
    assert secure.accepted(1000, 1000, 256) is None, "there are 255 shares at most"


@pytest.mark.parametrize(("n", "k"), [(8, 2), (9, 4), (10, 6), (6, 5)])
def test_only_two_runs_of_missing_users_cut_the_circle(n: int, k: int) -> None:
    around = circle(n, k)
    assert all(len({*row, place}) == k + 1 for place, row in enumerate(around.tolist()))
    for place, row in enumerate(around.tolist()):
        assert [around[j, k - 1 - q] for q, j in enumerate(row)] == [place] * k
    graph = nx.Graph((place, other) for place, row in enumerate(around.tolist()) for other in row)
    for missing in (set(each) for size in range(n - 1) for each in combinations(range(n), size)):
        left = graph.subgraph(set(range(n)) - missing)
        there = [place for place in range(n) if place not in missing]
        gaps = np.diff([*there, there[0] + n]) - 1
        cut = k < n - 1 and (gaps >= k // 2).sum() >= 2
        assert nx.is_connected(left) == (not cut)


@pytest.mark.parametrize(("K", "n"), [(20, 20), (20, 7), (20, 3), (200, 150), (1000, 200), (1000, 102), (1000, 50)])
def test_all_colluders_may_be_among_those_who_take_part(K: int, n: int) -> None:
    """Others drop out, colluders stay: whoever takes part has fewer than t neighbors that collude."""
    secure, T = Secure(0.1), min(K // 10, n - 2)
    chosen = secure.degree(n, K)
    assert n * hypergeom.sf(chosen.threshold - 1, n - 1, T, chosen.neighbors) <= 2**-40 * (1 + 1e-6)
    assert secure.fewest(n, K) >= T + 2


@pytest.mark.parametrize(
    ("K", "sampled", "n"), [(1000, 100, 100), (1000, 200, 200), (1000, 100, 80), (10_000, 100, 90)]
)
def test_colluders_cannot_choose_to_be_sampled(K: int, sampled: int, n: int) -> None:
    """Of those sampled, others may drop out."""
    secure = Secure(0.1, sampled=sampled)
    most = secure.colluders(n, K)
    assert hypergeom.sf(most, K, K // 10, sampled) <= 2**-40 * (1 + 1e-6)
    assert hypergeom.sf(most - 1, K, K // 10, sampled) > 2**-40 * (1 - 1e-6)
    assert secure.colluders(sampled + 1, K) == min(K // 10, sampled - 1)


def test_settings_that_protect_nobody_are_refused_or_raised() -> None:
    assert Secure(0.2, least=1).fewest(10, 10) == 4
    assert Secure(0.2, least=7).fewest(10, 10) == 7
    assert Secure(0.29).colluders(100, 100) == 29
    for secure in (Secure(0.9), Secure(0.1, least=11), Secure(1.0), Secure(-0.1)):
        with pytest.raises(ConfigError, match="colluding"):
            secure.check(10, np.ones((1, 10)))
    with pytest.raises(ConfigError, match="2 of K=20 users in a round"):
        Secure(sampled=2).check(20, np.ones((1, 20)))


@pytest.mark.parametrize("K", [3, 5, 9])
def test_a_share_of_colluders_that_is_nobody_is_refused_with_the_least_that_is_somebody(K: int) -> None:
    with pytest.raises(ConfigError, match="colluding") as error:
        Secure().check(K, np.ones((1, K)))
    remedy = float(str(error.value).split("set colluding=")[1].split(",")[0])
    for accepted in (remedy, 0.0):
        Secure(accepted).check(K, np.ones((1, K)))
    assert Secure(remedy).colluders(K, K) == 1
    Secure().check(10, np.ones((1, 10)))
