"""Nodes in processes of their own, over torch.distributed, play what they play in one process."""

import datetime
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from commands import FORKS
from lossy import end_of_group, possible

from hmtl.communication import TIERS, CodedHierarchical, Communicator, LinkLedger, Network, Uncoded
from hmtl.communication.messages import BROADCAST, SERVER, Message, host_name, relay_name
from hmtl.communication.nodes.coding import CodingRelay
from hmtl.communication.nodes.forwarding import ForwardingRelay
from hmtl.distributed.connections import Connection
from hmtl.distributed.frames import CONTROL, Frame
from hmtl.distributed.links import ProcessLinks
from hmtl.distributed.multicast.group import Listener
from hmtl.distributed.peers import Peers
from hmtl.distributed.placement import Placement
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers, same_bits
from hmtl.topology import Topology, symmetric

HOSTS, ROUNDS, M, EXTRAS = 2, 5, 1000, 1
Fault = Callable[[str, int, Peers], None]
"""Called by each process before each round, with its name and the round."""


def network() -> Topology:
    return symmetric(K=12, H=4, r=2)


def names(t: Topology) -> list[str]:
    return [SERVER, *map(relay_name, range(t.H)), *map(host_name, range(HOSTS))]


def ivs(t: Topology) -> list[torch.Tensor]:
    return [random_numbers(round, t.K, M + EXTRAS, None) for round in range(ROUNDS)]


def make(settings: dict[str, Any], links: Callable[[LinkLedger], Any] | None = None) -> Communicator:
    settings = {name: value for name, value in settings.items() if name != "loss"}
    t, links_ = network(), {} if links is None else {"links": links}
    if settings.pop("coded", True):
        return CodedHierarchical(t, Network(medium=settings.pop("medium", "broadcast")), **settings, **links_)
    return Uncoded(t, Network(**settings), **links_)


def member(rank: int, port: int, settings: dict[str, Any], fault: Fault | None, seconds: float, end: Pipe) -> None:
    """One process: plays its node, and tells what it sent and what its users got."""
    t = network()
    every = names(t)
    store = dist.TCPStore("127.0.0.1", port, len(every), rank == 0, timeout=datetime.timedelta(seconds=60))
    forever = datetime.timedelta(days=365)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(every), timeout=forever)
    me, homes = every[rank], np.array_split(np.arange(t.K), HOSTS)

    group = end_of_group(rank, t.H, run=port, loss=settings["loss"]) if "loss" in settings else None
    listener = group if isinstance(group, Listener) else None
    ranks = Placement(rank, len(every), t.K, t.H).neighbors
    wires = Peers(me, rank, {name: Connection(n, listener) for name, n in ranks.items()}, seconds, group)
    communicator = make(settings, lambda ledger: ProcessLinks(ledger, wires, t, homes))
    mine = homes[int(me.split()[1])].tolist() if me.startswith("host") else []
    users = ScriptedUsers(ivs(t), [set()] * ROUNDS, EXTRAS, mine)
    aggregator, models, heard, relays = ScriptedAggregator(t.K, M + EXTRAS), [], [], []
    for round in range(ROUNDS):
        if fault:
            fault(me, round, wires)
        outcome = communicator.round(round, users, aggregator)
        heard.append(outcome.users.tolist())
        relays.append(outcome.relays)
        models.append({k: model.numpy() for k, model in users.models.items()})
        if me != SERVER:  # all go on together, as with an engine
            wires.send(SERVER, Frame(CONTROL, round))
            wires.receive(CONTROL, [SERVER], patience=6)
            continue
        wires.receive(CONTROL, every[1:], patience=5)
        for name in every[1:]:
            wires.send(name, Frame(CONTROL, round))
    sent = {tier: communicator.ledger.per_link(tier)[:, 0] for tier in TIERS}
    end.send((me, sent, models, heard, dict(wires.lost), wires.notices, relays))
    wires.close()
    end.recv()  # until all are done: whoever goes, cuts its connections
    os._exit(0)


def play(settings: dict[str, Any], fault: Fault | None = None, seconds: float = 30, silent: int = 0) -> dict[str, Any]:
    """All processes' results, by name, without those of so many who will not answer."""
    store = dist.TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False)
    port = store.port
    del store
    ends, processes = [], []
    for rank in range(len(names(network()))):
        ours, theirs = FORKS.Pipe()
        arguments = (rank, port, settings, fault, seconds, theirs)
        processes.append(FORKS.Process(target=member, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        ends.append(ours)
    results: dict[str, Any] = {}
    deadline = time.monotonic() + 300
    try:
        while len(results) < len(ends) - silent:
            assert time.monotonic() < deadline, f"only {sorted(results)} came to an end"
            for end in wait(ends, timeout=1):
                try:
                    name, *rest = end.recv()
                    results[name] = rest
                except EOFError:
                    ends[ends.index(end)] = FORKS.Pipe()[0]  # it has gone, and is heard no more
        return results
    finally:
        for process in processes:
            process.kill()
            process.join()


def came_by_multicast(me: str, round: int, wires: Peers) -> None:
    if me in ("relay 0", "relay 1", "relay 3"):
        assert wires.listener
        assert wires.listener.receiver.taken == round, "one body in each round so far"


multicast = pytest.mark.skipif(not possible(), reason="no multicast on the loopback interface here")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scheme": "paper", "aggregators": [1, 2], "medium": "unicast"},
        {"coded": False},
        pytest.param({"loss": 0.01, "aggregators": [0, 1, 3]}, marks=multicast),
        pytest.param({"loss": 0.2, "aggregators": [0, 1, 3]}, marks=[multicast, pytest.mark.long]),
    ],
    ids=str,
)
def test_as_in_one_process(settings: dict[str, Any]) -> None:
    t, alone = network(), make(settings)
    users, aggregator = ScriptedUsers(ivs(t), [set()] * ROUNDS, EXTRAS), ScriptedAggregator(t.K, M + EXTRAS)
    results = play(settings, came_by_multicast if "loss" in settings else None)
    for round in range(ROUNDS):
        alone.round(round, users, aggregator)
        got = {k: model for _, models, *_ in results.values() for k, model in models[round].items()}
        assert set(got) == set(range(t.K))
        assert all(same_bits(torch.from_numpy(got[k]), model) for k, model in users.models.items())
    for tier in TIERS:
        sent = sum(sent[tier] for sent, *_ in results.values())
        np.testing.assert_array_equal(sent, alone.ledger.per_link(tier)[:, 0])
    assert results[SERVER][2] == [list(range(t.K))] * ROUNDS


class Told:
    """Peers that lead nowhere, and keep what they are told."""

    me, round = SERVER, 0

    def __init__(self) -> None:
        self.casts: list[Frame] = []
        self.said: dict[str, list[tuple[Frame, int]]] = defaultdict(list)

    def cast(self, to: Sequence[str], frame: Frame) -> int:
        self.casts.append(frame)
        return len(self.casts)

    def say(self, to: str, frame: Frame, cast: int = 0) -> None:
        self.said[to].append((frame, cast))


def test_what_several_hear_is_one_in_memory_and_casts_go_in_the_order_of_what_is_said() -> None:
    """A receiver that takes a cast forgets those before."""
    t, wires = network(), Told()
    relays = names(t)[1 : 1 + t.H]
    links = ProcessLinks(LinkLedger(t.K, t.H), wires, t, np.array_split(np.arange(t.K), HOSTS))  # type: ignore[arg-type]
    for n in range(20):
        payload, overhead = torch.full((2, 5), n, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.uint8)
        links.send(Message(0, TIERS[2], BROADCAST, SERVER, tuple(relays), t.H, payload, overhead))
    links.end(BROADCAST, relays)
    assert [int(frame.payload[0, 0]) for frame in wires.casts] == list(range(20))
    for relay in relays:
        assert [(int(frame.payload[1, 4]), cast) for frame, cast in wires.said[relay]] == [
            (n, n + 1) for n in range(20)
        ]
        assert [frame.last for frame, _ in wires.said[relay]] == [False] * 19 + [True]
    assert len({wires.said[relay][-1][0].to_bytes(0, 1, 2)[1].data_ptr() for relay in relays}) == 1


def kill_host(me: str, round: int, wires: Peers) -> None:
    if me == "host 1" and round == 2:
        time.sleep(0.5)  # so that what it sent in the last round has left
        os.kill(os.getpid(), signal.SIGKILL)


def kill_relay(me: str, round: int, wires: Peers) -> None:
    if me == "relay 3" and round == 2:
        time.sleep(0.5)  # so that what it sent in the last round has left
        os.kill(os.getpid(), signal.SIGKILL)


def test_users_of_a_host_that_is_gone_are_absent() -> None:
    results = play({}, kill_host, silent=1)
    everybody, first = list(range(12)), list(range(6))
    assert results[SERVER][2] == [everybody, everybody, first, first, first]
    got = results["host 0"][1]
    assert [sorted(models) for models in got] == [first] * ROUNDS


def test_without_a_relay_the_others_go_on() -> None:
    t = network()
    results = play({"aggregators": [0, 1]}, kill_relay, silent=1)
    reached = [k for k in range(t.K) if set(t.relays_of(k)) - {3}]
    assert results[SERVER][2] == [list(range(t.K))] * 2 + [reached] * 3
    assert "live" in results[SERVER][3]["relay 3"]


def flip(me: str, round: int, wires: Peers) -> None:
    """A bit of what the relay sends goes wrong on the way, after its checksum was made."""
    if me == "relay 2" and round == 1:
        outbox = wires.connections[SERVER].outbox
        put, outbox_put = outbox.put, []

        class Damaging:
            get = outbox.get

            def put(self, parts: Any) -> None:
                if parts and len(parts[1]) and not outbox_put:
                    outbox_put.append(True)
                    parts[1][0] ^= 4
                put(parts)

        wires.connections[SERVER].outbox = Damaging()  # type: ignore[assignment]


def test_a_flipped_bit_is_named_and_never_read() -> None:
    """What comes damaged is missing: the round goes on without its sender, and the next one with it."""
    results = play({}, flip, seconds=30)
    assert results[SERVER][4][:2] == ["relay 2: report of round 1 arrived damaged", "relay 2 is heard again"]
    agree(results, {}, away={1: [2]})


def goes(who: str, step: str, sign: int, me: str, round: int, wires: Peers) -> None:
    """In round 2, when it comes to a step, a relay gets a signal; if that stops it, it goes on some time later."""
    if me == SERVER and sign == signal.SIGSTOP and round > 2:
        time.sleep(1)  # rounds without anything to do would be over before it is back
    if me == who and round == 2:
        time.sleep(0.5)  # so that what it sent in the last round has left
        owner: Any = ForwardingRelay if step == "forward" else CodingRelay
        usual = getattr(owner, step)

        def then(*arguments: Any) -> Any:
            setattr(owner, step, usual)
            if sign == signal.SIGSTOP:
                subprocess.Popen(["sh", "-c", f"sleep 8; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), sign)
            return usual(*arguments)

        setattr(owner, step, then)


@pytest.mark.parametrize(
    ("who", "step", "settings"),
    [
        pytest.param("relay 3", "encode", {"aggregators": [0, 1]}, marks=pytest.mark.long),
        ("relay 1", "decode", {"aggregators": [0, 1]}),
        ("relay 1", "confirm", {"medium": "unicast", "aggregators": "all"}),
        pytest.param("relay 2", "forward", {"coded": False}, marks=pytest.mark.long),
        pytest.param(
            *("relay 1", "report", {"loss": 0.01, "aggregators": [0, 1, 3]}), marks=[multicast, pytest.mark.long]
        ),
    ],
    ids=str,
)
def test_a_relay_dies_within_a_round(who: str, step: str, settings: dict[str, Any]) -> None:
    """The round goes on over the others, to the same bits as if it had not come; and so do all later ones."""
    results = play(settings, partial(goes, who, step, signal.SIGKILL), seconds=30, silent=1)
    assert "live" in results[SERVER][3][who]
    agree(results, settings, away={round: [int(who.split()[1])] for round in range(2, ROUNDS)})


def test_a_relay_that_stood_still_comes_back() -> None:
    """It missed rounds, and is handed the state; no model ever differs."""
    settings = {"aggregators": [0, 1]}
    results = play(settings, partial(goes, "relay 1", "confirm", signal.SIGSTOP), seconds=2)
    heard = results[SERVER][4]
    assert heard[0] == "relay 1: no digests came in time"
    assert "relay 1 is heard again" in heard
    relays = results[SERVER][5]
    assert relays[2] == (0, 2, 3)
    assert relays[-1] == (0, 1, 2, 3)
    agree(results, settings, away={n: sorted({0, 1, 2, 3} - set(there)) for n, there in enumerate(relays)})


def agree(results: dict[str, Any], settings: dict[str, Any], away: dict[int, list[int]]) -> None:
    """Users got the models of a run in one process with these relays away."""
    t, alone = network(), make(settings)
    users, aggregator = ScriptedUsers(ivs(t), [set()] * ROUNDS, EXTRAS), ScriptedAggregator(t.K, M + EXTRAS)
    for round in range(ROUNDS):
        outcome = alone.round(round, users, aggregator, away.get(round, []))
        assert results[SERVER][2][round] == outcome.users.tolist()
        got = {k: model for models in (result[1] for result in results.values()) for k, model in models[round].items()}
        assert got.keys() == users.models.keys()
        assert all(same_bits(torch.from_numpy(got[k]), model) for k, model in users.models.items())
