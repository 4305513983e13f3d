"""Loads, seconds and bits of every choice of aggregators, against networks computed by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import CODED_SCHEMES, MEDIA
from hmtl.communication import TIERS, Communicator, IVs, Network, Sums
from hmtl.communication.prices import pricing
from hmtl.communication.prices.comparison import comparison
from hmtl.communication.secure.neighbors import Secure
from hmtl.errors import ConfigError
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers
from hmtl.topology import Topology, any_r, from_file, heterogeneous, symmetric

FIG2 = Path(__file__).parents[3] / "experiments" / "network" / "fig2.csv"
V = 64_000_000  # bits of an IV, so that overhead and padding are less than a thousandth of the payload
BROADCAST, UNICAST = Network(2 * V, V), Network(2 * V, V, "unicast")  # 2 and 1 IVs a second


def near(seconds: float) -> Any:
    return pytest.approx(seconds, rel=1e-3)


def test_the_network_of_the_papers_second_figure() -> None:
    compared = comparison(from_file(FIG2), Network(), 1000)
    assert compared.loads["uncoded"] == {"relays_to_server": 10, "server_to_relays": 10}
    assert compared.loads["optimal"] == {"relays_to_server": 7, "server_to_relays": 7}
    assert compared.loads["paper"] == {"relays_to_server": 8.5, "server_to_relays": 7}
    assert compared.loads["equal"] == {"relays_to_server": pytest.approx(8 + 5 / 6), "server_to_relays": 7}
    assert compared.bounds == {"relays_to_server": 6.5, "server_to_relays": 7}
    assert compared.proof == {"relays_to_server": 7, "partition": [[0, 1, 3, 4], [2]]}


def test_seconds_by_hand() -> None:
    compared = comparison(symmetric(20, 5, 3), BROADCAST, V)
    assert compared.seconds["broadcast"]["uncoded"] == near(20 + 40)
    assert compared.seconds["broadcast"]["paper"] == near(20 + 10 + 8)
    assert compared.seconds["unicast"]["paper"] == near(20 + 10 + 5 * 8)
    assert compared.seconds["unicast"]["uncoded"] == near(60)
    assert compared.aggregators["broadcast"].seconds["broadcast"] == near(20 + 8 + 8)
    assert compared.aggregators["unicast"].seconds["unicast"] == near(20 + 28)
    sums, rows = compared.sums, 5 / 3
    assert sums.relays == [0, 1, 2, 3, 4]
    assert (sums.pieces, sums.proven) == (3, True)
    assert sums.cost == pytest.approx(rows)
    assert sums.seconds["broadcast"] == near(10 + rows + 1 + rows / 2)
    assert sums.seconds["unicast"] == near(10 + rows + rows + rows / 2)


def test_a_unicast_last_hop_carries_a_copy_for_each_user() -> None:
    sums = comparison(symmetric(20, 5, 3), Network(2 * V, V, last_hop="unicast"), V).sums
    assert sums.seconds["broadcast"] == near(10 + 5 / 3 + 1 + 10)
    assert sums.seconds["unicast"] == near(10 + 2 * 5 / 3 + 10)


def test_whole_rows_if_shares_gain_nothing() -> None:
    sums = comparison(heterogeneous(20, 4, 2, 0.2), Network(), 1000).sums
    assert (sums.relays, sums.pieces, sums.proven) == ([0, 1, 2, 3], 1, True)


def test_formats_by_hand() -> None:
    """Rows of 10,000 blocks of 64 numbers: of 256 + 16 bits in int4; of 66 numbers of 4 or 9 bits in sums of 20."""
    t, blocks = symmetric(20, 5, 3), 10_000
    formats = comparison(t, Network(1000, 1000), 64 * 64 * blocks, "int4").formats
    plain, narrow, term, total = (blocks * bits for bits in (64 * 64, 272, 66 * 4, 66 * 9))
    assert formats["null"]["uncoded"].bits == near(40 * plain)
    assert formats["int4"]["uncoded"].bits == near(40 * narrow)
    assert formats["int4"]["coded"].bits == near(16 * narrow)
    assert formats["int4"]["coded"].seconds == near(56 * narrow / 1000)
    assert formats["null"]["sums"].bits == near((5 / 3 + 1) * plain)
    assert formats["int4"]["sums"].bits == near((5 / 3 + 1) * total)
    assert formats["int4"]["sums"].seconds == near((20 * term + (5 / 3 + 1 + 5 / 3) * total) / 1000)
    assert "sums" not in comparison(t, Network(), 8192, "float16").formats["float16"]


@pytest.mark.parametrize("medium", MEDIA)
def test_seconds_and_bits_are_those_of_rounds(medium: str) -> None:
    """Of random numbers, which have one further number beside each model."""
    t, m, network = any_r(9, 4, 2, 3), 500, Network(1e6, 1e6, medium)
    compared = comparison(t, network, 64 * m)
    best = compared.aggregators[medium]
    choices = dict.fromkeys(CODED_SCHEMES, "all") | {"uncoded": "server"}
    made = {scheme: Communicator(t, network, IVs(scheme, aggregators=who)) for scheme, who in choices.items()}
    for scheme, each in [*made.items(), ("best", Communicator(t, network, IVs(aggregators=best.nodes.setting)))]:
        users = ScriptedUsers([random_numbers(1, 9, m, None)], [set()], 0)
        users.row_layout = replace(users.row_layout, answers=(0, 1))
        each.round(0, users, ScriptedAggregator(9, m))
        seconds = best.seconds[medium] if scheme == "best" else compared.seconds[medium][scheme]
        assert seconds == pytest.approx(each.seconds(), rel=0.003)
    between = sum(each.ledger.bits(tier).total for tier in TIERS[1:3])
    assert compared.formats["null"]["coded"].bits == pytest.approx(between, rel=0.003)


def test_what_secure_sums_cost() -> None:
    t, network = symmetric(20, 5, 3), Network(2000, 1000)
    plain, secure = comparison(t, network, 1024), comparison(t, network, 1024, "int4", Secure(0.1))
    assert secure.sums == plain.sums
    up, between_up, between_down, down = (sum(bits[tier] for bits in secure.secure["bits"].values()) for tier in TIERS)
    seconds = (up + down) / 2000 + (between_up + between_down) / 1000
    assert secure.secure_sums.seconds["broadcast"] == pytest.approx(plain.sums.seconds["broadcast"] + seconds)
    assert secure.secure_sums.seconds["unicast"] > plain.sums.seconds["unicast"] + seconds  # a copy for each relay
    few, many = secure.formats["int4"]["secure"], secure.formats["int4"]["sums"]
    assert few.bits == pytest.approx(many.bits + between_up + between_down)
    assert few.seconds > many.seconds + seconds  # masked terms are longer


@pytest.mark.parametrize(
    ("settings", "K"),
    [({}, 1), ({"colluding": 0.99}, 20), ({"colluding": -0.1}, 20), ({"colluding": 1.0}, 20), ({"least": 21}, 20)],
)
def test_too_few_users_are_refused(settings: dict[str, Any], K: int) -> None:
    t = any_r(K, 2, 1)
    with pytest.raises(ConfigError):
        Sums(t, secure=True, **settings)
    with pytest.raises(ConfigError):
        comparison(t, Network(), 64, secure=Secure(**settings))


@pytest.mark.parametrize("settings", [{"colluding": 0.2}, {"least": 5}])
def test_settings_of_secure_sums_need_them(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Sums(symmetric(20, 5, 3), **settings)


@pytest.mark.parametrize(
    ("topology", "medium", "relays", "ivs"),
    [
        (symmetric(20, 5, 3), "broadcast", 3, 16),
        (symmetric(20, 5, 3), "unicast", 2, 28),
        (symmetric(20, 5, 2), "unicast", 0, 40),
        (heterogeneous(50, 4, 2, 0.45), "broadcast", 2, 6),
    ],
)
def test_best_aggregators(topology: Topology, medium: str, relays: int, ivs: int) -> None:
    best = comparison(topology, Network(medium=medium), 50_176).aggregators[medium]
    assert len(best.relays) == relays
    assert best.relays_to_server + best.downlinks[medium] == pytest.approx(ivs)
    assert best.bound == best.cost == pytest.approx(ivs)
    assert best.proven


@examples(12)
@given(
    st.integers(0, 100),
    st.integers(1, 3),
    st.sampled_from([{"uplink": "parallel"}, {"uplink_bps": (1e8, 2e7, 1e8, 5e7)}]),
)
def test_bounds_hold(seed: int, r: int, links: dict[str, Any]) -> None:
    compared = comparison(any_r(8, 4, r, seed), Network(**links), 1000)
    for best in compared.aggregators.values():
        assert best.bound <= best.cost * (1 + 1e-9)


def test_unequal_uplinks_by_hand() -> None:
    """Three relays hear one user each, so each relay has to send its own IV, the third at half the speed."""
    topology, slow = symmetric(3, 3, 1), (V, V, V / 2)
    shared = comparison(topology, Network(1e6 * V, V, uplink_bps=slow), V)
    parallel = comparison(topology, Network(1e6 * V, V, uplink_bps=slow, uplink="parallel"), V)
    for scheme, down in (("uncoded", 3), ("optimal", 2)):
        assert shared.seconds["broadcast"][scheme] == near(1 + 1 + 2 + down)
        assert parallel.seconds["broadcast"][scheme] == near(2 + down)


def test_one_relay_needs_no_code() -> None:
    compared = comparison(symmetric(4, 1, 1), Network(), 1000)
    assert compared.loads["uncoded"] == {"relays_to_server": 4, "server_to_relays": 4}
    for scheme in ("optimal", "paper", "equal"):
        assert compared.loads[scheme] == {"relays_to_server": 0, "server_to_relays": 0}


def test_schemes_without_a_plan_are_named_with_the_reason() -> None:
    assert comparison(symmetric(20, 5, 3), Network(), 1000).not_trainable == {}
    compared = comparison(any_r(5000, 5, 3, 0), Network(), 1000)
    assert compared.not_trainable.keys() == {"paper", "equal"}
    assert compared.seconds["broadcast"].keys() == {"uncoded", "optimal"}


def test_links_by_hand(tmp_path: Path) -> None:
    """Plain forwarding of 1 MB: both users are at relay 0, through the link of one host; a GB costs the server 90."""
    path, link = tmp_path / "links.yaml", "{up_bps: 8e6, down_bps: 16e6, latency_s: 0"
    path.write_text(
        f"server: {link}, price_per_gb: [90, 0]}}\nrelays: {{0: {link}}}}}\nhosts: {{h: {link}, users: [0, 1]}}}}"
    )
    compared = comparison(Topology([[1, 1]]), Network(links=str(path)), 8_000_000, fail="each")
    server, relay, host = compared.links["uncoded"]
    assert (server.sent, relay.received, host.sent) == (near(2e6), near(4e6), near(2e6))
    assert (server.seconds, relay.seconds, host.seconds) == (near(2), near(4), near(2))
    assert (server.cost, relay.cost) == (near(2e-3 * 90), 0)
    (cost,) = (cost for (nodes, _), cost in zip(compared.choices, compared.costs, strict=True) if nodes == "server")
    assert cost == near(0.18)
    assert [(each.relay, each.cut_off) for each in compared.failures] == [(None, 0), (0, 2)]
    assert compared.failures[1].seconds == {}


def test_hops_are_parts_of_a_round() -> None:
    for costs in comparison(symmetric(20, 5, 3), BROADCAST, V, "int4").formats.values():
        for cost in costs.values():
            assert sum(seconds for _, seconds in cost.hops.values()) == pytest.approx(cost.seconds)
            assert sum(8 * cost.hops[tier][0] for tier in TIERS[1:3]) == pytest.approx(cost.bits)


@pytest.mark.parametrize("played", [True, False])
def test_failures_are_rounds_without_the_relay(played: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some users have only one relay, and others have to aggregate if one that was to do so fails."""
    t = heterogeneous(20, 4, 2, 0.4)
    assert set(t.degrees) > {1}
    monkeypatch.setattr(pricing, "MAX_PLAYED_SIZE", 10**9 * played)
    compared = comparison(t, BROADCAST, 64 * 4200, fail="each")
    best = compared.aggregators["broadcast"].nodes
    for i, failure in enumerate(compared.failures[1:]):
        assert (failure.relay, failure.cut_off) == (i, sum(t.relays_of(k) == (i,) for k in range(20)))
        for what, recipe in {"uncoded": IVs("uncoded"), "coded": IVs(aggregators=best.setting)}.items():
            communicator = Communicator(t, BROADCAST, recipe)
            users = ScriptedUsers([random_numbers(0, 20, 4200, None)], [set()], 0)
            communicator.round(0, users, ScriptedAggregator(20, 4200), (i,))
            assert failure.seconds[what] == pytest.approx(communicator.seconds(), rel=1e-3)
