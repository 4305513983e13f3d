"""Which frames a connection accepts from the other process."""

import pytest
import torch
from threads import Queues, QueueTransport

from hmtl.communication.messages import REPORT
from hmtl.distributed.connections import Connection
from hmtl.distributed.frames import BYE, Frame
from hmtl.errors import EngineError

OWN, OTHER = 7, 3  # ranks


@pytest.fixture
def other() -> QueueTransport:
    """The other process's end of the transport."""
    return Queues().of(OTHER)


@pytest.fixture
def connection(other: QueueTransport) -> Connection:
    return Connection(OWN, OTHER, transport=other.queues.of(OWN))


def arrive(
    other: QueueTransport,
    sequence: int,
    sender: int = OTHER,
    receiver: int = OWN,
    kind: str = REPORT,
    flip: tuple[int, int] | None = None,
) -> None:
    """Let a frame of one byte arrive; `flip` damages a byte of its header (0) or its body (1)."""
    header, body = Frame(kind, 5, torch.full((1, 1), sequence, dtype=torch.uint8)).to_bytes(sender, receiver, sequence)
    parts = [torch.frombuffer(bytearray(header.to_bytes()), dtype=torch.uint8), body]
    if flip:
        parts[flip[0]][flip[1]] ^= 4
    for part in parts:
        other.send(part, OWN)


def test_frames_arrive_in_order_until_the_other_process_leaves(connection: Connection, other: QueueTransport) -> None:
    for sequence in range(3):
        arrive(other, sequence)
    arrive(other, 3, kind=BYE)
    assert [int(connection.receive(10).payload) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(EngineError, match="left"):
        connection.receive(10)


@pytest.mark.parametrize(
    ("sequence", "changed"),
    [(0, {}), (2, {}), (1, {"sender": 1}), (1, {"receiver": 1}), (1, {"flip": (0, 20)})],
    ids=["repeated", "missing", "from another", "for another", "damaged header"],
)
def test_a_frame_that_is_not_the_next_one_ends_the_connection(
    connection: Connection, other: QueueTransport, sequence: int, changed: dict[str, int]
) -> None:
    arrive(other, 0)
    arrive(other, sequence, **changed)
    arrive(other, 1)
    assert int(connection.receive(10).payload) == 0
    with pytest.raises(EngineError):
        connection.receive(10)
    assert connection.receive(0) is None


def test_a_damaged_body_is_never_read(connection: Connection, other: QueueTransport) -> None:
    arrive(other, 0, flip=(1, 0))
    arrive(other, 1)
    frame = connection.receive(10)
    assert frame.damaged
    assert not len(frame.payload)
    assert int(connection.receive(10).payload) == 1
