"""What secure sums add to a round: by hand, and against the ledgers of two rounds, one secure and one not."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from adding import Terms, Total, fit, terms
from hypothesis import assume, given
from hypothesis import strategies as st

from hmtl.coding import MEDIA
from hmtl.communication import TIERS, InProcess, Network, Sums
from hmtl.communication.messages import KEYS, SHARED, SHARES, UNMASK
from hmtl.communication.round_costs import compare
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.secure_costs import secure_costs
from hmtl.errors import ConfigError
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, any_r, symmetric


class Counted(InProcess):
    """Links that count the bits of each kind of message and tier."""

    def __init__(self, ledger) -> None:
        super().__init__(ledger)
        self.bits: Counter[tuple[str, str]] = Counter()

    def post(self, message) -> None:
        row = message.payload.shape[1] + message.overhead.shape[1]
        self.bits[message.kind, message.tier] += 8 * row * len(message)
        super().post(message)


def played(t: Topology, **settings) -> tuple[Sums, Counter[tuple[str, str]], torch.Tensor]:
    """Play a round in which everybody is present; return also the bits of each kind and the sum."""
    made = []

    def links(ledger):
        made.append(Counted(ledger))
        return made[-1]

    communicator, total = Sums(t, links=links, **settings), Total(8)
    communicator.round(0, Terms([terms(1, t.K, 8)], [set()]), total)
    return communicator, sum((each.bits for each in made), Counter()), total.state["last"]


@given(topologies(max_H=5, max_K=13), st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from(MEDIA))
def test_costs_are_what_a_secure_round_has_more_than_another(t: Topology, colluding: float, medium: str) -> None:
    """Sums have the same payload, and 8 numbers in a row instead of one. All users are neighbours."""
    secure, network = Secure(colluding), Network(medium=medium)
    assume(fit(secure, t) and secure.degree(t.K, t.K).neighbors == t.K - 1)
    plain, _, expected = played(t, network=network, aggregators="server")
    costs = secure_costs(t, secure, medium)
    masked, bits, total = played(t, network=network, secure=True, colluding=colluding)
    assert torch.equal(total, expected)
    assert masked.describe()["secure"]["overhead"] == costs.by_tier
    assert "secure" not in plain.describe()
    for kind in (KEYS, SHARED, SHARES, UNMASK):
        assert {tier: bits[kind, tier] for tier in TIERS} == costs.bits[kind]
    for tier, added in costs.by_tier.items():
        assert (np.array(masked.ledger.bits(tier)) - plain.ledger.bits(tier)).tolist() == [0, added]


def test_by_hand() -> None:
    """20 users are all neighbours; each is heard by 3 of 5 relays, and any two by the same one."""
    costs = secure_costs(symmetric(20, 5, 3), Secure(0.1))
    assert (costs.neighbors, costs.threshold, costs.colluding, costs.fewest) == (19, 3, 2, 4)
    by_tier = {
        KEYS: (20 * 64, 20 * 3 * 64, 12 + 20 * 68 + 8, 20 * (4 + 19 * 68 + 2 * 40)),  # of 60 links
        SHARED: (20 * 3, 5 * 10, 3, 20 * 3 * 3),  # 76 of 380 bits from each relay
        SHARES: (20 * 19 * 48, 0, 0, 20 * 19 * 49),
        UNMASK: (20 * 19 * 16, 5 * 10 + 5 * 20 * 16, 3 + 48, 20 * 3 * (4 + 3)),
    }
    assert costs.bits == {kind: dict(zip(TIERS, (8 * n for n in sent), strict=True)) for kind, sent in by_tier.items()}
    apart = secure_costs(Topology(np.kron(np.eye(2), np.ones(10))), Secure(0.1), "unicast")
    assert apart.bits[SHARES] == dict(
        zip(TIERS, (8 * 20 * n for n in (19 * 48, 10 * 49, 10 * 49, 19 * 49)), strict=True)
    )
    assert apart.bits[KEYS]["server_to_relays"] == 2 * 8 * (12 + 20 * 68 + 3)


def test_a_plan_counts_seconds_of_all_that_is_sent() -> None:
    network, t = Network(2000, 1000), symmetric(20, 5, 3)
    plain, secure = compare(t, network, 1000), compare(t, network, 1000, "int4", Secure(0.1))
    seconds = {}
    for medium in MEDIA:
        up, between_up, between_down, down = secure_costs(t, Secure(0.1), medium).by_tier.values()
        seconds[medium] = (up + down) / 2000 + (between_up + between_down) / 1000
    _, between_up, between_down, _ = secure.secure.by_tier.values()
    assert secure.sums == plain.sums
    assert secure.secure_sums.seconds == pytest.approx(
        {medium: each + seconds[medium] for medium, each in plain.sums.seconds.items()}
    )
    few, many = secure.formats["int4"]["secure"], secure.formats["int4"]["sums"]
    assert few.bits == pytest.approx(many.bits + between_up + between_down)
    assert few.seconds > many.seconds + seconds["broadcast"]  # masked terms are longer


@pytest.mark.parametrize(
    ("settings", "K"),
    [({}, 1), ({"colluding": 0.99}, 20), ({"colluding": -0.1}, 20), ({"colluding": 1.0}, 20), ({"least": 21}, 20)],
)
def test_too_few_users_are_refused(settings, K: int) -> None:
    t = any_r(K, 2, 1)
    for make in (partial(Sums, secure=True, **settings), lambda t: secure_costs(t, Secure(**settings))):
        with pytest.raises(ConfigError):
            make(t)


@pytest.mark.parametrize("settings", [{"colluding": 0.2}, {"least": 5}])
def test_settings_of_secure_sums_need_them(settings) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Sums(symmetric(20, 5, 3), **settings)
