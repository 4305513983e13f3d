"""Rounds over links between processes give what they give in one process, also when nodes fail."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import threads
import torch
from hypothesis import given
from hypothesis import strategies as st
from lossy import ends_of_group, possible
from threads import Killed

from hmtl.communication import TIERS, CodedHierarchical, Communicator, LinkLedger, Network, Uncoded
from hmtl.communication.messages import BROADCAST, COMBINATIONS, DIGESTS, IVS, REPORT, SERVER, Message, relay_name
from hmtl.distributed.control import Control
from hmtl.distributed.frames import CONTROL, Frame
from hmtl.distributed.links import ProcessLinks
from hmtl.distributed.peers import Peers
from hmtl.distributed.placement import Placement
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers, same_bits
from hmtl.topology import symmetric

T, HOSTS, ROUNDS, M, EXTRAS = symmetric(K=12, H=4, r=2), 2, 5, 200, 1
EVERYBODY = list(range(T.K))
PLACEMENTS = [Placement(rank, 1 + T.H + HOSTS, T.K, T.H) for rank in range(1 + T.H + HOSTS)]
IV_ROWS = [random_numbers(round, T.K, M + EXTRAS, None) for round in range(ROUNDS)]
Settings = dict[str, Any]
Fault = Callable[[Peers, int], None]
"""Prepares the fault of a node, before each round."""
multicast = pytest.mark.skipif(not possible(), reason="no multicast on the loopback interface here")


def make(settings: Settings, links: Callable[[LinkLedger], Any] | None = None) -> Communicator:
    settings = {name: value for name, value in settings.items() if name != "loss"}
    given = {} if links is None else {"links": links}
    if settings.pop("coded", True):
        return CodedHierarchical(T, Network(medium=settings.pop("medium", "broadcast")), **settings, **given)
    return Uncoded(T, Network(**settings), **given)


def play(settings: Settings, fault: Fault | None = None, seconds: float = 30.0) -> dict[str, dict[str, Any]]:
    """What each node saw and sent, by name."""

    def node(placement: Placement, peers: Peers) -> dict[str, Any]:
        communicator = make(settings, lambda ledger: ProcessLinks(ledger, peers, T, placement.homes))
        users = ScriptedUsers(IV_ROWS, [set()] * ROUNDS, EXTRAS, placement.users.tolist())
        aggregator, control = ScriptedAggregator(T.K, M + EXTRAS), Control(peers)
        seen: dict[str, Any] = defaultdict(list)
        for round in range(ROUNDS):
            if fault:
                fault(peers, round)
            outcome = communicator.round(round, users, aggregator)
            seen["users"].append(outcome.users.tolist())
            seen["relays"].append(outcome.relays)
            seen["models"].append(users.models)
            seen["notices"] += peers.notices
            control.gather({})
            control.broadcast({})  # all begin the next round together, as in a run
        return {**seen, "bits": {tier: communicator.ledger.per_link(tier)[:, 0] for tier in TIERS}, "lost": peers.lost}

    group = {"group": ends_of_group(T.H, settings["loss"]).get} if "loss" in settings else {}
    return threads.play(PLACEMENTS, node, seconds, **group)


def check_models(results: dict[str, Any], settings: Settings, away: dict[int, list[int]] | None = None) -> Communicator:
    """Compare with a run in one process in which these relays are absent, by round."""
    alone = make(settings)
    users, aggregator = ScriptedUsers(IV_ROWS, [set()] * ROUNDS, EXTRAS), ScriptedAggregator(T.K, M + EXTRAS)
    for round in range(ROUNDS):
        outcome = alone.round(round, users, aggregator, (away or {}).get(round, []))
        assert results[SERVER]["users"][round] == outcome.users.tolist()
        received = {k: model for seen in results.values() for k, model in seen["models"][round].items()}
        assert received.keys() == users.models.keys()
        assert all(same_bits(received[k], model) for k, model in users.models.items())
    return alone


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scheme": "paper", "aggregators": [1, 2], "medium": "unicast"},
        {"coded": False},
        {"aggregators": [SERVER, 0, 1]},
        pytest.param({"loss": 0.01, "aggregators": [0, 1, 3]}, marks=[multicast, pytest.mark.slow]),
        pytest.param({"loss": 0.2, "aggregators": [0, 1, 3]}, marks=[multicast, pytest.mark.slow]),
    ],
    ids=str,
)
def test_models_and_payload_are_those_of_one_process(settings: Settings) -> None:
    results = play(settings)
    alone = check_models(results, settings)
    for tier in TIERS:
        sent = sum(seen["bits"][tier] for seen in results.values())
        np.testing.assert_array_equal(sent, alone.ledger.per_link(tier)[:, 0])


def killed(name: str, round: int, kind: str) -> Fault:
    """The node is killed when it would send its first frame of a kind in a round."""

    def prepare(peers: Peers, now: int) -> None:
        if peers.name != name or now != round:
            return
        send = peers.send

        def send_or_end(to: str, frame: Frame, *cast: Any) -> None:
            if frame.kind == kind:
                time.sleep(0.05)  # so that the frames before have left
                raise Killed
            send(to, frame, *cast)

        peers.send = send_or_end  # type: ignore[method-assign]

    return prepare


def test_users_of_a_lost_host_are_absent() -> None:
    results = play({}, killed("host 1", 2, IVS))
    first_half = EVERYBODY[: T.K // 2]
    assert results[SERVER]["users"] == [EVERYBODY] * 2 + [first_half] * 3
    assert [sorted(models) for models in results["host 0"]["models"]] == [first_half] * ROUNDS


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("relay 3", REPORT, {"aggregators": [0, 1]}),
        pytest.param("relay 3", COMBINATIONS, {"aggregators": [0, 1]}, marks=pytest.mark.slow),
        ("relay 1", DIGESTS, {"aggregators": [0, 1]}),
        pytest.param("relay 1", DIGESTS, {"medium": "unicast", "aggregators": "all"}, marks=pytest.mark.slow),
        ("relay 2", IVS, {"coded": False}),
        ("relay 1", DIGESTS, {"aggregators": [SERVER, 0, 1]}),
        pytest.param("relay 3", IVS, {"aggregators": [SERVER, 0, 1]}, marks=pytest.mark.slow),
        pytest.param(
            *("relay 1", DIGESTS, {"loss": 0.01, "aggregators": [0, 1, 3]}), marks=[multicast, pytest.mark.slow]
        ),
    ],
    ids=str,
)
def test_a_round_continues_without_a_relay_that_ends_within_it(name: str, kind: str, settings: Settings) -> None:
    """The models are those of a round to which the relay never came, and so in all later rounds."""
    results = play(settings, killed(name, 2, kind))
    assert "ended" in results[SERVER]["lost"][name]
    check_models(results, settings, away={round: [int(name.split()[1])] for round in range(2, ROUNDS)})


@pytest.mark.parametrize(
    ("name", "kind", "user"),
    [("host 1", IVS, 0), ("host 1", IVS, None), ("relay 3", IVS, 1), ("relay 3", "models", 7)],
)
def test_nobody_speaks_for_users_of_others(name: str, kind: str, user: int | None) -> None:
    """A node that does is lost to those it deceives, and the run goes on."""

    def impersonate(peers: Peers, round: int) -> None:
        send = peers.send
        if peers.name == name and round == 2:

            def send_for_others(to: str, frame: Frame, *cast: Any) -> None:
                if frame.kind == kind and frame.users is not None and len(frame.users):
                    others = None if user is None else np.array([user] * len(frame.users))
                    frame = replace(frame, users=others if to != "host 0" else frame.users)
                elif frame.kind == CONTROL:
                    time.sleep(0.2)  # so that the frames before have left
                    raise Killed  # otherwise it would find out that nobody hears it
                send(to, frame, *cast)

            peers.send = send_for_others  # type: ignore[method-assign]

    results = play({"coded": False}, impersonate)
    lost = {loser: seen["lost"].get(name, "") for loser, seen in results.items()}
    deceived = [loser for loser, reason in lost.items() if "spoke for users" in reason]
    expected = {("host 1", IVS): "relay", ("relay 3", IVS): "server", ("relay 3", "models"): "host 1"}[name, kind]
    assert deceived
    assert all(loser.startswith(expected) for loser in deceived)
    if name == "host 1":
        assert results[SERVER]["users"][2:] == [EVERYBODY[: T.K // 2]] * 3


@pytest.mark.slow
def test_a_relay_that_was_suspended_comes_back() -> None:
    """It misses a round and is sent the state; no model ever differs."""
    settings = {"aggregators": [0, 1]}

    def suspend(peers: Peers, round: int) -> None:
        if peers.name == SERVER and round > 2:
            time.sleep(1)  # otherwise all rounds would be over before the relay is back
        if peers.name == "relay 1" and round == 2:
            send, waited = peers.send, []

            def send_late(to: str, frame: Frame, *cast: Any) -> None:
                if frame.kind == DIGESTS and not waited:
                    waited.append(True)
                    time.sleep(5)
                send(to, frame, *cast)

            peers.send = send_late  # type: ignore[method-assign]

    results = play(settings, suspend, seconds=1)
    relays = results[SERVER]["relays"]
    assert relays[2] == (0, 2, 3)
    assert relays[-1] == (0, 1, 2, 3)
    check_models(results, settings, {n: sorted({0, 1, 2, 3} - set(present)) for n, present in enumerate(relays)})


class Recorder:
    """Peers that lead nowhere and keep what is sent."""

    name, round = SERVER, 0

    def __init__(self) -> None:
        self.casts: list[Frame] = []
        self.sent: dict[str, list[tuple[Frame, int]]] = defaultdict(list)

    def multicast(self, to: Sequence[str], frame: Frame) -> int:
        self.casts.append(frame)
        return len(self.casts)

    def send(self, to: str, frame: Frame, cast: int = 0) -> None:
        self.sent[to].append((frame, cast))


def test_receivers_of_a_message_share_its_memory_and_its_multicast() -> None:
    """Multicasts are numbered in the order of the frames, as a receiver that takes one forgets those before."""
    peers, relays = Recorder(), [relay_name(i) for i in range(T.H)]
    links = ProcessLinks(LinkLedger(T.K, T.H), peers, T, PLACEMENTS[0].homes)  # type: ignore[arg-type]
    for n in range(20):
        payload, overhead = torch.full((2, 5), n, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.uint8)
        links.send(Message(0, TIERS[2], BROADCAST, SERVER, tuple(relays), T.H, payload, overhead))
    links.end(BROADCAST, relays)
    assert [int(frame.payload[0, 0]) for frame in peers.casts] == list(range(20))
    for relay in relays:
        assert [(int(frame.payload[1, 4]), cast) for frame, cast in peers.sent[relay]] == [
            (n, n + 1) for n in range(20)
        ]
        assert [frame.last for frame, _ in peers.sent[relay]] == [False] * 19 + [True]
    assert len({peers.sent[relay][-1][0].body.data_ptr() for relay in relays}) == 1


class Pipe:
    """A connection that ends where it begins."""

    rank, listener = 1, None

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def send(self, frame: Frame, *rest: object) -> None:
        self.frames.append(frame)

    def receive(self, seconds: float) -> Frame | None:
        return self.frames.pop(0) if self.frames else None


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.lists(st.booleans(), max_size=24))
def test_a_message_counts_in_its_round_or_not_at_all(evaluated: list[bool], turns: list[bool]) -> None:
    """Sender and receiver play the same rounds, each at its own pace; figures follow in some of them."""
    steps = [(round, figures) for round, each in enumerate(evaluated) for figures in (False, True)[: 1 + each]]
    pipe = Pipe()
    ends = {name: Peers(name, {to: pipe}, 0.001) for name, to in ((SERVER, "relay 1"), ("relay 1", SERVER))}  # type: ignore[dict-item]
    both = {
        name: [ProcessLinks(LinkLedger(T.K, T.H), peers, T, PLACEMENTS[0].homes, each) for each in (False, True)]
        for name, peers in ends.items()
    }
    sent, reached = 0, 0
    for sends in [*turns, *[False] * len(steps)]:
        at = sent if sends else reached
        if at == len(steps):
            continue
        round, figures = steps[at]
        links = both["relay 1" if sends else SERVER][figures]
        links.begin(round)
        if sends:
            row = torch.full((1, 1), at, dtype=torch.uint8)
            links.send(Message(round, TIERS[1], REPORT, "relay 1", (SERVER,), 1, row, row))
            links.end(REPORT, [SERVER])
            sent += 1
            continue
        messages = links.collect(SERVER, REPORT, ["relay 1"])
        assert [(message.round, int(message.payload)) for message in messages] == [(round, at)] * (sent > at)
        reached += 1
