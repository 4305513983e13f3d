"""IVs between nodes that share no more than planners: what each learns, who is left out, and what is handed over."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from apart import Apart, with_other_plan
from changed import Change, flipped, poisoned
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import Aggregators, make_plan
from hmtl.communication import CodedHierarchical, Network
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS
from hmtl.communication.codecs.few_bit_blocks import QUANTIZERS
from hmtl.communication.codecs.formats import Quantizer
from hmtl.communication.flows.ivs import IVs
from hmtl.communication.messages import (
    ATTENDANCE,
    BROADCAST,
    COMBINATIONS,
    DIGESTS,
    IVS,
    MODELS,
    RECEIPTS,
    SERVER,
    STATE,
    VERDICT,
    Message,
)
from hmtl.errors import CodingError
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers, same_bits
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, any_r, heterogeneous, symmetric

SCHEMES = ("uncoded", "optimal", "paper", "equal")
BETWEEN = (STATE, COMBINATIONS, BROADCAST, DIGESTS, IVS)  # kinds without which others cannot go on
networks = st.builds(
    Network,
    medium=st.sampled_from(("broadcast", "unicast")),
    uplink=st.sampled_from(("shared", "parallel")),
    uplink_bps=st.sampled_from((None, (1e8, 2e8, 5e7, 1e8, 1e7, 1e8, 3e8, 1e8))),
)
recipe_of = partial(IVs, seed=5, max_pieces=3, generation=9)


@examples(18)
@given(
    scheme=st.sampled_from(SCHEMES),
    t=topologies(max_K=16),
    network=networks,
    aggregators=st.sampled_from(("all", "auto", "server", 0.3, 0.6)),
    central=st.booleans(),
    gone=st.sampled_from((0.0, 0.2, 0.5)),
    lost=st.sampled_from((0.0, 0.1, 0.4)),
    seed=st.integers(0, 10**6),
    working_set=st.sampled_from((1, 4000, 1 << 25)),
)
def test_every_aggregator_ends_with_the_ivs_of_all_who_were_heard(
    scheme: str,
    t: Topology,
    network: Network,
    aggregators: str | float,
    central: bool,
    gone: float,
    lost: float,
    seed: int,
    working_set: int,
) -> None:
    """Users and relays that come and go, IVs lost on single links, relays that missed rounds, and any aggregators.

    What relays cannot know is poisoned. A plain account of who is there and who aggregates says what has to come out.
    """
    rng, rounds, m = np.random.default_rng(seed), 5, 7
    absent = [set(np.flatnonzero(rng.random(t.K) < gone).tolist()) for _ in range(rounds)]
    ivs = [random_numbers(seed + n, t.K, m + 1, None) for n in range(rounds)]
    half = [range(0, t.K, 2), range(1, t.K, 2)] if t.K > 1 else [range(t.K)]
    sides = [ScriptedUsers(ivs, absent, 1, mine) for mine in half]
    some = aggregators
    if not isinstance(some, str):
        some = [SERVER] * central + (np.flatnonzero(rng.random(t.H) < some).tolist() or [0])
    if network.uplink_bps:
        network = replace(network, uplink_bps=network.uplink_bps[: t.H])
    apart = Apart(t, sides, recipe_of(scheme, aggregators=some), network)
    expected, version, latest = ScriptedAggregator(t.K, m + 1), [0] * t.H, 0
    waiting: set[int] = set()
    unsettled: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmtl.communication.flows.pieces.WORKING_SET", working_set)
        for round in range(rounds):
            away = set(np.flatnonzero(rng.random(t.H) < gone).tolist())
            arrives = (t.G == 1) & (rng.random(t.G.shape) >= lost)

            before = [len(aggregator.seen) for aggregator in apart.aggregators()]
            apart.play(round, away, poisoned(t, arrives))
            there = [i for i in range(t.H) if i not in away]
            sent = set(range(t.K)) - absent[round] - waiting
            heard_by = {k: [i for i in there if arrives[i, k]] for k in sent}
            heard = sorted(k for k, relays in heard_by.items() if relays)
            hearing = sorted({i for relays in heard_by.values() for i in relays})
            current = [i for i in there if version[i] == latest]
            aggregating = ([i for i in hearing if i in apart.home] or hearing or current) if current else []
            if apart.central:  # the server has the last seat
                aggregating = [i for i in hearing if i in apart.home]
                aggregating += [len(before) - 1] if there else []
            reached = {k for k in range(t.K) if set(t.relays_of(k)) & set(there)}
            if aggregating:
                latest += 1
                models = expected.update(np.array(heard, dtype=np.int64), ivs[round][heard].clone())
                for i in set(aggregating) & set(range(t.H)):
                    version[i] = latest
            for n, aggregator in enumerate(apart.aggregators()):
                assert len(aggregator.seen) == before[n] + (n in aggregating)
                if n in aggregating:
                    assert aggregator.seen[-1][0].tolist() == heard
                    assert same_bits(aggregator.seen[-1][1], ivs[round][heard])
            got = {k: model for side in sides for k, model in side.models.items()}
            assert set(got) == (reached if aggregating else set())
            assert all(same_bits(model, models[k]) for k, model in got.items())
            waiting = set(range(t.K)) - reached if aggregating else waiting | (set(range(t.K)) - reached)
            unsettled = (unsettled | sent) - (reached if aggregating else reached & sent)
            assert {k for side in sides for k in side.sent} == unsettled
    committed = {pair for side in sides for pair in side.committed}
    dropped = {pair for side in sides for pair in side.dropped}
    counted = max((seat.counted.tolist() for seat in apart.seats()), key=max)
    assert all((round, k) in committed or k in unsettled for k, round in enumerate(counted) if round >= 0)
    assert not committed & dropped


@examples(15)
@given(
    scheme=st.sampled_from(("uncoded", "optimal")),
    t=topologies(max_K=12),
    aggregators=st.sampled_from(("all", [SERVER, 0])),
    width=st.sampled_from((8, 4, 3, 2)),
    gone=st.sampled_from((0.0, 0.2, 0.5)),
    lost=st.sampled_from((0.0, 0.1, 0.4)),
    changes=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_users_and_aggregators_agree_on_numbers_of_few_bits(
    scheme: str,
    t: Topology,
    aggregators: Aggregators,
    width: int,
    gone: float,
    lost: float,
    changes: bool,
    seed: int,
) -> None:
    """Whoever is absent, and whichever IVs and models are lost: both ends hold the same bits, near the true numbers."""
    rng, rounds, m = np.random.default_rng(seed), 6, 70
    absent = [set(np.flatnonzero(rng.random(t.K) < gone).tolist()) for _ in range(rounds)]
    ivs = [torch.from_numpy(rng.normal(size=(t.K, m + 1))) for _ in range(rounds)]
    half = [range(0, t.K, 2), range(1, t.K, 2)] if t.K > 1 else [range(t.K)]
    sides = [ScriptedUsers(ivs, absent, 1, mine) for mine in half]
    for side in sides:
        side.row_layout = replace(side.row_layout, changes=changes)
    apart = Apart(t, sides, recipe_of(scheme, aggregators=aggregators, wire=f"int{width}"))
    bound = 0.51 / (2 ** (width - 1) - 1)  # of a rounding error, relative to the largest number of its block
    for round in range(rounds):
        away = set(np.flatnonzero(rng.random(t.H) < gone).tolist())
        heard = poisoned(t, (t.G == 1) & (rng.random(t.G.shape) >= lost))
        arrive = [k for k in range(t.K) if rng.random() >= lost]

        def change(node: str, message: Message, heard: Change = heard, arrive: list[int] = arrive) -> Message:
            if message.kind in (MODELS, RECEIPTS) and node.startswith("host"):
                here = np.intersect1d(arrive, half[int(node.split()[1])])
                kept = np.flatnonzero(np.isin(message.of_users(), here))
                return replace(message, users=message.of_users()[kept], at=message.rows()[torch.from_numpy(kept)])
            return heard(node, message)

        before = [len(aggregator.seen) for aggregator in apart.aggregators()]
        apart.play(round, away, change)
        acted = [seat for seat, n in zip(apart.seats(), before, strict=True) if len(seat.aggregator.seen) > n]
        if not acted:
            continue
        first = acted[0]
        for seat in acted:
            for name in seat.coder.STATE:
                assert same_bits(getattr(seat.coder, name), getattr(first.coder, name))
        for host, side in zip(apart.hosts, sides, strict=True):
            places = {k: place for place, k in enumerate(host.members.tolist())}
            for k, model in side.models.items():
                assert same_bits(model[:m], host.coder.newest[places[k]])
                assert same_bits(model[:m], first.coder.newest[k])
            for k, place in places.items():
                if not host.pending[k]:
                    assert same_bits(host.coder.base[place], first.coder.base[k])
                    assert changes or same_bits(host.coder.held[place], first.coder.held[k])
        users, read = first.aggregator.seen[-1]
        wanted = ivs[round][users]
        assert same_bits(read[:, m:], wanted[:, m:])
        largest = 6.0  # of a number, or of the difference of two, in these draws
        # What the last rounding left over is in what is read, and what this one leaves over is not.
        assert not len(users) or float((read - wanted).abs().max()) <= 2 * bound * largest


def one(
    t: Topology,
    scheme: str = "optimal",
    aggregators: Aggregators = "all",
    network: Network = Network(),  # noqa: B008
) -> tuple[Apart, ScriptedUsers]:
    users = ScriptedUsers([random_numbers(n, t.K, 6, None) for n in range(6)], [set()] * 6, 0)
    return Apart(t, [users], recipe_of(scheme, aggregators=aggregators), network), users


@pytest.mark.parametrize("medium", ["broadcast", "unicast"])
def test_helpers_send_and_learn_nothing(medium: str) -> None:
    """They get nothing to decode from, keep no IVs and compute no model; aggregators get what they miss."""
    t, got = heterogeneous(K=50, H=4, r=2, d=0.4), defaultdict(int)
    apart, users = one(t, network=Network(medium=medium), aggregators="auto")
    assert set(apart.home) < set(range(4))
    helpers = [relay for relay in apart.relays if relay.i not in apart.home]

    def spy(node: str, message: Message) -> Message:
        got[node, message.kind] += len(message)
        assert all(not relay.aggregation.ivs for relay in helpers)
        assert all(node != relay.name for relay in helpers) or message.kind in (IVS, ATTENDANCE, MODELS)
        return message

    apart.play(0, change=spy)
    assert set(users.models) == set(range(50))
    assert got[SERVER, COMBINATIONS]
    for relay in apart.relays:
        assert len(relay.aggregation.aggregator.seen) == (relay.i in apart.home)
        assert relay.version == (relay.i in apart.home)
    pieces = {block.pieces for block in apart.relays[0].planner.plan.blocks}
    if len(pieces) == 1:
        c = pieces.pop()
        for i in apart.home:
            missed = max(50 - len(t.N(j)) for j in apart.home) if medium == "broadcast" else 50 - len(t.N(i))
            assert got[f"relay {i}", BROADCAST] >= c * missed


@pytest.mark.parametrize(
    ("relay", "scheme", "aggregators"),
    [(0, "optimal", "all"), (3, "optimal", "all"), (4, "paper", "all"), (3, "optimal", [SERVER, 3])],
)
def test_a_relay_that_decodes_other_ivs_is_left_out_before_a_model_spreads(
    relay: int, scheme: str, aggregators: Aggregators, caplog: pytest.LogCaptureFixture
) -> None:
    """The round goes on as if it had fallen silent, and it takes part in the next one."""
    (apart, users), (plain, others) = (one(symmetric(K=20, H=5, r=3), scheme, aggregators) for _ in range(2))
    apart.play(0)
    plain.play(0)

    def change(node: str, message: Message) -> Message:
        return flipped(message) if message.kind == BROADCAST and node == f"relay {relay}" else message

    apart.play(1, change=change)
    plain.play(1, away=[relay])
    assert apart.server.attendance.relays == tuple({*range(5)} - {relay})
    assert f"round 1: relay {relay} counts as silent: it learned other IVs" in caplog.text
    _check_same_models(users, others)
    apart.play(2)
    plain.play(2)
    assert apart.server.attendance.relays == (0, 1, 2, 3, 4)
    _check_same_models(users, others)
    assert len(caplog.records) == 1


def _check_same_models(users: ScriptedUsers, others: ScriptedUsers) -> None:
    assert users.models.keys() == others.models.keys() == set(range(20))
    assert all(same_bits(model, others.models[k]) for k, model in users.models.items())


@pytest.mark.parametrize("others", [[2], [1, 4], range(5)])
def test_a_relay_with_another_plan_is_told_from_damaged_data(others: Sequence[int], caplog) -> None:
    """As if it were alone in its process, with another version of a solver."""
    apart, users = one(symmetric(K=20, H=5, r=3))
    plans = [make_plan(apart.t, seed=seed) for seed in (5, 5, 6)]
    assert plans[0].digest == plans[1].digest != plans[2].digest
    for i in others:
        relay = apart.relays[i]
        relay.transport = with_other_plan(relay.transport, plans[2].digest)
    if len(others) == 5:
        with pytest.raises(CodingError, match=r"round 0, .* relays 0, 1, 2, 3, 4: its plan differs"):
            apart.play(0)
        assert not users.models
        return
    apart.play(0)
    assert apart.server.attendance.relays == tuple({*range(5)} - {*others})
    assert set(users.models) == set(range(20))
    assert [record.message.split(":")[1] for record in caplog.records] == [
        f" relay {i} counts as silent" for i in others
    ]


def test_other_ivs_are_found_if_nothing_is_coded(caplog) -> None:
    """Every relay hears everybody, one of them with a changed bit; if there are two, nobody knows which of them.

    Then the run ends in its first round; later, the round counts nobody.
    """

    def change(node: str, message: Message) -> Message:
        return flipped(message) if message.kind == IVS and node == "relay 1" else message

    apart, users = one(Topology(np.ones((3, 4))))
    apart.play(0, change=change)
    assert set(users.models) == set(range(4))
    assert "relay 1 counts as silent: it learned other IVs" in caplog.text
    apart, users = one(Topology(np.ones((2, 4))))
    with pytest.raises(CodingError, match=r"differ in round 0, and nobody knows .* it learned other IVs"):
        apart.play(0, change=change)
    assert not users.models
    apart, users = one(Topology(np.ones((2, 4))))
    apart.play(0)
    apart.play(1, change=change)
    assert "differ in round 1, and nobody knows" in caplog.text
    assert (len(users.committed), apart.server.attendance.relays) == (4, ())
    for round in (2, 3):  # users learn in round 2 that round 1 did not count
        apart.play(round)
    assert len(users.committed) == 8
    assert len({seat.state_bytes().tobytes() for seat in apart.seats() if seat.version}) == 1


@pytest.mark.parametrize("aggregators", ["all", [SERVER, 0, 3]])
def test_a_relay_whose_state_is_wrong_is_handed_the_right_one(aggregators: Aggregators, caplog) -> None:
    """It hands its own to nobody: relay 0 misses a round, and would get the state of the first relay that has it."""
    apart, users = one(symmetric(K=20, H=5, r=3), aggregators=aggregators)
    apart.play(0)
    wrong = apart.relays[0 if aggregators == "all" else 3]
    wrong.aggregation.aggregator.state["updates"] += 1
    apart.play(1)
    assert set(users.models) == set(range(20))
    assert f"round 1: relay {wrong.i} counts as silent: it computed other models" in caplog.text
    for round in (2, 3):
        apart.play(round, away=[1] if round == 2 else [])
        assert apart.server.attendance.aggregating[wrong.i]
    assert len(caplog.records) == 1
    seats = [seat for seat in apart.seats() if seat.version]
    assert len({seat.state_bytes().tobytes() for seat in seats}) == 1


@examples(20)
@given(
    scheme=st.sampled_from(SCHEMES),
    t=topologies(max_K=20),
    medium=st.sampled_from(("broadcast", "unicast")),
    aggregators=st.sampled_from(("all", "auto", [1], [SERVER, 0], [SERVER, 0, 1])),
    points=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 7), st.sampled_from(BETWEEN), st.integers(0, 2)), max_size=4
    ),
    gone=st.sampled_from((0.0, 0.3)),
    seed=st.integers(0, 1000),
)
def test_a_round_with_a_silent_relay_equals_a_round_without_it(
    scheme: str,
    t: Topology,
    medium: str,
    aggregators: Aggregators,
    points: list[tuple[int, int, str, int]],
    gone: float,
    seed: int,
) -> None:
    """In some round, from some message on, nothing comes from a relay or to it that others need; then it is back.

    Users, aggregators and what relays know of the rounds are those of a run in which it was away in that round.
    """
    if t.H < 2 and not isinstance(aggregators, str):
        aggregators = [0 if i == 1 else i for i in aggregators][:2]
    rng = np.random.default_rng(seed)
    away = [set(np.flatnonzero(rng.random(t.H) < gone).tolist()) for _ in range(4)]
    ivs = [random_numbers(seed + n, t.K, 6, None) for n in range(4)]

    def fresh() -> tuple[Apart, ScriptedUsers]:
        users = ScriptedUsers(ivs, [set()] * 4, 1)
        return Apart(t, [users], recipe_of(scheme, aggregators=aggregators), Network(medium=medium)), users

    (apart, users), (plain, others) = fresh(), fresh()
    for round in range(4):
        silent, count = set(), defaultdict(int)
        latest = plain.server if plain.central else max(plain.relays, key=lambda relay: relay.version)
        held, version, now = latest.aggregation.state_bytes(), latest.version, apart.server.version

        def change(node: str, message: Message, round: int = round, silent=silent, count=count) -> Message | None:
            relay, kind = message.sender if node == SERVER else node, message.kind
            if not relay.startswith("relay") or kind not in BETWEEN:
                return message
            i = int(relay.split()[1])
            silent |= {i} & {j for at, j, *point in points if (at, point) == (round, [kind, count[relay, kind]])}
            count[relay, kind] += 1
            return None if i in silent else message

        apart.play(round, away[round], change)
        assert apart.server
        lost = set(range(t.H)) - away[round] - set(apart.server.attendance.relays)
        assert lost <= silent
        plain.play(round, away[round] | lost)
        assert users.models.keys() == others.models.keys()
        assert all(same_bits(model, others.models[k]) for k, model in users.models.items())
        assert (users.sent, users.idle) == (others.sent, others.idle)
        for ours, theirs in zip(apart.relays, plain.relays, strict=True):
            before = ours.version == now, theirs.version == version
            if before == (True, False) and ours.version != apart.server.version:  # it was handed the state in vain
                theirs.version = version
                theirs.aggregation.adopt(held)
        for seat, other in zip(apart.seats(), plain.seats(), strict=True):
            assert seat.state_bytes()[4:].tobytes() == other.state_bytes()[4:].tobytes(), "but for the version"
    assert (users.committed, users.dropped) == (others.committed, others.dropped)


@pytest.mark.parametrize(
    ("aggregators", "kind", "at"),
    [
        ("all", COMBINATIONS, SERVER),
        ("all", BROADCAST, "relay 1"),
        ("all", DIGESTS, SERVER),
        ("all", STATE, "relay 1"),
        ("server", IVS, SERVER),
        ([SERVER, 0, 1], IVS, SERVER),
        ([SERVER, 0, 1], BROADCAST, "relay 1"),
        ([SERVER, 0, 1], DIGESTS, SERVER),
        ([SERVER, 0, 1], STATE, "relay 1"),
    ],
)
def test_without_a_message_that_others_need_its_relay_is_left_out(aggregators: Aggregators, kind: str, at: str) -> None:
    """All bits of both attempts are counted: they traveled."""
    (apart, users), (plain, _) = (one(symmetric(K=20, H=5, r=3), aggregators=aggregators) for _ in range(2))
    apart.play(0, away=[1])
    plain.play(0, away=[1])

    def lose(node: str, message: Message) -> Message | None:
        return None if (message.kind, node) == (kind, at) and message.sender in (SERVER, "relay 1") else message

    apart.play(1, change=lose)
    plain.play(1)
    assert apart.server
    assert apart.server.attendance.relays == (0, 2, 3, 4)
    assert set(users.models) == set(range(20))
    spent, usual = (each.links.ledger.bits(RELAYS_TO_SERVER) for each in (apart, plain))
    assert spent.payload > usual.payload


def test_if_the_relay_that_hands_over_the_state_falls_silent_another_one_does() -> None:
    apart, users = one(symmetric(K=20, H=5, r=3))
    apart.play(0, away=[1])

    def lose(node: str, message: Message) -> Message | None:
        return None if (message.kind, message.sender) == (STATE, "relay 0") else message

    apart.play(1, change=lose)
    assert apart.server
    assert apart.server.attendance.relays == (1, 2, 3, 4)
    assert [relay.version for relay in apart.relays] == [1, 3, 3, 3, 3], "the second attempt of the round"
    assert set(users.models) == set(range(20))


def test_a_user_without_a_model_waits() -> None:
    """Its model is lost on the way: it sends nothing more until it hears that its IV had counted."""
    apart, users = one(symmetric(K=20, H=5, r=3))

    def lose(node: str, message: Message) -> Message:
        if message.kind != MODELS or not node.startswith("host"):
            return message
        kept = np.flatnonzero(message.users != 7)
        return replace(message, users=message.users[kept], at=message.rows()[torch.from_numpy(kept)])

    apart.play(0, change=lose)
    assert users.sent == {7: 0}
    assert len(users.committed) == 19
    apart.play(1)  # it listens
    seen = apart.aggregators()[0].seen
    assert 7 not in seen[1][0].tolist()
    assert (0, 7) in users.committed
    assert not users.sent
    apart.play(2)
    assert seen[2][0].tolist() == list(range(20))


def test_a_relay_without_a_verdict_sends_no_models() -> None:
    """It cannot know that they are right. In the next round its users learn by way of the server that they counted."""
    t = any_r(K=12, H=4, r=1, seed=3)
    apart, users = one(t)
    apart.play(0, change=lambda node, message: None if (message.kind, node) == (VERDICT, "relay 1") else message)
    assert set(users.sent) == set(t.N(1)) != set()
    assert [relay.version for relay in apart.relays] == [1, 0, 1, 0], "relay 3 hears nobody"
    apart.play(1)
    assert not set(users.sent)
    assert (0, t.N(1)[0]) in users.committed


def test_a_relay_that_comes_back_is_handed_the_state_of_another() -> None:
    apart, _ = one(symmetric(K=20, H=5, r=3))
    apart.play(0)
    apart.play(1, away=[2])
    assert [relay.version for relay in apart.relays] == [2, 2, 1, 2, 2]
    before = apart.links.ledger.bits("relays_to_server", link=0)
    apart.play(2)
    assert [relay.version for relay in apart.relays] == [3] * 5
    states = [aggregator.state for aggregator in apart.aggregators()]
    assert all(same_bits(state["last"], states[0]["last"]) for state in states)
    spent = apart.links.ledger.bits("relays_to_server", link=0).overhead - before.overhead
    assert spent > 20 * 6 * 64  # all of `last`


def away_for(missed: int, quantizer: Quantizer | None, aggregators: Aggregators = "all") -> tuple[Apart, int]:
    """A network in which relay 2 misses so many rounds, and the bits that server and relays send more when it is back.

    In each round half of the users take part.
    """
    K, m = 10, 640
    ivs = [torch.from_numpy(np.random.default_rng(n).normal(size=(K, m))) for n in range(missed + 3)]
    absent = [set(range(n % 2, K, 2)) for n in range(missed + 3)]
    sides = [ScriptedUsers(ivs, absent, 0)]
    apart = Apart(symmetric(K=K, H=5, r=3), sides, recipe_of(aggregators=aggregators, wire=quantizer))

    def spent() -> int:
        return sum(apart.links.ledger.bits(tier).overhead for tier in (RELAYS_TO_SERVER, SERVER_TO_RELAYS))

    apart.play(0)
    for n in range(missed):
        apart.play(n + 1, away=[2])
    before = spent()
    apart.play(missed + 1)
    handed = spent() - before
    before = spent()
    apart.play(missed + 2)
    return apart, handed - (spent() - before)


@pytest.mark.parametrize("aggregators", ["all", [SERVER, 0, 2]])
@pytest.mark.parametrize("missed", [1, 5])
def test_a_relay_that_missed_few_rounds_gets_their_ivs_as_they_traveled(missed: int, aggregators: Aggregators) -> None:
    apart, handed = away_for(missed, QUANTIZERS["int4"], aggregators)
    ivs = missed * 5 * QUANTIZERS["int4"].bits(640)
    copies = 1 if SERVER in aggregators else 2  # from another relay by way of the server, or from the server
    assert copies * ivs < handed < copies * (ivs + 400 * (missed + 1))
    seats = [seat for seat in apart.seats() if seat.version]
    assert len(seats) == (3 if SERVER in aggregators else 5)
    assert len({seat.state_bytes().tobytes() for seat in seats}) == 1


def test_a_relay_that_missed_the_first_round_gets_its_ivs() -> None:
    ivs = [torch.from_numpy(np.random.default_rng(n).normal(size=(50, 640))) for n in range(2)]
    users, quantizer = ScriptedUsers(ivs, [set()] * 2, 0), QUANTIZERS["int4"]
    apart = Apart(symmetric(K=50, H=5, r=3), [users], recipe_of(aggregators=[SERVER, 0, 2], wire=quantizer))
    apart.play(0, away=[2])
    apart.play(1)
    assert 0 < apart.server.handover_bits - 50 * quantizer.bits(640) < 800


@pytest.mark.parametrize(
    ("quantizer", "missed"), [pytest.param(QUANTIZERS["int8"], 40, marks=pytest.mark.slow), (None, 5)]
)
def test_a_relay_that_missed_many_rounds_gets_the_state_without_what_follows_from_it(
    quantizer: Quantizer | None, missed: int
) -> None:
    """With few bits: what aggregators and coders hold of the IVs, the bases, and the last models as they traveled."""
    apart, handed = away_for(missed, quantizer)
    rows = 10 * 64 * 640
    state = 3 * rows + 10 * quantizer.bits(640) if quantizer else rows
    assert 2 * state < handed < 2 * (state + 2000)
    assert len({seat.state_bytes().tobytes() for seat in apart.seats()}) == 1


@pytest.mark.parametrize(("wire", "missed"), [(None, 5), pytest.param("int8", 39, marks=pytest.mark.slow)])
def test_a_relay_that_was_handed_the_state_does_not_know_earlier_rounds(wire: str | None, missed: int) -> None:
    """It hands on the state to a relay that missed one of these; other relays would hand on their IVs."""
    K, m, rounds = 10, 640, missed + 5
    ivs = [torch.from_numpy(np.random.default_rng(n).normal(size=(K, m))) for n in range(rounds)]
    absent = [set(range(n % 2, K, 2)) for n in range(rounds)]
    sides = [ScriptedUsers(ivs, absent, 0)]
    apart = Apart(symmetric(K=K, H=5, r=3), sides, recipe_of(wire=wire, aggregators="all"))
    users = ScriptedUsers(ivs, absent, 0)
    together = CodedHierarchical(
        symmetric(K=K, H=5, r=3), wire=wire, seed=5, max_pieces=3, generation=9, aggregators="all"
    )
    total = ScriptedAggregator(K, m)
    for n in range(rounds):
        away = {0} if 0 < n <= missed else set()
        away |= {1} if n in (missed, missed + 1, missed + 3) else set()
        apart.play(n, away)
        together.round(n, users, total, away)
    mine, theirs = (each.ledger.bits(RELAYS_TO_SERVER) for each in (apart.links, together))
    assert mine.overhead == theirs.overhead
    assert len({seat.state_bytes().tobytes() for seat in apart.seats()}) == 1


def test_a_server_that_aggregates_needs_no_relay_to_do_so_and_hands_over_the_state() -> None:
    """Relays 0 and 2 aggregate, too. They are away in turns, then both; relays that return get the state once."""
    apart, users = one(symmetric(K=20, H=5, r=3), aggregators=[SERVER, 0, 2])
    ledger, state = apart.links.ledger, 20 * 6 * 64 + 64 + 20 * 32 + 32  # IVs, rounds, receipts, version
    versions, handed, away = [], [], [[], [2], [], [0, 2], [], []]
    for round in range(6):
        before = ledger.bits(SERVER_TO_RELAYS).overhead, ledger.bits(RELAYS_TO_SERVER).payload
        apart.play(round, away[round])
        assert set(users.models) == set(range(20))
        assert ledger.bits(RELAYS_TO_SERVER).payload - before[1] == 20 * 6 * 64, "each IV, and no model"
        assert ledger.bits(RELAYS_TO_SERVER).overhead < state
        versions.append([relay.version for relay in apart.relays])
        handed.append((ledger.bits(SERVER_TO_RELAYS).overhead - before[0]) // state)
    assert versions == [[n, 0, m, 0, 0] for n, m in ((1, 1), (2, 1), (3, 3), (3, 3), (5, 5), (6, 6))]
    assert handed == [0, 0, 1, 0, 1, 0]
    assert len({seat.state_bytes().tobytes() for seat in (*apart.seats()[0:3:2], apart.seats()[-1])}) == 1


def test_without_the_present_state_nobody_aggregates() -> None:
    """Relay 0 alone was there, then only the others are: what users send does not count, and they are told."""
    t = Topology([[1, 1, 0, 1], [0, 1, 1, 1], [0, 1, 1, 0]])
    apart, users = one(t)
    apart.play(0, away=[1, 2])
    between = [apart.links.ledger.bits(tier).payload for tier in (RELAYS_TO_SERVER, SERVER_TO_RELAYS)]
    apart.play(1, away=[0])
    assert apart.server
    assert apart.server.empty
    assert sorted(users.dropped) == [(1, 1), (1, 3)]
    assert users.sent == {0: 1, 2: 0}
    assert between == [apart.links.ledger.bits(tier).payload for tier in (RELAYS_TO_SERVER, SERVER_TO_RELAYS)]
    models, receipts = 3 * (64 + 32), 3 * 8  # one more number and the round that counted last; that none did
    assert apart.links.ledger.bits("relays_to_users").overhead == models + receipts
