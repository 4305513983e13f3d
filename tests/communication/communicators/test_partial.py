"""Relays that learn some IVs: models from what they demand alone, the same bits as uncoded, and refusals."""

import numpy as np
import pytest
import torch
from changed import Changed, flipped, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.coding import demand_plan, demands_of, serve
from hmtl.communication import TIERS, CodedPartial, InProcess, LinkLedger, Network, Uncoded
from hmtl.communication.messages import BROADCAST, COMBINATIONS, DIGESTS, MODELS, SERVER, VERDICT, Message
from hmtl.errors import CodingError, ConfigError
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers, same_bits
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, geometric, symmetric


def some_needs(K: int, seed: int, share: float) -> np.ndarray:
    near = np.random.default_rng(seed).random((K, K)) < share
    return near | near.T | np.eye(K, dtype=bool)


def made(t: Topology, links=InProcess, **how) -> CodedPartial:
    return CodedPartial(t, seed=5, max_pieces=3, generation=9, links=links, **how)


@settings(max_examples=8)
@given(
    t=topologies(max_K=25),
    seed=st.integers(0, 10**6),
    share=st.sampled_from((0.0, 0.1, 0.4, 1.0)),
    medium=st.sampled_from(("broadcast", "unicast")),
    parallel=st.booleans(),
    working_set=st.sampled_from((1, 4000, 1 << 25)),
)
def test_models_come_from_what_relays_demand_and_nothing_else(
    t: Topology, seed: int, share: float, medium: str, parallel: bool, working_set: int
) -> None:
    """The same models as uncoded, whatever bits the IVs hold; the ledger counts the loads of the plan."""
    needs, m, rounds = some_needs(t.K, seed, share), 7, 3
    network = Network(medium=medium, uplink="parallel" if parallel else "shared")
    ivs = [random_numbers(seed + n, t.K, m + 1, None) for n in range(rounds)]
    pair = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmtl.communication.planning.pieces.WORKING_SET", working_set)
        for communicator in (made(t, Changed, network=network), Uncoded(t, network)):
            users, aggregator = (
                ScriptedUsers(ivs, [set()] * rounds, 1),
                ScriptedAggregator(t.K, m + 1, needs),
            )
            if isinstance(communicator, CodedPartial):
                communicator._links.change = poisoned(t)
            models = []
            for round in range(rounds):
                outcome = communicator.round(round, users, aggregator)
                assert outcome.users.tolist() == list(range(t.K))
                assert not users.sent
                models.append(torch.stack([users.models[k] for k in range(t.K)]))
            pair.append((communicator, aggregator, models))
    (partial, aggregator, models), (_, _, expected) = pair
    assert all(same_bits(one, other) for one, other in zip(models, expected, strict=True))

    serving = serve(t, needs)
    asked = demands_of(needs, serving, t.H)
    assert [users.tolist() for users, _ in aggregator.seen] == [
        np.flatnonzero(asked[i]).tolist() for i in np.unique(serving)
    ] * rounds
    for n, (known, seen) in enumerate(aggregator.seen):
        assert same_bits(seen, ivs[n // len(np.unique(serving))][known])

    plan = demand_plan(t, asked, 5, max_pieces=3, generation=9, uplinks=network.uplinks(t), medium=medium)
    assert partial.theory == plan.loads
    assert partial._links.bits == {tier: partial.ledger.bits(tier).total for tier in TIERS}
    measured, V = partial.ledger.loads(partial.V_bits), partial.V_bits
    assert measured["users_to_relays"] == measured["relays_to_users"] == t.K
    between = (plan.loads.uplink, plan.loads.down(medium))
    for tier, load in zip(("relays_to_server", "server_to_relays"), between, strict=True):
        assert load - 1e-9 <= measured[tier] <= load * (1 + 2 * 8 / V) + 1e-9  # 3 pieces pad an IV by 2 bytes
    described = partial.describe()
    assert described["communicator"] == "partial"
    for tier, bound in described["bounds"].items():
        assert bound <= described["loads_theory"][tier] + 1e-6


def test_a_relay_may_learn_more_than_it_demands() -> None:
    """Each of 3 relays serves one user alone, who needs the user that this relay misses: one code for all of them."""
    G, needs = np.hstack([1 - np.eye(3), np.eye(3)]).astype(np.uint8), np.eye(6, dtype=bool)
    needs[[0, 1, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2]] = True
    communicator, ivs = CodedPartial(Topology(G)), [random_numbers(0, 6, 5, None)]
    users, aggregator = ScriptedUsers(ivs, [set()], 0), ScriptedAggregator(6, 5, needs)
    communicator.round(0, users, aggregator)
    learned = {k for block in communicator.plan.blocks if 0 in block.aggregators for k in block.users}
    demanded = demands_of(needs, serve(communicator.topology, needs), 3)
    assert learned - set(np.flatnonzero(demanded[0]).tolist())
    for known, seen in aggregator.seen:
        assert any(np.array_equal(known, np.flatnonzero(row)) for row in demanded)
        assert same_bits(seen, ivs[0][known])


def test_a_note_says_that_coded_would_be_cheaper() -> None:
    """With relay 0 as the aggregator, two messages pass in each direction; partial demands need 3 up and 2 down."""
    t, needs = Topology(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], np.uint8)), np.eye(3, dtype=bool)
    needs[2] = needs[:, 2] = True
    communicator = CodedPartial(t)
    communicator.check_learner(ScriptedAggregator(3, 4, needs))
    assert (communicator.theory.uplink, communicator.theory.downlink) == (3, 2)
    assert "communicator=coded would be cheaper: it takes 20.0%" in communicator.describe()["note"]
    communicator, _, aggregator, _ = one()
    communicator.check_learner(aggregator)
    assert "note" not in communicator.describe()


def one(**how) -> tuple[CodedPartial, ScriptedUsers, ScriptedAggregator, np.ndarray]:
    """A network in which several relays need the same IVs."""
    t = geometric(K=40, H=5, radius=0.35, seed=3)
    users = t.layout[0]
    needs = np.hypot(*(users[:, None] - users).transpose(2, 0, 1)) < 0.4
    communicator = made(t, Changed, **how)
    ivs = [random_numbers(n, 40, 6, None) for n in range(6)]
    return communicator, ScriptedUsers(ivs, [set()] * 6, 0), ScriptedAggregator(40, 6, needs), needs


@pytest.mark.parametrize("medium", ["broadcast", "unicast"])
def test_who_gets_what(medium: str) -> None:
    """Combinations go to the relays of the block alone, models come from the relay that computes them."""
    communicator, users, aggregator, needs = one(network=Network(medium=medium))
    got = set()

    def spy(node: str, message: Message) -> Message:
        got.add((node, message.kind, message.sender))
        return message

    communicator._links.change = spy
    communicator.round(0, users, aggregator)
    blocks = communicator.plan.blocks
    assert any(0 < len(block.aggregators) < 5 for block in blocks)
    decoding = {communicator.topology.active[n] for block in blocks for n in block.aggregators}
    assert {node for node, kind, _ in got if kind == BROADCAST} == {f"relay {i}" for i in decoding}
    serving = serve(communicator.topology, needs)
    assert {sender for _, kind, sender in got if kind == MODELS} == {f"relay {i}" for i in serving}


def test_relays_of_a_block_compare_what_they_decoded() -> None:
    communicator, users, aggregator, _ = one()
    communicator.round(0, users, aggregator)
    shared = (block for block in communicator.plan.blocks if len(block.aggregators) > 2)
    relay = next(f"relay {communicator.topology.active[n]}" for b in shared for n in b.aggregators if b.need(n))

    def change(node: str, message: Message) -> Message:
        return flipped(message) if (message.kind, node) == (BROADCAST, relay) and len(message) else message

    communicator._links.change = change
    with pytest.raises(CodingError, match=f"^{relay} learned other IVs .* round 1"):
        communicator.round(1, users, aggregator)
    assert not users.models


@pytest.mark.parametrize(("kind", "at"), [(COMBINATIONS, SERVER), (BROADCAST, "relay 1"), (DIGESTS, SERVER)])
def test_for_a_relay_that_falls_silent_there_is_no_stand_in(kind: str, at: str) -> None:
    communicator, users, aggregator, _ = one()

    def lose(node: str, message: Message) -> Message | None:
        return None if (message.kind, node) == (kind, at) and message.sender in (SERVER, "relay 1") else message

    communicator._links.change = lose
    with pytest.raises(CodingError, match=r"^relay 1 took no part in round 0, .* Set communicator=coded"):
        communicator.round(0, users, aggregator)
    assert not users.models


def test_who_is_not_there_has_no_stand_in() -> None:
    """A user of whom nothing arrives, or a relay that serves users."""
    communicator, users, aggregator, _ = one()
    users.absent = [{7}] * 6
    with pytest.raises(CodingError, match=r"^user 7 took no part in round 0"):
        communicator.round(0, users, aggregator)
    communicator, users, aggregator, _ = one()
    with pytest.raises(CodingError, match=r"^relay 2 took no part in round 0"):
        communicator.round(0, users, aggregator, absent_relays=[2])


def test_an_iv_lost_on_one_link_is_coded_for() -> None:
    """The relay that misses it gets it as another, from the plan of what was heard."""
    communicator, users, aggregator, needs = one()
    communicator.check_learner(aggregator)
    t, serving = communicator.topology, serve(communicator.topology, needs)
    k = next(k for k in range(40) if len(t.relays_of(k)) > 1)
    arrives = t.G.copy()
    arrives[serving[k], k] = 0
    communicator._links.change = poisoned(t, arrives)
    communicator.round(0, users, aggregator)
    whole, others, another, _ = one()
    whole.round(0, others, another)
    assert all(same_bits(users.models[k], others.models[k]) for k in range(40))


def test_verdict_or_no_models() -> None:
    communicator, users, aggregator, _ = one()
    communicator._links.change = lambda node, message: None if message.kind == VERDICT else message
    communicator.round(0, users, aggregator)
    assert not users.models


def test_going_on_gives_the_same_bits() -> None:
    """After a set-up, which all relays learn."""
    for cut in (1, 3):
        whole, users, aggregator, _ = one()
        whole.setup(ScriptedUsers([users.ivs[0]] * 2, [set()] * 2, 6), facts := ScriptedAggregator(40, 6))
        assert len(facts.seen) == 1
        for round in range(cut):
            whole.round(round, users, aggregator)
        then, others, another, _ = one()
        then.load_state_dict(whole.state_dict())
        others.sent = dict(users.sent)
        for round in range(cut, 6):
            whole.round(round, users, aggregator)
            then.round(round, others, another)
            assert all(same_bits(users.models[k], others.models[k]) for k in range(40))
        for tier in TIERS:
            np.testing.assert_array_equal(whole.ledger.per_link(tier), then.ledger.per_link(tier))
        assert whole.setup_seconds == then.setup_seconds
        assert whole.ledger.bits("users_to_relays", round="setup").total == 40 * 6 * 64


def test_a_learner_that_needs_all_is_refused() -> None:
    communicator = made(symmetric(K=10, H=5, r=2))
    with pytest.raises(ConfigError, match=r"^communicator=partial .* this learner .*communicator=coded"):
        communicator.check_learner(ScriptedAggregator(10, 4))


def test_the_ledger_of_a_learner_without_neighbours() -> None:
    """Nobody needs another's IV: nothing passes the server but overhead."""
    t = symmetric(K=10, H=5, r=2)
    communicator = made(t)
    users = ScriptedUsers([random_numbers(0, 10, 4, None)], [set()], 0)
    communicator.round(0, users, ScriptedAggregator(10, 4, np.eye(10, dtype=bool)))
    ledger: LinkLedger = communicator.ledger
    assert ledger.bits("relays_to_server").payload == ledger.bits("server_to_relays").payload == 0
    assert ledger.bits("relays_to_users").payload == 10 * 4 * 64
