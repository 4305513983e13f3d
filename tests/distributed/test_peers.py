"""Which frames a process accepts, and how long it waits for them."""

import time
from collections.abc import Callable
from dataclasses import replace
from threading import Timer
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hmtl.communication.messages import IVS, REPORT
from hmtl.distributed import peers as module
from hmtl.distributed.connections import Connection, Stream
from hmtl.distributed.frames import CONTROL, MAY_SEND, Frame
from hmtl.distributed.peers import BEFORE, Peers
from hmtl.errors import EngineError


class Fake:
    """A connection from which the test's frames arrive, and then nothing."""

    rank = 3
    listener = None

    def __init__(self) -> None:
        self.arrived, self.sent = [], []
        self.wait: Callable[[float], None] = lambda seconds: time.sleep(max(0.0, seconds))

    def send(self, frame: Frame, *rest: object) -> None:
        self.sent.append(frame)

    def receive(self, seconds: float) -> Frame | None:
        if not self.arrived:
            self.wait(seconds)
        if not self.arrived:
            return None
        frame = self.arrived.pop(0)
        if isinstance(frame, str):
            raise EngineError(frame)
        return frame


@pytest.fixture
def other() -> Fake:
    return Fake()


@pytest.fixture
def peers(other: Fake) -> Peers:
    peers = Peers("server", {"relay 2": other}, seconds=0.01)
    peers.begin(5)
    return peers


def arrive(other: Fake, number: int, kind: str = REPORT, round: int = 5, **how: Any) -> None:
    other.arrived.append(Frame(kind, round, torch.full((1, 4), number, dtype=torch.uint8), **how))


def receive(peers: Peers, kind: str = REPORT) -> list[int] | None:
    """Numbers of the frames of a batch; None if it is missing."""
    batches = peers.receive(kind, ["relay 2"])
    return [int(frame.payload[0, 0]) for frame in batches["relay 2"]] if batches else None


def test_a_batch_has_all_frames_of_a_kind_up_to_the_last(peers: Peers, other: Fake) -> None:
    for sequence, (kind, last) in enumerate([(REPORT, False), (IVS, True), (REPORT, True), (REPORT, True)]):
        arrive(other, sequence, kind, last=last)
    assert [receive(peers), receive(peers, IVS), receive(peers)] == [[0, 2], [1], [3]]
    assert receive(peers) is None


def test_nothing_is_sent_to_a_peer_whose_connection_has_ended(peers: Peers, other: Fake) -> None:
    peers.send("relay 2", Frame(REPORT, 5))
    other.arrived.append("a reason")
    assert receive(peers) is None
    assert peers.lost == {"relay 2": "a reason"}
    assert not peers.notices, "the reason in `lost` is enough"
    peers.send("relay 2", Frame(REPORT, 5))
    assert len(other.sent) == 1


def test_a_missed_batch_is_not_taken_for_a_later_one(peers: Peers, other: Fake) -> None:
    """Otherwise what a relay sent in one attempt of a round would be read as of another."""
    assert [receive(peers), receive(peers)] == [None, None]
    for sequence, last in enumerate([False, True, True, True, True]):
        arrive(other, sequence, IVS if sequence == 3 else REPORT, last=last)
    assert [receive(peers), receive(peers, IVS), receive(peers)] == [[4], [3], None]
    peers.begin(6)
    arrive(other, 5)
    arrive(other, 6, round=6)
    assert receive(peers) == [6]


def test_frames_of_past_rounds_are_dropped_and_those_of_future_rounds_wait(peers: Peers, other: Fake) -> None:
    arrive(other, 0, round=4)
    arrive(other, 1, round=6)
    assert receive(peers) is None
    assert peers.late == {"relay 2"}
    peers.begin(6)
    assert receive(peers) == [1]
    assert not peers.late


def test_frames_of_an_earlier_epoch_are_dropped_whatever_their_round(peers: Peers, other: Fake) -> None:
    peers.epoch = 1
    arrive(other, 0, round=9)
    arrive(other, 1, epoch=1)
    arrive(other, 2, round=0, epoch=2)
    assert receive(peers) == [1]
    assert receive(peers) is None
    peers.epoch = 2
    peers.begin(0)
    assert receive(peers) == [2]


def test_late_peers_come_last_and_get_as_long_again_as_the_others_took() -> None:
    fakes = {f"relay {i}": Fake() for i in range(3)}
    peers = Peers("server", fakes, seconds=20)  # type: ignore[arg-type]
    peers.begin(5)
    peers.late |= {"relay 0", "relay 1"}
    arrive(fakes["relay 0"], 0)
    fakes["relay 2"].wait = lambda seconds: time.sleep(0.2)
    Timer(0.1, arrive, (fakes["relay 2"], 0)).start()
    start = time.monotonic()
    assert list(peers.receive(REPORT, list(fakes))) == ["relay 0", "relay 2"]
    assert time.monotonic() - start < 10
    assert peers.late == {"relay 1"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only moves while a process waits, and `suspended` seconds more at the next wait."""
    clock = SimpleNamespace(now=0.0, suspended=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    return clock


def wait_with(clock: SimpleNamespace) -> Callable[[float], None]:
    def wait(seconds: float) -> None:
        clock.now += max(0.0, seconds) + clock.suspended
        clock.suspended = 0.0

    return wait


@pytest.mark.parametrize("suspended", [0.0, 1000.0])
def test_if_nobody_answers_the_full_time_is_granted_once_per_round(
    peers: Peers, other: Fake, clock: SimpleNamespace, suspended: float
) -> None:
    """It may be this process that was suspended, not the others."""
    peers.seconds, other.wait = 2.0, wait_with(clock)

    def waits(patience: int) -> float:
        start = clock.now
        peers.receive(REPORT, ["relay 2"], patience)
        return clock.now - start

    clock.suspended = suspended
    assert [waits(3), waits(3), waits(6), waits(6)] == [6 + suspended, 0, 6, 0]
    peers.begin(6)
    assert [waits(3), waits(6)] == [6, 6]
    assert len(peers.notices) == 1, "a peer that stays late is reported once"


def test_a_peer_that_is_missing_while_others_answer_is_not_waited_for_again(clock: SimpleNamespace) -> None:
    silent, other = Fake(), Fake()
    peers = Peers("server", {"relay 1": silent, "relay 2": other}, seconds=2)  # type: ignore[dict-item]
    silent.wait = wait_with(clock)
    arrive(other, 0, round=BEFORE)
    assert list(peers.receive(REPORT, ["relay 1", "relay 2"])) == ["relay 2"]
    assert clock.now == 2
    assert not peers.receive(IVS, ["relay 1"], patience=5)
    assert clock.now == 2


def test_a_peer_that_comes_back_is_taken_back_whether_it_was_there_before_or_not() -> None:
    connection = Connection("host 0", 4, MAY_SEND["host", "relay"])
    peers = Peers("relay 0", {"host 0": connection}, 0.01)
    for _ in range(2):
        assert not peers.receive(IVS, ["host 0"])
        assert list(peers.lost) == ["host 0"]
        assert not peers.take_back("host 0")
        assert peers.returned == []
        stream = Stream(connection)
        connection.attach(stream)
        assert peers.returned == ["host 0"]
        assert peers.take_back("host 0")
        assert peers.take_back("host 0"), "it is there"
        assert (peers.returned, peers.lost) == ([], {})
        stream.end("its process has ended")


def test_a_peer_is_followed_into_the_next_epoch() -> None:
    connection = Connection("server", 0, MAY_SEND["server", "relay"])
    peers = Peers("relay 0", {"server": connection}, 0.01)
    peers.begin(7)
    connection.attach(stream := Stream(connection))
    for epoch, round in ((0, 7), (2, BEFORE), (2, 3)):
        stream.inbox.put(replace(Frame(CONTROL, round), epoch=epoch))
    assert peers.follow("server")
    assert (peers.epoch, peers.round) == (2, BEFORE)
    assert [frame.round for frame in peers.receive(CONTROL, ["server"])["server"]] == [BEFORE]
    assert not peers.receive(CONTROL, ["server"]), "a later round"
    peers.begin(3)
    assert [frame.round for frame in peers.receive(CONTROL, ["server"])["server"]] == [3]
    stream.end("its process has ended")
    assert not peers.follow("server")
