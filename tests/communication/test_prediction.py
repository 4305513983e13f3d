"""Dry rounds: on random networks, their payload is that of a round of random numbers, bit for bit."""

import numpy as np
import pytest
from adding import Terms, Total, terms
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import MEDIA
from hmtl.communication import TIERS, CodedHierarchical, Network, Sums, Uncoded
from hmtl.communication.prediction import dry_round
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology


@pytest.mark.parametrize("aggregators", ["uncoded", "auto", "all", [0], ["server", 0]])
@given(t=topologies(max_K=12, max_H=4), medium=st.sampled_from(MEDIA), m=st.integers(1, 60), seed=st.integers(0, 99))
def test_of_ivs(t: Topology, medium: str, m: int, seed: int, aggregators: str | list[int | str]) -> None:
    network = Network(medium=medium)
    played = Uncoded(t, network) if aggregators == "uncoded" else CodedHierarchical(t, network, aggregators=aggregators)
    users = ScriptedUsers([random_numbers(seed, t.K, m, None)], [set()], 0)
    played.round(0, users, ScriptedAggregator(t.K, m))
    ledger = dry_round(played.recipe, t, network, m).ledger
    for tier in TIERS:
        np.testing.assert_array_equal(ledger.per_link(tier)[:, 0], played.ledger.per_link(tier)[:, 0])


@given(
    t=topologies(max_K=12, max_H=4),
    medium=st.sampled_from(MEDIA),
    last_hop=st.sampled_from(MEDIA),
    m=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_of_sums(t: Topology, medium: str, last_hop: str, m: int, seed: int) -> None:
    network = Network(medium=medium, last_hop=last_hop)
    played = Sums(t, network)
    played.round(0, Terms([terms(seed, t.K, m + 1)], [set()]), Total(m + 1))
    ledger = dry_round(played.recipe, t, network, m).ledger
    for tier in TIERS:
        np.testing.assert_array_equal(ledger.per_link(tier)[:, 0], played.ledger.per_link(tier)[:, 0])
