"""Time by the paper's (13), and the cost of a unicast downlink."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import Loads, Uplinks, loads
from hmtl.communication import TIERS, Network
from hmtl.errors import ConfigError
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, any_r, symmetric

bits = st.integers(0, 10**9)
bandwidths = st.floats(1e3, 1e12)


@given(bits, bits, bits, bits, bandwidths, bandwidths)
def test_equation_13(ue: int, es: int, se: int, eu: int, W1: float, W2: float) -> None:
    tiers = {"users_to_relays": ue, "relays_to_server": es, "server_to_relays": se, "relays_to_users": eu}
    assert Network(W1, W2).seconds(tiers) == pytest.approx((ue + eu) / W1 + (es + se) / W2)


def of_tiers(load: Loads, K: int) -> dict[str, Any]:
    """Return loads between relays and server with a row for each user on the others."""
    return dict(zip(TIERS, (K, load.by_relay, load.downlink, K), strict=True))


def test_largest_saving_on_the_symmetric_topology() -> None:
    """27.5 % with W1 = W2, H = 5, r = 3: (20 + 20 + 10 + 8) / 80."""
    topology, network = symmetric(K=20, H=5, r=3), Network()
    coded, uncoded = (network.seconds(of_tiers(loads(topology, scheme), 20)) for scheme in ("optimal", "uncoded"))
    assert 1 - coded / uncoded == pytest.approx(0.275)


@given(topologies())
def test_coding_never_wins_over_unicast(topology: Topology) -> None:
    """H·(K − min|N_i|) ≥ K whenever the mean degree is at most H − 1."""
    H = len(topology.active)
    if topology.r <= H - 1:
        load = loads(topology, "optimal").down("unicast")
        assert load >= topology.K - 1e-9


uplinks = st.lists(st.tuples(st.floats(0, 1e9), bandwidths), min_size=2, max_size=8)


@given(uplinks, bandwidths)
def test_unequal_uplinks_one_after_the_other_or_side_by_side(links: list[tuple[float, float]], W2: float) -> None:
    up, bps = zip(*links, strict=True)
    tiers = {"users_to_relays": 0, "relays_to_server": up, "server_to_relays": [1, 2], "relays_to_users": 0}
    each = [b / w for b, w in links]
    assert Network(1, W2, uplink_bps=bps).seconds(tiers) == pytest.approx(sum(each) + 3 / W2)
    assert Network(1, W2, uplink_bps=bps, uplink="parallel").seconds(tiers) == pytest.approx(max(each) + 3 / W2)
    assert Network(1, W2, uplink="parallel").seconds(tiers) == pytest.approx((max(up) + 3) / W2)


@pytest.mark.parametrize("uplink", ["shared", "parallel"])
def test_plans_made_for_unequal_uplinks_are_faster_on_them(uplink: str) -> None:
    topology = any_r(K=30, H=6, r=3, seed=2)
    network = Network(uplink_bps=(1e8, 1e6, 1e8, 2e8, 5e6, 1e8), uplink=uplink)
    links = network.uplinks(topology)
    aware, unaware = (loads(topology, "optimal", known) for known in (links, None))
    fast, slow, paper = (network.seconds(of_tiers(load, 30)) for load in (aware, unaware, loads(topology, "paper")))
    assert fast < 0.9 * slow
    assert fast < paper
    assert aware.downlink == unaware.downlink


def test_only_the_active_relays_links_reach_the_plan() -> None:
    topology = Topology([[1, 1, 0], [0, 0, 0], [0, 1, 1]])
    assert Network(uplink_bps=(1, 2, 3)).uplinks(topology) == Uplinks((1, 3), downlink=1e8)
    assert Network(uplink="parallel").uplinks(topology) == Uplinks((1e8, 1e8), parallel=True, downlink=1e8)
    assert Network().uplinks(topology) is None


def test_as_many_uplinks_as_relays() -> None:
    with pytest.raises(ConfigError, match=r"uplink_bps has 2 entries for H=3"):
        Network(uplink_bps=(1, 2)).uplinks(Topology([[1, 1], [1, 0], [0, 1]]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"W1": 0}, "W1=0 "),
        ({"W2": -1.0}, "W2=-1"),
        ({"W1": float("nan")}, "W1=nan"),
        ({"uplink_bps": [1, 0]}, r"\[1\]=0"),
    ],
)
def test_bandwidths_are_positive(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Network(**setting)


def test_unknown_uplink() -> None:
    with pytest.raises(ConfigError, match="uplink=tube"):
        Network(uplink="tube")
