"""Seconds of a round over access links: by hand, by what crosses one narrow link, and by who waits for whom."""

from dataclasses import replace
from itertools import groupby, product
from pathlib import Path

import numpy as np
import pytest
import yaml
from adding import fit
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from hmtl.coding import AggregatorSet
from hmtl.communication import CodedHierarchical, Communicator, InProcess, Network
from hmtl.communication.accounting.access import Access, Paths
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER
from hmtl.communication.flows.ivs import UNCODED, IVs
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.prices import sums_or_ivs
from hmtl.communication.prices.pricing import _DryAggregator, _DryUsers, price
from hmtl.communication.prices.sums_or_ivs import cheapest, chosen
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.terms import Words
from hmtl.errors import ConfigError
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers
from hmtl.testing.topologies import topologies
from hmtl.topology import Names, Topology, any_r

M = 10**6  # numbers in a row
V, WIDE, NARROW = 64.0 * M, 1e18, 1e6  # bits of a row; bit/s


def file_of(folder, t, homes, narrow=(), latency=0.0):
    """Write a file in which only the links `narrow`, such as ("relays", 1, "up_bps"), are narrow."""

    def link(part, name):
        rates = {key: NARROW if (part, name, key) in narrow else WIDE for key in ("up_bps", "down_bps")}
        return rates | {"latency_s": latency}

    table = {
        "server": link("server", ""),
        "relays": {i: link("relays", i) for i in range(t.H)},
        "hosts": {f"h{n}": {**link("hosts", n), "users": list(map(int, users))} for n, users in enumerate(homes)},
    }
    path = folder / "links.yaml"
    path.write_text(yaml.safe_dump(table))
    return str(path)


def test_by_hand() -> None:
    """Users 0 and 1 share a host; relay 0 hears both, relay 1 hears users 1 and 2, and relay 2 takes no part."""
    links = [[100, 50, 0.1], [10, 20, 1], [5, 40, 2], [1, 1, 9], [8, 16, 3], [2, 4, 4]]  # server, relays, hosts
    access = Access(np.array(links, np.float64), np.array([0, 0, 1]))
    near = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], np.uint8)
    served = np.array([[1, 0.5, 0], [0, 0.5, 1], [0, 0, 0]])
    bits = {
        "users_to_relays": [80, 160, 40],
        "relays_to_server": [30, 10, 0],
        "server_to_relays": [40, 0, 0, 200],
        "relays_to_users": [160, 320, 8, 40, 0, 0],
    }
    seconds = [
        max((80 + 2 * 160) / 8, 40 / 2, (80 + 160) / 20, (160 + 40) / 40),  # host 0 sends user 1's row twice
        max(30 / 10, 10 / 5, 40 / 50),
        max(240 / 100, (40 + 200) / 20, 200 / 40),
        max((160 + 160 + 40) / 10, (160 + 8) / 5, (160 + 320 + 40) / 16, 8 / 4),  # relay 0 reaches host 0 alone
    ]
    waits = 1 * (2 + 4) + 3 * (2 + 0.1) + 2 * (2 + 0.1) + 1 * (2 + 4)  # relay 1 and host 1, relay 1 and server
    assert access.seconds(bits, Paths(near, near, served, np.array([1, 3, 2, 1]))) == pytest.approx(
        sum(seconds) + waits
    )


@given(topologies(max_H=4, max_K=12), st.data())
def test_what_crosses_the_narrow_link_takes_its_time(tmp_path_factory, t, data):
    homes = np.array_split(np.arange(t.K), data.draw(st.integers(1, min(3, t.K))))
    recipe = data.draw(st.sampled_from([UNCODED, IVs(aggregators="all"), IVs(aggregators=["server", 0])]))
    assume(recipe.aggregators != ["server", 0] or t.G[0].any())  # or else the server alone aggregates
    i, n = data.draw(st.integers(0, t.H - 1)), data.draw(st.integers(0, len(homes) - 1))
    ends = [("server", ""), ("relays", i), ("hosts", n)]
    narrow = (*data.draw(st.sampled_from(ends)), data.draw(st.sampled_from(["up_bps", "down_bps"])))
    network = Network(medium="unicast", links=file_of(tmp_path_factory.mktemp("links"), t, homes, [narrow]))
    priced = price(recipe, t, network, M)
    _, up, down, _ = ((bits / V).round(2) for bits in priced.bits.values())
    plain = recipe is UNCODED  # users send their row to one relay alone
    near = t.G * (np.arange(t.H) < (1 if recipe.aggregators == ["server", 0] else t.H))[:, None]
    delivers = np.where(near.any(axis=0), near, t.G)  # aggregators, to users whom they hear
    only = (delivers[i] * (delivers.sum(axis=0) == 1)).sum()  # others deliver the other models
    forced = (t.G[i] * (t.degrees == 1)).sum()  # others forward the other rows
    rows = {
        ("server", "up_bps"): down.sum(),
        ("server", "down_bps"): up.sum(),
        ("relays", "up_bps"): (forced if plain else up[i]) + only,
        ("relays", "down_bps"): 2 * forced if plain else down[i] + t.G[i].sum(),
        ("hosts", "up_bps"): len(homes[n]) if plain else t.degrees[homes[n]].sum(),
        ("hosts", "down_bps"): len(homes[n]),
    }
    assert priced.seconds == pytest.approx(V / NARROW * rows[narrow[0], narrow[2]], rel=1e-3, abs=1)


class Tapped(InProcess):
    """Links that note the tier of each message, on which rows go ahead of reports, as between processes."""

    streams = False

    def __init__(self, ledger) -> None:
        super().__init__(ledger)
        self.tiers = []

    def send(self, message) -> None:
        super().send(message)
        self.tiers.append(message.tier)


@examples(12)
@given(topologies(max_H=4, max_K=12))
def test_latency_counts_as_often_as_messages_turn(tmp_path_factory, t):
    """A tap on a round counts how often messages of another tier follow; each takes half a second over both ends."""
    path = file_of(tmp_path_factory.mktemp("links"), t, [range(t.K)], latency=0.25)
    network = Network(medium="unicast", links=path)
    recipes = [UNCODED, IVs(aggregators="all"), SumsOfRows()]
    recipes += [SumsOfRows(secure=Secure(0.0))] if fit(Secure(0.0), t) and t.G.any(axis=1).all() else []
    for recipe in recipes:
        tapped = Communicator(t, Network(medium="unicast"), recipe, Tapped)
        tapped.round(0, _DryUsers(t.K, 1, Words(1) if recipe.adds else None), _DryAggregator(1 if recipe.adds else t.K))
        turns = sum(1 for _ in groupby(tapped._links.tiers))
        if recipe.secure:  # if no relay has to pass shares to others, the server still waits for what it says of that
            assert turns in (22, 24)
            turns = 24
        assert price(recipe, t, network, 1).seconds == pytest.approx(turns / 2, rel=1e-6)


def test_segments_wait_for_each_other(tmp_path):
    """Long rows are coded in segments: relays send the next one after the server's broadcast of this one."""
    t = any_r(10, 5, 3, 0)
    network = Network(links=file_of(tmp_path, t, [range(10)], latency=0.5))
    short, long = (price(IVs(aggregators="all"), t, network, m).seconds for m in (M // 100, 8 * M))
    assert short == pytest.approx(8, rel=1e-6)
    assert long == pytest.approx(6 + 2 * np.ceil(10 * 64e6 / 2**24), abs=2)
    sums = [price(SumsOfRows(), t, network, m).seconds for m in (1, 8 * M)]
    assert sums == pytest.approx([6, 6], rel=1e-3)


def test_a_broadcast_leaves_once(tmp_path):
    t = any_r(12, 3, 2, 0)
    path, recipe = file_of(tmp_path, t, [range(12)], [("server", "", "up_bps")]), IVs(aggregators="all")
    for medium in ("broadcast", "unicast"):
        rows = price(recipe, t, Network(medium=medium), M).bits["server_to_relays"].sum()
        assert price(recipe, t, Network(medium=medium, links=path), M).seconds == pytest.approx(rows / NARROW, rel=1e-2)


@pytest.mark.slow
def test_auto_takes_the_fastest_of_all_and_a_search_is_no_better(tmp_path, monkeypatch):
    t = any_r(12, 3, 2, 1)
    for n, narrow in enumerate([("relays", 0, "up_bps"), ("relays", 2, "down_bps"), ("server", "", "down_bps")]):
        (folder := tmp_path / str(n)).mkdir()
        network = Network(medium="unicast", links=file_of(folder, t, [range(12)], [narrow], latency=0.01))
        everything = {nodes: each.seconds for nodes, each in cheapest(IVs(), t, network, 10_000).items()}
        best, seconds = next(iter(everything.items()))
        assert seconds == min(everything.values())
        assert len(everything) == 2 * 7 + 1
        for nodes in (AggregatorSet((), True), AggregatorSet((0, 1, 2), False)):
            assert everything[nodes] == price(IVs(aggregators=nodes.setting), t, network, 10_000).seconds
        made = chosen(CodedHierarchical(t, network), None, 10_000, random_numbers(0, 1, 1, None).dtype)
        assert AggregatorSet(made.planner.preferred, made.planner.server) == best
        with monkeypatch.context() as few:
            few.setattr(sums_or_ivs, "MAX_PRICED_RELAYS", 0)
            found = cheapest(IVs(), t, network, 10_000)
        assert min(each.seconds for each in found.values()) >= seconds


def test_a_training_round_takes_as_long_as_its_price(tmp_path):
    """Also the time that it would take uncoded, whatever carries it."""
    t, m = any_r(12, 3, 2, 0), 64
    network = Network(
        medium="unicast", links=file_of(tmp_path, t, [range(5), range(5, 12)], [("relays", 1, "up_bps")], 0.01)
    )
    plain = price(UNCODED, t, network, m).seconds
    for recipe, links in product((UNCODED, IVs(aggregators=[1])), (InProcess, Tapped)):
        communicator = Communicator(t, network, recipe, links)
        users = ScriptedUsers([random_numbers(0, 12, m, None)], [set()], 0)
        users.row_layout = replace(users.row_layout, answers=(0, 1))
        communicator.round(0, users, ScriptedAggregator(12, m))
        assert communicator.seconds() == pytest.approx(price(recipe, t, network, m).seconds, rel=0.05)
        assert communicator.uncoded_seconds() == pytest.approx(plain, rel=0.05)


@given(topologies(max_H=3, max_K=12), st.data())
@examples(8)
def test_what_secure_sums_add_crosses_the_narrow_link(tmp_path_factory, t, data):
    assume(fit(Secure(0.0), t) and t.G.any(axis=1).all())
    folder, whole = tmp_path_factory.mktemp("links"), SumsOfRows(sums="whole")
    homes = np.array_split(np.arange(t.K), data.draw(st.integers(1, 2)))
    network = Network(medium="unicast", links=file_of(folder, t, homes, [("server", "", "down_bps")]))
    masked = price(SumsOfRows(sums="whole", secure=Secure(0.0)), t, network, 64)
    added = sum(tiers[RELAYS_TO_SERVER] for tiers in masked.added.values())
    assert (masked.seconds - price(whole, t, network, 64).seconds) * NARROW == pytest.approx(added)


def test_without_hosts_nothing_limits_users(tmp_path):
    t, recipe = any_r(12, 3, 2, 0), IVs(aggregators="all")
    path = Path(file_of(tmp_path, t, [range(12)], [("relays", 1, "up_bps")]))
    table = yaml.safe_load(path.read_text())
    whole = price(recipe, t, Network(links=str(path)), M)
    del table["hosts"]
    path.write_text(yaml.safe_dump(table))
    alone = price(recipe, t, Network(links=str(path)), M)
    assert alone.seconds == pytest.approx(whole.seconds, rel=1e-6)
    assert alone.links[:4] == pytest.approx(whole.links[:4])


def test_names_match_in_any_case_if_only_one_does(tmp_path):
    path, names = tmp_path / "links.yaml", Names(("roof", "ROOF"), ("alice",))
    path.write_text(f"server: {LINK}\nrelays: {{Roof: {LINK}}}\nhosts: {{ALICE: {LINK}}}")
    assert Network(links=str(path)).access(Topology([[1], [1]], names=names)).names == [
        "server",
        "roof",
        "ROOF",
        "host ALICE",
    ]
    assert names.numbers(["ROOF", "Roof", "Server", "0-2"]) == [1, "Roof", "server", 0, 1, 2]


LINK = "{up_bps: 1e6, down_bps: 1e6, latency_s: 0}"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("price: 2", r"relays\.0\.price is not a key of this file\. Did you mean price_per_gb\?"),
        ("up_mbps: 2", "Did you mean up_bps"),
        ("latency_ms: 2", "Did you mean latency_s"),
        ("users: [0]", "Choose from up_bps, down_bps, latency_s, price_per_gb"),
        ("price_per_gb: 2 EUR", r"relays\.0\.price_per_gb must be a price.* not '2 EUR'"),
        ("price_per_gb: [1, -1]", r"relays\.0\.price_per_gb must be"),
        *((f"up_bps: {x}", r"relays\.0\.up_bps must be a rate in bit/s") for x in ("10 Mbit/s", "0", ".inf", "")),
        ("latency_s: 30 ms", r"relays\.0\.latency_s must be a time in seconds.* not '30 ms'"),
    ],
)
def test_wrong_numbers_and_keys_say_what_they_should_be(tmp_path, wrong, message):
    link = yaml.safe_load(LINK) | yaml.safe_load(wrong)
    (tmp_path / "links.yaml").write_text(yaml.safe_dump({"server": yaml.safe_load(LINK), "relays": {0: link}}))
    with pytest.raises(ConfigError, match=message):
        Network(links=str(tmp_path / "links.yaml")).access(Topology([[1]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read"),
        (f"server: {LINK}\nrelay: {{0: {LINK}}}", "relay is not a key of this file. Did you mean relays"),
        ("server: {}", "server.up_bps"),
        (f"server: {LINK}\nrelays: {{0: {{up_bps: 1}}}}\nhosts: {{0: {LINK}}}", "relays.0.down_bps"),
        (
            f"server: {LINK}\nrelays: {{0: {LINK.replace('1e6', '0', 1)}}}\nhosts: {{0: {LINK}}}",
            "relays.0.up_bps",
        ),
        (f"server: {LINK}\nrelays: {{barn: {LINK}}}\nhosts: {{0: {LINK}}}", "no link of relay roof"),
        (f"server: {LINK}\nrelays: {{roof: {LINK}}}\nhosts: {{bob: {LINK}}}", "no link of user alice"),
        (f"server: {LINK}\nrelays: [{LINK}]\nhosts: {{0: {LINK}}}", "relays"),
    ],
)
def test_errors_of_files(tmp_path, text, message):
    path = tmp_path / "links.yaml"
    path.write_text(text)
    t = Topology([[1]], names=Names(("roof",), ("alice",)))
    with pytest.raises(ConfigError, match=message):
        Network(links=str(path)).access(t)
