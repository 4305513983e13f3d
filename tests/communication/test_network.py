"""Time by the paper's (13), and the cost of a unicast downlink."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import topologies

from hmtl.communication import Network, tier_loads
from hmtl.errors import ConfigError
from hmtl.topology import Topology, symmetric

bits = st.integers(0, 10**9)
bandwidths = st.floats(1e3, 1e12)


@given(bits, bits, bits, bits, bandwidths, bandwidths)
def test_equation_13(ue: int, es: int, se: int, eu: int, W1: float, W2: float) -> None:
    tiers = {"users_to_relays": ue, "relays_to_server": es, "server_to_relays": se, "relays_to_users": eu}
    assert Network(W1, W2).seconds(tiers) == pytest.approx((ue + eu) / W1 + (es + se) / W2)


def test_largest_saving_on_the_symmetric_topology() -> None:
    """27.5 % with W1 = W2, H = 5, r = 3: (20 + 20 + 10 + 8) / 80."""
    topology, network = symmetric(K=20, H=5, r=3), Network()
    coded, uncoded = (network.seconds(tier_loads(topology, scheme)) for scheme in ("paper", "uncoded"))
    assert 1 - coded / uncoded == pytest.approx(0.275)


@given(topologies())
def test_coding_never_wins_over_unicast(topology: Topology) -> None:
    """H·(K − min|N_i|) ≥ K whenever the mean degree is at most H − 1."""
    H = len(topology.active)
    if topology.r <= H - 1:
        load = tier_loads(topology, "paper", "unicast")["server_to_relays"]
        assert load >= topology.K - 1e-9


@pytest.mark.parametrize(
    ("setting", "message"), [({"W1": 0}, "W1=0 "), ({"W2": -1.0}, "W2=-1"), ({"W1": float("nan")}, "W1=nan")]
)
def test_bandwidths_are_positive(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Network(**setting)
