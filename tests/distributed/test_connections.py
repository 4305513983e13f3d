"""Which frames a connection accepts from a neighbor, and how a neighbor comes back."""

import gc
import time
import weakref
from collections.abc import Callable, Iterable
from threading import Thread

import pytest
import torch

from hmtl.communication.messages import BROADCAST, IVS, REPORT, VERDICT
from hmtl.distributed import connections as module
from hmtl.distributed.connections import ENDED, Connection, Stream
from hmtl.distributed.frames import BYE, CONTROL, HEADER, KINDS, MAY_SEND, PIECES, Frame, Header
from hmtl.errors import EngineError


@pytest.fixture
def connection() -> Connection:
    """The server's connection to a relay."""
    return Connection("relay 2", MAY_SEND["relay", "server"])


def frame(number: int, kind: str = REPORT, size: int = 1) -> Frame:
    return Frame(kind, 5, torch.full((1, size), number, dtype=torch.uint8))


def messages(frames: Iterable[Frame]) -> list[bytes]:
    """What the relay's stream carries."""
    stream = Stream(Connection("server", MAY_SEND["server", "relay"]))
    for each in frames:
        stream.send(each)
    stream.close()
    return list(stream.outgoing())


def arrive(connection: Connection, content: Iterable[bytes]) -> Stream:
    stream = Stream(connection)
    connection.attach(stream)
    stream.take(iter(content))
    return stream


def numbers(connection: Connection) -> list[int | str]:
    """The frames that arrive until the stream has ended, and why it has."""
    found: list[int | str] = []
    try:
        while each := connection.receive(0):
            found.append(int(each.payload[0, -1]))
    except EngineError as error:
        found.append(str(error))
    return found


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 3000, 5432])
def test_frames_arrive_in_order_until_the_neighbor_leaves(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(module, "MAX_CHUNK_BYTES", 1000)
    frames = [frame(1), frame(2, size=size + 1), frame(3)]
    arrive(connection, messages([*frames, frame(0, BYE), frame(4)]))
    assert numbers(connection) == [1, 2, 3, "it has left"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: [*content[:-1], content[-1][:-1]],
        lambda content: [*content[:-1], content[-1] + b"0"],
        lambda content: [*content[:-1], b""],
        lambda content: [content[0][:10], *content[1:]],
        lambda content: [b"hmt1" + content[0][4:], *content[1:]],
        lambda content: [content[0][:4] + b"\xff" + content[0][5:], *content[1:]],
        lambda content: [content[0][: HEADER - 12] + b"\xff" * 12, *content[1:]],
        lambda content: messages([frame(2, BROADCAST)]),
        lambda content: messages([frame(2, size=10_000)]),
    ],
    ids=["short", "long", "nothing", "half a header", "version", "kind", "huge", "of another role", "too large"],
)
def test_what_no_neighbor_may_send_ends_its_stream_and_costs_no_memory(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[list[bytes]], list[bytes]]
) -> None:
    monkeypatch.setattr(module, "MAX_CHUNK_BYTES", 1000)
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 9_999)
    arrive(connection, [*messages([frame(1)]), *spoil(messages([frame(2, size=2500)])), *messages([frame(3)])])
    assert [type(each) for each in numbers(connection)] == [int, str]


def test_a_neighbor_that_comes_back_is_heard_again_once_it_is_taken_back(connection: Connection) -> None:
    assert not connection.wait(0)
    first = Stream(connection)
    connection.attach(first)
    assert connection.wait(0)
    assert not connection.take_back()
    second = arrive(connection, messages([frame(7)]))
    assert numbers(connection) == ["its process came back"]
    connection.send(frame(1))
    assert list(first.outgoing()) == [], "nothing is sent to the process that is no more"
    assert connection.take_back()
    assert connection.stream is second
    assert numbers(connection)[0] == 7


def test_a_neighbor_whose_connection_was_closed_does_not_come_back(connection: Connection) -> None:
    connection.attach(Stream(connection))
    connection.close()
    connection.attach(again := Stream(connection))
    assert again.ended.is_set()
    assert not connection.take_back()


def sending(stream: Stream) -> list[tuple[str, int]]:
    """The kinds and numbers of the frames that the stream sends until it is closed."""
    stream.close()
    headers = [Header.from_bytes(each[:HEADER]) for each in stream.outgoing()]
    return [(KINDS[header.kind], header.round) for header in headers]


def test_messages_of_rounds_that_are_over_are_not_sent(connection: Connection) -> None:
    """Control values are, in order, and so are pieces of earlier rounds, which do not begin another."""
    stream = Stream(connection)
    for kind, round in ((IVS, 1), (CONTROL, 0), (IVS, 2), (PIECES, 1), (VERDICT, 2), (CONTROL, 0), (BYE, 0)):
        stream.send(Frame(kind, round))
    assert sending(stream) == [(CONTROL, 0), (IVS, 2), (PIECES, 1), (VERDICT, 2), (CONTROL, 0), (BYE, 0)]


def test_what_waits_for_a_neighbor_is_bounded_and_released_when_its_stream_ends(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, frames = Stream(connection), [frame(n, size=1000) for n in range(99)]
    held = [weakref.ref(each) for each in frames]
    for each in frames[:50]:
        stream.send(each)
    stream.end(ENDED)
    stream.send(frame(0, CONTROL))
    assert sending(stream) == []
    stream, reason = Stream(connection), "has not taken"
    monkeypatch.setattr(module, "WAITING", 50_000)
    for each in frames[50:]:
        stream.send(each)
    assert stream.ended.is_set()
    assert reason in stream.reason
    del frames, each
    gc.collect()
    assert not any(ref() for ref in held)


def test_a_sender_waits_while_nobody_receives(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits takes little memory, and all of it arrives in the end."""
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 100_000)
    sent, found = list[bytes](), list[int | str]()
    expected = [n % 200 for n in range(300)]
    content = messages(frame(number, size=1000) for number in expected)
    stream = Stream(connection)
    connection.attach(stream)
    arriving = ((sent.append(each), each)[1] for each in content)
    Thread(target=stream.take, args=(arriving,), daemon=True).start()
    time.sleep(0.5)
    assert len(sent) < 60
    deadline = time.monotonic() + 30
    while ENDED not in found and time.monotonic() < deadline:
        found += numbers(connection)
    assert found == [*expected, ENDED]
