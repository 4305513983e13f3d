"""What a process believes of the frames that come to it."""

import time
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Thread

import pytest
import torch

from hmtl.communication.messages import IVS, REPORT
from hmtl.distributed import connections as module
from hmtl.distributed.connections import Wires
from hmtl.distributed.frames import Frame

ME, OTHER = 7, 3  # ranks


class Silent:
    """A peer whose threads do nothing: the test puts into its queues."""

    def __init__(self, rank: int, listener: None) -> None:
        self.rank, self.threads = rank, []
        self.inbox, self.outbox = SimpleQueue(), SimpleQueue()


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Wires:
    monkeypatch.setattr(module, "Peer", Silent)
    monkeypatch.setattr(module.dist, "get_rank", lambda: ME)
    found = Wires("server", {"relay 2": OTHER}, seconds=0.01)
    found.begin(5)
    return found


def arrive(wires: Wires, sequence: int, kind: str = REPORT, round: int = 5, last: bool = True, **changed: int) -> None:
    payload = torch.full((1, 4), sequence, dtype=torch.uint8)
    header, body = Frame(kind, round, payload, last=last).to_bytes(OTHER, ME, sequence)
    wires.peers["relay 2"].inbox.put((replace(header, **changed), body))


def hear(wires: Wires, kind: str = REPORT) -> list[int] | None:
    """Numbers of the frames of a turn; None where it is missing."""
    heard = wires.hear(kind, ["relay 2"])
    return [int(frame.payload[0, 0]) for frame in heard["relay 2"]] if heard else None


def test_a_turn_has_all_frames_up_to_the_last_and_kinds_stay_apart(wires: Wires) -> None:
    for sequence, (kind, last) in enumerate([(REPORT, False), (IVS, True), (REPORT, True), (REPORT, True)]):
        arrive(wires, sequence, kind, last=last)
    assert [hear(wires), hear(wires, IVS), hear(wires)] == [[0, 2], [1], [3]]
    assert hear(wires) is None


@pytest.mark.parametrize("second", [0, 2], ids=["repeated", "one is missing"])
def test_frames_out_of_order_are_named_and_nothing_more_is_heard(wires: Wires, second: int) -> None:
    arrive(wires, 0)
    arrive(wires, second)
    arrive(wires, 1)
    assert [hear(wires), hear(wires), hear(wires)] == [[0], None, None]
    assert wires.lost == {"relay 2": f"its frame {second} came where frame 1 belongs"}


@pytest.mark.parametrize("changed", [{"sender": 1}, {"receiver": 1}])
def test_frames_of_others_are_named(wires: Wires, changed: dict[str, int]) -> None:
    arrive(wires, 0, **changed)
    assert hear(wires) is None
    assert "came from it" in wires.lost["relay 2"]


def test_a_turn_with_a_damaged_frame_is_missing_and_named_and_the_next_is_heard(wires: Wires) -> None:
    for sequence, last in enumerate([False, False, True]):
        arrive(wires, sequence, last=last, **({"checksum": 1} if sequence == 1 else {}))
    arrive(wires, 3)
    assert hear(wires) is None
    assert not wires.lost
    assert wires.news == ["relay 2: report of round 5 arrived damaged"]
    assert hear(wires) == [3]
    assert wires.news[1:] == ["relay 2 is heard again"]


def test_a_damaged_header_loses_its_sender(wires: Wires) -> None:
    """Nobody knows where the next one begins."""
    wires.peers["relay 2"].inbox.put("a header arrived damaged, or is of another program")
    assert hear(wires) is None
    assert wires.lost == {"relay 2": "a header arrived damaged, or is of another program"}


def test_who_was_late_is_waited_for_as_long_again_as_the_others_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked last, and answers keep the order of the names."""
    monkeypatch.setattr(module, "Peer", Silent)
    monkeypatch.setattr(module.dist, "get_rank", lambda: ME)
    wires = Wires("server", {"relay 0": 1, "relay 1": 2, "relay 2": OTHER}, seconds=20)
    wires.begin(5)
    wires.late |= {"relay 0", "relay 1"}

    def answer() -> None:
        time.sleep(0.3)
        for name, rank in (("relay 2", OTHER), ("relay 0", 1)):
            header, body = Frame(REPORT, 5).to_bytes(rank, ME, 0)
            wires.peers[name].inbox.put((header, body))

    Thread(target=answer).start()
    start = time.monotonic()
    assert list(wires.hear(REPORT, ["relay 0", "relay 1", "relay 2"])) == ["relay 0", "relay 2"]
    assert time.monotonic() - start < 10
    assert wires.late == {"relay 1"}
    assert wires.news == ["relay 0 is heard again"]


def test_a_turn_that_was_missed_is_not_taken_for_the_next_of_its_kind(wires: Wires) -> None:
    """Else what a relay said of one attempt of a round, or of one code, would be read as of another."""
    assert [hear(wires), hear(wires)] == [None, None]
    for sequence, last in enumerate([False, True, True, True, True]):
        arrive(wires, sequence, IVS if sequence == 3 else REPORT, last=last)
    assert [hear(wires), hear(wires, IVS), hear(wires)] == [[4], [3], None]
    wires.begin(6)
    arrive(wires, 5)
    arrive(wires, 6, round=6)
    assert hear(wires) == [6]


class Clock:
    """Time goes by where a process waits; where it stands still, all at once."""

    now, stands = 0.0, 0.0

    def monotonic(self) -> float:
        return self.now


class Waited:
    """A queue to which nothing comes."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def get(self, timeout: float) -> None:
        self.clock.now += timeout + self.clock.stands
        self.clock.stands = 0.0
        raise Empty


@pytest.mark.parametrize("stands", [0.0, 1000.0])
def test_where_nobody_is_heard_it_may_be_this_process_that_stood_still(
    wires: Wires, monkeypatch: pytest.MonkeyPatch, stands: float
) -> None:
    """Then who was late is waited for as usual, once in each round: in all as long as who waits most patiently."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    wires.seconds, wires.peers["relay 2"].inbox = 2.0, Waited(clock)

    def waits(patience: int) -> float:
        start = clock.now
        wires.hear(REPORT, ["relay 2"], patience)
        return clock.now - start

    clock.stands = stands
    assert [waits(3), waits(3), waits(6), waits(6)] == [6 + stands, 0, 6, 0]
    wires.begin(6)
    assert [waits(3), waits(6)] == [6, 6]
    wires.begin(7)
    wires.peers["relay 2"].inbox = SimpleQueue()
    arrive(wires, 0, round=7)
    assert hear(wires) == [0]
    assert wires.news[1:] == ["relay 2 is heard again"]


def test_who_is_missing_where_others_were_heard_is_not_waited_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "Peer", Silent)
    monkeypatch.setattr(module.dist, "get_rank", lambda: ME)
    wires = Wires("server", {"relay 1": 2, "relay 2": OTHER}, seconds=2)
    monkeypatch.setattr(module, "time", clock)
    wires.peers["relay 1"].inbox = Waited(clock)  # type: ignore[assignment]
    arrive(wires, 0, round=0)
    assert list(wires.hear(REPORT, ["relay 1", "relay 2"])) == ["relay 2"]
    assert clock.now == 2
    assert not wires.hear(IVS, ["relay 1"], patience=5)
    assert clock.now == 2


def test_what_is_late_is_not_heard_and_what_is_early_waits(wires: Wires) -> None:
    arrive(wires, 0, round=4)
    arrive(wires, 1, round=6)
    assert hear(wires) is None
    assert wires.late == {"relay 2"}
    wires.begin(6)
    assert hear(wires) == [1]
    assert not wires.late


def test_to_who_is_lost_nothing_is_said(wires: Wires) -> None:
    wires.say("relay 2", Frame(REPORT, 5))
    wires.peers["relay 2"].inbox.put("it does not live any more")
    assert hear(wires) is None
    wires.say("relay 2", Frame(REPORT, 5))
    assert wires.peers["relay 2"].outbox.qsize() == 1
