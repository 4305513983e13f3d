"""Measured pairs become access links that explain them; nodes in threads measure each other."""

from functools import partial

import pytest
import threads
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hmtl.communication import Network
from hmtl.communication.messages import SERVER, host_name, relay_name
from hmtl.distributed import measuring
from hmtl.distributed.control import Control
from hmtl.distributed.measuring import as_table, measure, take_part
from hmtl.distributed.placement import Placement, names_of
from hmtl.topology import Topology

speeds = st.sampled_from([5e6, 2e7, 1e8])
latencies = st.sampled_from([0.001, 0.005, 0.02])


def exact(links, relays, hosts):
    """What `measure` returns if each flow gets what both ends can carry, and flows at once share a node's link."""
    rates = {}
    pairs = [(SERVER, i) for i in relays] + [(i, host) for i in relays for host in hosts]
    for a, b in pairs:
        rates[f"ping {a}", b] = 2 * (links[a][2] + links[b][2])
        for sender, receiver in ((a, b), (b, a)):
            rates[sender, receiver] = min(links[sender][0], links[receiver][1])
    for node, others in [(SERVER, relays), *((i, hosts) for i in relays), *((host, relays) for host in hosts)]:
        rates[node, "all"] = min(links[node][0], sum(rates[node, other] for other in others))
        rates["all", node] = min(links[node][1], sum(rates[other, node] for other in others))
    return rates


@given(st.integers(1, 4), st.integers(1, 3), st.data())
def test_the_table_explains_what_was_measured(H, N, data):
    relays, hosts = [relay_name(i) for i in range(H)], [host_name(n) for n in range(N)]
    links = {node: data.draw(st.tuples(speeds, speeds, latencies)) for node in (*relays, *hosts)}
    links[SERVER] = (*data.draw(st.tuples(speeds, speeds)), 0.0)
    rates = exact(links, relays, hosts)
    table = as_table(rates, range(H), {f"farm-{n}": [n] for n in range(N)})
    found = {SERVER: table["server"]} | {host: table["hosts"][f"farm-{n}"] for n, host in enumerate(hosts)}
    near = {relay: table["relays"][i] for i, relay in enumerate(relays)}
    for i in relays:
        relay = near[i]
        assert min(found[SERVER]["up_bps"], relay["down_bps"]) == pytest.approx(rates[SERVER, i], rel=1e-3)
        assert min(found[SERVER]["down_bps"], relay["up_bps"]) == pytest.approx(rates[i, SERVER], rel=1e-3)
        assert relay["latency_s"] == pytest.approx(links[i][2], rel=1e-3)
        for host in hosts:
            assert min(relay["to_users_bps"], found[host]["down_bps"]) == pytest.approx(rates[i, host], rel=1e-3)
            assert min(relay["from_users_bps"], found[host]["up_bps"]) == pytest.approx(rates[host, i], rel=1e-3)
            assert relay["users_latency_s"] + found[host]["latency_s"] == pytest.approx(
                links[i][2] + links[host][2], rel=1e-2, abs=1e-5
            )
    for up, side in enumerate(("up_bps", "down_bps")):  # the server's own link is known if it is the narrower one
        alone = sum(rates[(SERVER, i) if up == 0 else (i, SERVER)] for i in relays)
        if links[SERVER][up] < alone:
            assert found[SERVER][side] == pytest.approx(links[SERVER][up], rel=1e-3)


def test_nodes_measure_each_other(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "LARGEST", 1 << 13)
    names, homes = names_of(5, 2), [[0, 2], [1]]

    def node(placement, peers):
        control = Control(peers)
        return measure(control, names[1:]) if placement.leads else take_part(control)

    rates = threads.play([Placement(rank, 5, 3, 2) for rank in range(5)], node)[SERVER]
    assert len(rates) == 3 * (2 + 4) + 2 * 5
    assert all(rate > 0 for rate in rates.values())
    table = as_table(rates, ["roof", "barn"], dict(zip(("a", "b"), homes, strict=True)))
    (tmp_path / "links.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(table)))
    t = Topology([[1, 1, 1], [1, 1, 0]])
    named = partial(Network, links=str(tmp_path / "links.yaml"))
    with pytest.raises(Exception, match="relay 0"):
        named().access(t)
    table["relays"] = dict(enumerate(table["relays"].values()))
    (tmp_path / "links.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(table)))
    assert named().access(t).homes.tolist() == [0, 1, 0]
