"""Routes over access links against an enumeration of all, with times by hand."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import yaml

from hmtl.communication import Communicator, Network
from hmtl.communication.flows.ivs import UNCODED
from hmtl.communication.flows.routes import Trip
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.prices.comparison import comparison
from hmtl.communication.prices.pricing import price
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers, same_bits
from hmtl.topology import Topology, any_r

WIDE = 1e9  # bit/s


def link(up, down, latency=0.0):
    return {"up_bps": up, "down_bps": down, "latency_s": latency}


def network_of(folder, server, relays, hosts, **settings):
    """Return a network with these links; a host is a link and its users."""
    table = {
        "server": server,
        "relays": dict(enumerate(relays)),
        "hosts": {f"h{n}": {**each, "users": list(map(int, users))} for n, (each, users) in enumerate(hosts)},
    }
    (folder / "links.yaml").write_text(yaml.safe_dump(table))
    return Network(**{"medium": "unicast", **settings}, links=str(folder / "links.yaml"))


def two_relays(folder, K=10, **slow):
    """Relay 0 is slow in one way, relay 1 is fast; both hear everybody."""
    relays = [{**link(WIDE, WIDE), **slow}, link(WIDE, WIDE)]
    return Topology(np.ones((2, K))), network_of(
        folder, link(WIDE, WIDE), relays, [(link(WIDE, WIDE), [k]) for k in range(K)]
    )


def uneven(folder, seed, most=8):
    """Draw users heard by one relay or by several, hosts of several users, and unequal links of all nodes."""
    rng = np.random.default_rng(seed)
    H, K = int(rng.integers(2, 5)), int(rng.integers(4, most + 1))
    G = np.zeros((H, K), int)
    for k in range(K):
        G[rng.choice(H, rng.integers(1, min(H, 3) + 1), replace=False), k] = 1
    N = int(rng.integers(1, K + 1))
    homes, slowest = np.r_[np.arange(N), rng.integers(0, N, K - N)], rng.choice([5, 6, 7])

    def drawn(wide=False):
        rates = [WIDE, WIDE] if wide else 10 ** rng.uniform(slowest, 8, 2)
        return link(*map(float, rates), float(rng.uniform(0, 0.05)))

    server, hosts = drawn(rng.random() < 0.5), bool(rng.random() < 0.5)
    relays, links = [drawn() for _ in range(H)], [(drawn(hosts), np.flatnonzero(homes == n)) for n in range(N)]
    return Topology(G), network_of(folder, server, relays, links), (server, relays, links)


def one_way(table, bits, relays, up):
    """Return the time of rows by these relays to the server, or of models back: that of each hop's busiest node."""
    server, middle, hosts = table
    here, there = ("up_bps", "down_bps") if up else ("down_bps", "up_bps")
    carried = Counter(relays)
    outer = [bits * len(users) / link[here] for link, users in hosts]
    outer += [bits * n / middle[i][there] for i, n in carried.items()]
    inner = [bits * n / middle[i][here] for i, n in carried.items()]
    return max(outer) + max(*inner, bits * len(relays) / server[there])


def enumerated(t, table, bits):
    """Return the least time over all relays of each user, up and down; only counts by relay matter."""
    choices = {tuple(sorted(relays)): relays for relays in product(*(t.relays_of(k) for k in range(t.K)))}
    return [min(one_way(table, bits, relays, up) for relays in choices.values()) for up in (True, False)]


def check_against_enumeration(folder, seed, most):
    t, network, table = uneven(folder, seed, most)
    bits = float(10 ** np.random.default_rng(seed).uniform(5.5, 7.5))
    access, rng = network.access(t), np.random.default_rng(seed)
    trips = [Trip(access, t.G, up) for up in (True, False)]
    relays = np.array([rng.choice(t.relays_of(k)) for k in range(t.K)])
    for up, trip, best in zip((True, False), trips, enumerated(t, table, bits), strict=True):
        assert bits * trip.seconds(relays) == pytest.approx(one_way(table, bits, relays.tolist(), up))
        assert bits * trip.bound <= best * (1 + 1e-9)
        assert one_way(table, bits, trip.fastest().tolist(), up) <= 1.02 * best


@pytest.mark.parametrize("seed", range(4))
def test_forwarding_takes_little_longer_than_the_best_of_all_routes(tmp_path, seed):
    check_against_enumeration(tmp_path, seed, 6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_forwarding_takes_little_longer_than_the_best_of_all_routes_on_40_networks(tmp_path, seed):
    check_against_enumeration(tmp_path, 100 + seed, 8)


SLOW = [{"up_bps": 1e6}, {"down_bps": 1e6}, {"latency_s": 1.0}]


@pytest.mark.parametrize("slow", SLOW, ids=lambda slow: next(iter(slow)))
def test_a_slow_relay_serves_nobody(tmp_path, slow):
    """Forwarding takes what it takes over the fast relay alone, apart from frames that the slow one sends and gets."""
    t, network = two_relays(tmp_path, **slow)
    alone, m = t.restricted(relays=[1]), 10**6 // 64
    waits = 6 * slow.get("latency_s", 0)
    assert price(UNCODED, t, network, m).seconds <= 1.02 * price(UNCODED, alone, network, m).seconds + waits + 0.01
    if "up_bps" in slow:  # all relays hear terms
        sums = SumsOfRows(aggregators="server")
        assert price(sums, t, network, m).seconds <= 1.02 * price(sums, alone, network, m).seconds + 0.01


class Means(ScriptedAggregator):
    """Each user's model is the mean of the users who were heard."""

    def update(self, users, ivs):
        return ivs.mean(dim=0).expand(len(self.state["last"]), -1).clone()


def test_all_users_whom_a_present_relay_hears_count_and_get_their_models(tmp_path):
    """Over links of their own, users send to one relay; if it is absent, to another; if all are, to nobody."""
    t, m = any_r(9, 4, 2, 3), 5
    G = t.G.copy()
    G[:, 0] = [0, 0, 1, 0]
    t, away = Topology(G), [set(), {2}, {0, 1}, {0, 1, 2, 3}]
    relays = [link(10.0 ** (6 + i % 3), 1e7) for i in range(4)]
    unequal = network_of(
        tmp_path, link(WIDE, WIDE), relays, [(link(1e7, 1e7), range(4)), (link(1e7, 1e8), range(4, 9))]
    )
    models = []
    for network in (Network(medium="unicast"), unequal):
        users = ScriptedUsers([random_numbers(n, 9, m, "float") for n in range(4)], [set()] * 4, 0)
        users.row_layout = replace(users.row_layout, answers=(0,))
        communicator, means, got = Communicator(t, network, UNCODED), Means(9, m), []
        for n, absent in enumerate(away):
            outcome = communicator.round(n, users, means, absent)
            near = [k for k in range(9) if set(t.relays_of(k)) - absent]
            assert set(outcome.users) == set(near) - users.idle
            assert users.models.keys() == set(near)
            got.append(dict(users.models))
        models.append(got)
    for plain, by_rates in zip(*models, strict=True):
        assert all(same_bits(plain[k], by_rates[k]) for k in plain)


@pytest.mark.parametrize("seed", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_plan_compares_with_the_best_forwarding(tmp_path, seed):
    """Coding is recommended only if it takes less time than forwarding by the best routes of an enumeration."""
    t, network, table = uneven(tmp_path, seed, 5)
    best, plan = sum(enumerated(t, table, 1e6)), comparison(t, network, 10**6)
    hosts = {int(k): link["latency_s"] for link, users in table[2] for k in users}
    pairs = [hosts[k] + table[1][i]["latency_s"] for i, k in zip(*t.G.nonzero(), strict=True)]
    inner = [table[1][i]["latency_s"] + table[0]["latency_s"] for i in t.active]
    waits = 2 * max(pairs) + 4 * max(inner)
    assert plan.uncoded_bound <= (best + waits) * 1.01  # with overhead
    assert best + waits <= plan.uncoded <= 1.03 * best + waits
    assert plan.choices[0][1] <= plan.uncoded * (1 + 1e-9)
    assert {str(who): seconds for who, seconds in plan.choices}["server"] == plan.uncoded
