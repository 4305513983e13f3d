"""Communicators where users move: handing over, sums over the rounds, going on in the middle of a stretch."""

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from adding import Terms
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import Aggregators
from hmtl.communication import TIERS, CodedHierarchical, Communicator, Network, Sums, Uncoded
from hmtl.errors import CodingError
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers, same_bits
from hmtl.testing.topologies import moving
from hmtl.topology import Contacts, Topology, Walk, geometric, symmetric


class Played:
    """A communicator, and sides of a learner with IVs of 5 numbers."""

    def __init__(self, communicator: Communicator, rounds: int) -> None:
        K = communicator.contacts.K
        self.communicator, self.aggregator = communicator, ScriptedAggregator(K, 5)
        ivs = [random_numbers(round, K, 5, None) for round in range(rounds)]
        self.users = ScriptedUsers(ivs, [set()] * rounds, 0)

    def play(self, *rounds: int) -> "Played":
        for round in rounds:
            self.communicator.round(round, self.users, self.aggregator)
        return self

    def follow(self, other: "Played") -> "Played":
        """Go on from where another is."""
        self.communicator.load_state_dict(other.communicator.state_dict())
        self.users.sent, self.aggregator.state = dict(other.users.sent), other.aggregator.state_dict()
        return self


def same(one: Played, other: Played) -> bool:
    """Whether the users got the same models, and the aggregators hold the same."""
    models = one.users.models.keys() == other.users.models.keys()
    return models and all(same_bits(model, other.users.models[k]) for k, model in one.users.models.items())


@pytest.mark.parametrize(
    ("kind", "declared", "dtype"),
    [
        (Uncoded, {"further": 0}, torch.float64),
        (CodedHierarchical, {"answers": (0,)}, torch.float64),
        (Uncoded, {"origin": torch.zeros(5, dtype=torch.float64)}, torch.float32),
        (CodedHierarchical, {"origin": torch.zeros(5, dtype=torch.float64)}, torch.int64),
        (Sums, {}, torch.float64),
    ],
    ids=["more numbers up", "more numbers down", "another type than that of the origin", "terms", "no terms"],
)
def test_a_learner_that_sends_other_rows_than_it_says_is_refused(kind, declared, dtype) -> None:
    """Otherwise nodes would take none of them, and rounds would go on in which nobody counts."""
    rows = [torch.zeros(6, 5, dtype=dtype)]
    users = Terms(rows, [set()]) if kind is Sums else ScriptedUsers(rows, [set()], 2)
    users.row_layout = replace(users.row_layout, **declared)
    with pytest.raises(CodingError, match="further"):
        kind(symmetric(K=6, H=3, r=2)).round(0, users, ScriptedAggregator(6, 5))


@examples(12)
@given(
    contacts=moving(rounds=6),
    scheme=st.sampled_from(("optimal", "paper", "equal")),
    aggregators=st.sampled_from(("auto", "all", "server", [0], ["server", 0])),
    medium=st.sampled_from(("broadcast", "unicast")),
    uplink=st.sampled_from(("shared", "parallel")),
)
def test_models_are_those_of_the_uncoded_run_and_bits_those_of_the_formula(
    contacts: Contacts, scheme: str, aggregators: Aggregators, medium: str, uplink: str
) -> None:
    network = Network(medium=medium, uplink=uplink)
    coded = Played(CodedHierarchical(contacts, network, scheme, aggregators=aggregators), 6)
    plain = Played(Uncoded(contacts, network), 6)
    for round in range(6):
        assert same(coded.play(round), plain.play(round))
        for made in (coded.communicator, plain.communicator):
            assert made.topology == contacts.at(round)
            assert made.uncoded_seconds() > 0
    assert coded.users.committed == plain.users.committed
    for made in (coded.communicator, plain.communicator):
        told = made.describe()
        assert told["r"] == pytest.approx(np.mean([contacts.at(round).r for round in range(6)]))
        for tier, load in told["loads_theory"].items():
            assert told["bounds"][tier] <= load + 1e-9
            if all(len(contacts.at(round).present) == contacts.K for round in range(6)):
                assert load - 1e-9 <= told["loads"][tier] <= 1.2 * load  # pieces are padded: 5 numbers in 8 pieces


@examples(10)
@given(
    contacts=moving(rounds=6), aggregators=st.sampled_from(("auto", "all", [0], ["server", 0])), cut=st.integers(1, 5)
)
def test_it_goes_on_in_the_middle_of_a_stretch(contacts: Contacts, aggregators: Aggregators, cut: int) -> None:
    whole, then = (Played(CodedHierarchical(contacts, aggregators=aggregators), 6) for _ in range(2))
    then.follow(whole.play(*range(cut)))
    for round in range(cut, 6):
        assert same(whole.play(round), then.play(round))
    for tier in TIERS:
        np.testing.assert_array_equal(whole.communicator.ledger.per_link(tier), then.communicator.ledger.per_link(tier))
    ours, theirs = (played.communicator.describe() for played in (whole, then))
    assert ours == theirs


def test_plans_follow_the_users_and_return() -> None:
    """Contacts A A B B A A: two plans, the first of which is there before round 0."""
    A, B = geometric(12, 3, 0.5, seed=1).G, geometric(12, 3, 0.5, seed=2).G
    made = CodedHierarchical(Contacts([0, 2, 4], [A, B, A]), aggregators="all")
    Played(made, 6).play(*range(6))
    assert made.planning.plans == 1
    assert made.planning.seconds > 0
    assert made.planning.handover_bits == 0
    figures = [CodedHierarchical(Topology(G), aggregators="all").describe() for G in (A, B)]
    for name in ("loads_theory", "bounds"):
        for tier, load in made.describe()[name].items():
            assert load == pytest.approx((4 * figures[0][name][tier] + 2 * figures[1][name][tier]) / 6)
    assert made.topology == Topology(A)


def test_users_who_stay_cost_nothing() -> None:
    still, walk = symmetric(12, 3, 2), Walk(12, 3, 0.5, step=0)
    for contacts in (still, Contacts([0, 2], [still.G, still.G]), walk):
        made = CodedHierarchical(contacts)
        Played(made, 6).play(*range(6))
        assert astuple(made.planning) == (0, 0.0, 0)
        assert "handover_bits" not in made.describe()


def test_a_relay_that_heard_nobody_for_a_while_is_handed_the_state() -> None:
    """Relay 2 has no users in rounds 1 and 2, and user 3 no relay: it waits, hears, and goes on in the round after."""
    G = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1]], np.uint8)
    without = G * np.array([[1], [1], [0]], np.uint8)
    made = CodedHierarchical(Contacts([0, 1, 3], [G, without, G]), aggregators="all")
    played = Played(made, 5).play(0, 1, 2)
    assert set(played.users.models) == {0, 1, 2}
    assert set(played.users.sent) == {3}
    assert made.planning.handover_bits == 0
    played.play(3)
    assert set(played.users.models) == {0, 1, 2, 3}
    assert played.users.dropped == [(1, 3)]
    state = 8 * (4 * 5 * 8 + 8 + 4 * 4 + 4)  # IVs of 4 users, a count of rounds, whose IV counted when, and a version
    assert made.planning.handover_bits == 2 * state
    played.play(4)
    assert played.aggregator.seen[-1][0].tolist() == [0, 1, 2, 3]
    assert made.planning.handover_bits == 2 * state
    assert made.describe()["handover_bits"] == 2 * state
    assert made.describe()["aggregators"] == [0, 1, 2]


def test_relays_at_home_may_have_no_users_at_first() -> None:
    G = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 0]], np.uint8)
    contacts = Contacts([0, 2], [G, G[::-1]])
    for named in ([2], "all"):
        made = CodedHierarchical(contacts, aggregators=named)
        played = Played(made, 4)
        outcomes = [made.round(round, played.users, played.aggregator).aggregators for round in range(4)]
        expected = [(0, 1), (0, 1), (2,), (2,)] if named == [2] else [(0, 1), (0, 1), (1, 2), (1, 2)]
        assert outcomes == expected
        assert made.planning.handover_bits > 0
