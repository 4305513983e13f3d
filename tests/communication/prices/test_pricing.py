"""Prices against the ledgers of rounds that are played with rows of numbers, and which way of rows is chosen."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from adding import Terms, Total, fit, terms
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import make, random_tasks

from hmtl.coding import MEDIA
from hmtl.communication import TIERS, CodedHierarchical, Communicator, IVs, Network, Sums, SumsOfRows, Uncoded
from hmtl.communication.codecs.few_bit_blocks import Blocks
from hmtl.communication.flows.recipe import Recipe
from hmtl.communication.messages import KEYS, SHARED, SHARES, UNMASK
from hmtl.communication.prices import pricing
from hmtl.communication.prices.pricing import added_by_secure_sums, price
from hmtl.communication.prices.sums_or_ivs import chosen
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.terms import Words
from hmtl.mtl import MOCHA, SDCA, Algorithm, FedAvg, LocalSGD, Logistic, Mean, NetworkAlgorithm, Problem, mlp
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, any_r, symmetric


@pytest.mark.parametrize("aggregators", ["uncoded", "auto", "all", [0], ["server", 0]])
@given(t=topologies(max_K=12, max_H=4), medium=st.sampled_from(MEDIA), m=st.integers(1, 60), seed=st.integers(0, 99))
def test_of_ivs(t: Topology, medium: str, m: int, seed: int, aggregators: str | list[int | str]) -> None:
    """The ledger of a round of random numbers has these bits, link by link, and a further number for each model."""
    network = Network(medium=medium)
    played = Uncoded(t, network) if aggregators == "uncoded" else CodedHierarchical(t, network, aggregators=aggregators)
    users = ScriptedUsers([random_numbers(seed, t.K, m, None)], [set()], 0)
    users.row_layout = replace(users.row_layout, answers=(0, 1))
    played.round(0, users, ScriptedAggregator(t.K, m))
    priced = price(played.recipe, t, network, m).bits
    for tier in TIERS:
        payload, overhead = played.ledger.per_link(tier).T
        models = payload // (64 * m) * 64 if tier in ("server_to_relays", "relays_to_users") else 0
        beyond = payload + overhead - priced[tier]
        assert (beyond >= -1e-6).all()
        assert (beyond <= models + 64 * t.K * (tier == "relays_to_server") + 1e-6).all()
        if tier == "users_to_relays":
            np.testing.assert_allclose(beyond, 0, atol=1e-6)


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
    played.round(0, Bare([terms(seed, t.K, m)], [set()]), Total(m))
    priced = price(played.recipe, t, network, m).bits
    for tier in TIERS:
        beyond = played.ledger.per_link(tier).sum(axis=1) - priced[tier]
        assert (np.abs(beyond) <= 64 * t.K).all()  # the number of updates goes down beside sums
        assert tier in ("server_to_relays", "relays_to_users") or np.allclose(beyond, 0)


@pytest.mark.parametrize(
    "recipe", [IVs("uncoded"), IVs(), IVs(aggregators="all"), IVs("paper", aggregators="all"), SumsOfRows()], ids=str
)
@given(seed=st.integers(0, 99), medium=st.sampled_from(MEDIA), last_hop=st.sampled_from(MEDIA))
@pytest.mark.slow
def test_formulas_of_large_networks_lead_to_nearly_the_same(recipe: Recipe, seed: int, medium: str, last_hop: str):
    """Of long rows, beside which the overhead of a dry round is small."""
    t, network = any_r(12, 4, 2, seed), Network(medium=medium, last_hop=last_hop)
    with pytest.MonkeyPatch.context() as patch:
        dry = price(recipe, t, network, 10**6)
        patch.setattr(pricing, "MAX_PLAYED_SIZE", 0)
        formula = price(recipe, t, network, 10**6)
    assert formula.seconds == pytest.approx(dry.seconds, rel=0.002)
    assert formula.between == pytest.approx(dry.between, rel=0.002)
    for tier in TIERS:
        assert formula.bits[tier].sum() == pytest.approx(dry.bits[tier].sum(), rel=0.002)


class Bare(Terms):
    """Users whose terms have no further number."""

    def __init__(self, terms, absent) -> None:
        ScriptedUsers.__init__(self, terms, absent, 0)


def mocha(K: int) -> MOCHA:
    return MOCHA(make(0, K=K, d=800, regularizer=Mean(0.1)).problem, SDCA())


def fedavg(K: int) -> NetworkAlgorithm:
    problem = Problem(random_tasks(Logistic(), (9,) * K, d=40), Logistic(), Mean(0.1))
    return NetworkAlgorithm(FedAvg(), problem, LocalSGD(), partial(mlp, hidden=20))


RECIPES = [IVs("uncoded"), IVs(aggregators="all"), IVs(), SumsOfRows(), SumsOfRows(sums="whole")]


@pytest.mark.parametrize("wire", [None, "int4"])
@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("learner", [mocha, fedavg])
@pytest.mark.parametrize("recipe", RECIPES, ids=["uncoded", "all", "auto", "sums", "whole"])
def test_of_learners(recipe: Recipe, learner: Callable[[int], Algorithm], medium: str, wire: str | None) -> None:
    """A later round's ledger has the price's bits on each tier, apart from a few numbers beside rows."""
    network, algorithm = Network(medium=medium), learner(12)
    played = Communicator(any_r(12, 4, 2, 1), network, replace(recipe, wire=wire))
    users, aggregator = algorithm.users, algorithm.aggregator
    if setup := algorithm.setup():
        played.setup(*setup)
    for round in range(3):
        played.round(round, users, aggregator)
    m, common = users.row_layout.numbers, None
    if recipe.adds:
        m, common = users.hold_meaning().words, None if wire else users.hold_meaning().common
    priced = price(played.recipe, played.topology, network, m, users.row_layout.dtype, common)
    beside = 64 * (users.row_layout.further + 1)  # bits of numbers of the learner, beside a row
    for tier in TIERS:
        total = played.ledger.bits(tier, round=-1).total
        assert 0 <= total - priced.bits[tier].sum() + 0.001 * total <= 12 * beside + 0.005 * total
    assert priced.seconds == pytest.approx(played.seconds(), rel=0.04)


@examples(10)
@given(topologies(max_H=5, max_K=13), st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from(MEDIA))
def test_secure_sums_add_what_a_secure_round_has_more_than_another(t: Topology, colluding: float, medium: str) -> None:
    """All users are neighbors, so that no draw decides what passes the server."""
    secure, network = Secure(colluding), Network(medium=medium)
    assume(fit(secure, t) and secure.degree(t.K, t.K).neighbors == t.K - 1)
    rows, totals, made = [terms(1, t.K, 8)], [Total(8), Total(8)], [Sums(t, network)]
    made.append(Sums(t, network, secure=True, colluding=colluding))
    for communicator, total in zip(made, totals, strict=True):
        communicator.round(0, Terms(rows, [set()]), total)
    assert torch.equal(*(total.state["last"] for total in totals))
    priced = price(SumsOfRows(secure=secure), t, network, 8)
    for tier, added in added_by_secure_sums(made[1]).items():
        assert added == sum(bits[tier] for bits in priced.added.values())
        plain, masked = (np.array(each.ledger.bits(tier)) for each in made)
        assert (masked - plain).tolist() == [0, added]


def test_what_secure_sums_add_by_hand() -> None:
    """20 users are all neighbors; each is heard by 3 of 5 relays, and any two by the same one."""
    by_tier = {
        KEYS: (20 * 64, 20 * 3 * 64, 12 + 20 * 68 + 8, 20 * (4 + 19 * 68 + 2 * 40)),  # of 60 links
        SHARED: (20 * 3, 5 * 10, 3, 20 * 3 * 3),  # 76 of 380 bits from each relay
        SHARES: (20 * 19 * 48, 0, 0, 20 * 19 * 49),
        UNMASK: (20 * 19 * 16, 5 * 10 + 5 * 20 * 16, 3 + 48, 20 * 3 * (4 + 3)),
    }
    t, recipe = symmetric(20, 5, 3), SumsOfRows(secure=Secure(0.1))
    added = {kind: dict(zip(TIERS, (8 * n for n in sent), strict=True)) for kind, sent in by_tier.items()}
    assert price(recipe, t, Network(), 1).added == added
    assert Sums(t, secure=True).describe()["secure"] == {
        "neighbors": 19,
        "threshold": 3,
        "colluding": 2,
        "fewest": 4,
    }
    apart = price(recipe, Topology(np.kron(np.eye(2), np.ones(10))), Network(medium="unicast"), 1).added
    assert apart[SHARES] == dict(zip(TIERS, (8 * 20 * n for n in (19 * 48, 10 * 49, 10 * 49, 19 * 49)), strict=True))
    assert apart[KEYS]["server_to_relays"] == 2 * 8 * (12 + 20 * 68 + 3)


@pytest.mark.parametrize(
    ("settings", "q", "m", "faster"),
    [
        ({}, 1, 1, True),
        ({}, 100, 1, False),
        ({"aggregators": "all"}, 1, 1, False),
        ({"scheme": "uncoded"}, 1, 1, False),
        ({"wire": "float32"}, 1, 1, False),
        ({"wire": "int4"}, 1, 640, True),
        ({"wire": "int4"}, 4, 640, False),
    ],
)
def test_sums_replace_ivs_if_they_take_less_time(settings: dict[str, Any], q: int, m: int, faster: bool) -> None:
    """K = 20, 3 of 5: 8 + 8 IVs against 5/3 + 1 rows of q times the numbers, in int4 of 9.25/4.25 the bits each."""
    given = Communicator(symmetric(K=20, H=5, r=3), recipe=IVs(**settings))
    made = chosen(given, Words(q * m), m, torch.float64)
    assert made.recipe.adds is faster
    assert faster or made is given
    assert chosen(given, None, m, torch.float64) is given
    if faster:
        assert made.recipe.wire == settings.get("wire")
        played = Communicator(given.topology, recipe=replace(given.recipe, aggregators=[0, 1, 2]))
        users = ScriptedUsers([torch.zeros(20, m, dtype=torch.float64)], [set()], 0)
        users.row_layout = replace(users.row_layout, answers=(0,))
        played.round(0, users, Echo(20, m))
        between = sum(played.ledger.bits(tier).total for tier in TIERS[1:3]) / 1e8
        assert f"not {between:.2g} s" in made.note


class Echo(ScriptedAggregator):
    """An aggregator that returns rows as they are."""

    def update(self, users, ivs):
        return ivs


def test_a_round_is_played_once_for_its_price(monkeypatch: pytest.MonkeyPatch) -> None:
    played, play = [], Communicator.round
    monkeypatch.setattr(Communicator, "round", lambda *arguments: played.append(1) or play(*arguments))
    t = any_r(9, 3, 2, 7)
    prices = [price(IVs(wire=wire), t, Network(W1=W1), 512) for wire in (None, "int4", "float32") for W1 in (1e8, 1e6)]
    assert len(played) == 2  # on each network
    assert len({each.seconds for each in prices}) == 6


def test_secure_sums_of_many_users_say_that_they_are_played(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger=pricing.__name__):
        price(SumsOfRows(secure=Secure(0.0)), any_r(7, 3, 2, 5), Network(), 1)
    assert "7 users" in caplog.text


def test_a_quantizer_of_ones_own_needs_no_hash() -> None:
    """A dataclass has none, unless it is frozen."""

    @dataclass
    class Half(Blocks):
        width: int = 4

    given = CodedHierarchical(symmetric(K=20, H=5, r=3), wire=Half())
    assert chosen(given, Words(40), 40, torch.float64) is given
