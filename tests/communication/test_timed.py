"""Seconds of a round over access links: what has to cross one narrow link, and how often nodes wait for each other."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import yaml
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from hmtl.coding import AggregatorSet
from hmtl.communication import TIERS, CodedHierarchical, Communicator, InProcess, Network, prediction
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER
from hmtl.communication.flows.ivs import UNCODED, IVs
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.prediction import by_seconds, dry_round, predict
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.secure_costs import added_bits
from hmtl.communication.timed import FRAME
from hmtl.errors import ConfigError
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers
from hmtl.testing.topologies import topologies
from hmtl.topology import Names, Topology, any_r

V, WIDE, NARROW = 1e9, 1e18, 1e6  # bits of a row; bit/s
M = 64  # numbers in a row


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


def sent(recipe, t, network):
    """Return the rows on each link of each tier, counted by the ledger of a round."""
    ledger = dry_round(recipe, t, network, M).ledger
    return {tier: ledger.per_link(tier)[:, 0] / (64 * M) for tier in TIERS}


@given(topologies(max_H=4, max_K=12), st.data())
def test_what_crosses_the_narrow_link_takes_its_time(tmp_path_factory, t, data):
    homes = np.array_split(np.arange(t.K), data.draw(st.integers(1, min(3, t.K))))
    recipe = data.draw(
        st.sampled_from(
            [
                UNCODED,
                IVs(aggregators="all"),
                IVs(aggregators=["server", 0]),
            ]
        )
    )
    assume(recipe.aggregators != ["server", 0] or t.G[0].any())  # or else the server alone aggregates
    i, n = data.draw(st.integers(0, t.H - 1)), data.draw(st.integers(0, len(homes) - 1))
    narrow = data.draw(
        st.sampled_from(
            [
                *(("server", "", key) for key in ("up_bps", "down_bps")),
                *(("relays", i, key) for key in ("up_bps", "down_bps")),
                *(("hosts", n, key) for key in ("up_bps", "down_bps")),
            ]
        )
    )
    network = Network(medium="unicast", links=file_of(tmp_path_factory.mktemp("links"), t, homes, [narrow]))
    _, up, down, _ = sent(recipe, t, network).values()
    plain = recipe is UNCODED  # users send their row to one relay alone
    near = t.G * (np.arange(t.H) < (1 if recipe.aggregators == ["server", 0] else t.H))[:, None]
    delivers = np.where(near.any(axis=0), near, t.G)  # aggregators, to users whom they hear
    rows = {
        ("server", "up_bps"): down.sum(),
        ("server", "down_bps"): up.sum(),
        ("relays", "up_bps"): up[i]
        + (delivers[i] * (delivers.sum(axis=0) == 1)).sum(),  # others deliver the other models
        ("relays", "down_bps"): down[i] + (up[i] if plain else t.G[i].sum()),
        ("hosts", "up_bps"): len(homes[n]) if plain else t.degrees[homes[n]].sum(),
        ("hosts", "down_bps"): len(homes[n]),
    }
    expected = V / NARROW * rows[narrow[0], narrow[2]]
    assert predict(recipe, t, network, V) == pytest.approx(expected, rel=1e-3, abs=1)


@given(topologies(max_H=4, max_K=12))
@examples(20)
def test_latency_counts_once_for_each_wait(tmp_path_factory, t):
    path = file_of(tmp_path_factory.mktemp("links"), t, [range(t.K)], latency=0.5)
    network = Network(medium="unicast", links=path)
    # IVs, report, attendance, [combinations, broadcast, digests,] verdict, models; uncoded, relays also forward
    waits = {6: UNCODED, 8: IVs(aggregators="all")}
    coded = len(t.active) > 1 and bool((t.core.sum(axis=1) < len(t.present)).any())
    for count, recipe in waits.items():
        expected = count if count == 6 or coded else 6
        assert predict(recipe, t, network, 64.0) == pytest.approx(expected, rel=1e-6)


def test_sums_wait_no_longer_however_large_they_are(tmp_path):
    t, times = any_r(10, 5, 3, 0), {}
    for V, latency in product((64.0, 8e8), (0.0, 0.5)):
        network = Network(medium="broadcast", links=file_of(tmp_path, t, [range(10)], latency=latency))
        times[V, latency] = predict(SumsOfRows(), t, network, V)
    assert times[64.0, 0.5] - times[64.0, 0.0] == pytest.approx(times[8e8, 0.5] - times[8e8, 0.0], rel=1e-3)


def test_a_broadcast_leaves_once(tmp_path):
    t = any_r(12, 3, 2, 0)
    path = file_of(tmp_path, t, [range(12)], [("server", "", "up_bps")])
    recipe = IVs(aggregators="all")
    for medium in ("broadcast", "unicast"):
        rows = sent(recipe, t, Network(medium=medium))["server_to_relays"].sum()
        assert predict(recipe, t, Network(medium=medium, links=path), V) == pytest.approx(V / NARROW * rows, rel=1e-2)


@pytest.mark.slow
def test_auto_takes_the_fastest_of_all_and_a_search_is_no_better(tmp_path, monkeypatch):
    t = any_r(12, 3, 2, 1)
    for n, narrow in enumerate([("relays", 0, "up_bps"), ("relays", 2, "down_bps"), ("server", "", "down_bps")]):
        (folder := tmp_path / str(n)).mkdir()
        network = Network(medium="unicast", links=file_of(folder, t, [range(12)], [narrow], latency=0.01))
        everything = by_seconds(IVs(), t, network, 1e6)
        best, seconds = next(iter(everything.items()))
        assert seconds == min(everything.values())
        assert len(everything) == 2 * 7 + 1
        for nodes in (AggregatorSet((), True), AggregatorSet((0, 1, 2), False)):
            assert everything[nodes] == predict(IVs(aggregators=nodes.setting), t, network, 1e6)
        chosen = CodedHierarchical(t, network).for_rows(1e6)
        assert AggregatorSet(chosen.planner.preferred, chosen.planner.server) == best
        with monkeypatch.context() as few:
            few.setattr(prediction, "MOST_ENUMERATED", 0)
            found = by_seconds(IVs(), t, network, 1e6)
        assert min(found.values()) >= seconds


def test_a_training_round_takes_as_long_as_predicted(tmp_path):
    t = any_r(12, 3, 2, 0)
    network = Network(medium="unicast", links=file_of(tmp_path, t, [range(5), range(5, 12)], latency=0.01))
    for recipe in (UNCODED, IVs(aggregators=[1])):
        communicator = Communicator(t, network, recipe)
        communicator.round(0, ScriptedUsers([random_numbers(0, 12, M, None)], [set()], 0), ScriptedAggregator(12, M))
        assert communicator.seconds() == pytest.approx(predict(recipe, t, network, 64 * M), rel=1e-12)
        assert communicator.uncoded_seconds() == pytest.approx(predict(UNCODED, t, network, 64 * M), rel=1e-12)


LINK = "{up_bps: 1e6, down_bps: 1e6, latency_s: 0}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read"),
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


class Elsewhere(InProcess):
    """Links like those between processes, which do not know what their messages take."""


def test_a_round_is_predicted_once(tmp_path, monkeypatch):
    """Links between processes do not know the seconds of a round; rounds alike take as long."""
    t, played = any_r(6, 3, 2, 0), []
    network = Network(links=file_of(tmp_path, t, [range(6)], latency=0.01))
    communicator = Communicator(t, network, IVs(aggregators="all"), Elsewhere)
    users = ScriptedUsers([random_numbers(n, 6, M, None) for n in range(3)], [set()] * 3, 0)
    monkeypatch.setattr(prediction, "predict", lambda *args: played.append(args) or predict(*args))
    seconds = []
    for n in range(3):
        communicator.round(n, users, ScriptedAggregator(6, M))
        seconds.append((communicator.seconds(), communicator.uncoded_seconds()))
    assert len(set(seconds)) == 1
    assert len(played) == 2


@pytest.mark.slow
@examples(15)
@given(topologies(max_H=3, max_K=12), st.data())
def test_secure_sums_take_their_messages_and_waits(tmp_path_factory, t, data):
    """Users and server exchange keys, shares and reveal: 18 hops more than the 6 of plain sums, each over two links."""
    assume(t.K > 1 and set(t.active) == set(range(t.H)))
    folder, secure = tmp_path_factory.mktemp("links"), SumsOfRows(secure=Secure(0.0))
    homes = np.array_split(np.arange(t.K), data.draw(st.integers(1, 2)))
    waits = Network(links=file_of(folder, t, homes, latency=1.0))
    hops = [predict(recipe, t, waits, V) / 2 for recipe in (SumsOfRows(aggregators="server"), secure)]
    assert hops == pytest.approx([6, 24])
    hosts = Network(links=file_of(folder, t, homes, [("hosts", 0, "up_bps")]))
    rounds = [dry_round(secure, t, hosts, M, links) for links in (InProcess, Elsewhere)]
    assert rounds[0].seconds() == pytest.approx(rounds[1].seconds())
    narrow = Network(medium="unicast", links=file_of(folder, t, homes, [("server", "", "down_bps")]))
    whole = SumsOfRows(sums="whole", aggregators="server")
    plain, masked = (predict(each, t, narrow, 64 * 64) for each in (whole, replace(whole, secure=Secure(0.0))))
    added = added_bits(t, Secure(0.0)).values()
    bits = sum(int(by_tier[RELAYS_TO_SERVER].sum()) for by_tier in added) + t.H * 5 * 8 * FRAME
    assert (masked - plain) * NARROW == pytest.approx(bits)
