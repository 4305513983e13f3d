"""Connections to neighboring nodes: frames as streams of messages; `dialing` opens and accepts them.

A stream ends when the other process does, or when it breaks; a node that comes back brings a new stream. Deadlines are
kept where frames are taken from a connection, see `hmtl.distributed.post`.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Condition, Event, Lock

import torch
from torch import Tensor

from hmtl.distributed.frames import BYE, CONTROL, HEADER, KINDS, LACKS, PIECES, Frame, Header
from hmtl.errors import CodingError, EngineError, HmtlError

MAX_CHUNK_BYTES = 1 << 20  # bytes of a body in a message, at most
MAX_BODY_BYTES = 1 << 28  # bytes of a body, at most
WAITING = 4 * MAX_BODY_BYTES  # bytes of frames that wait to be sent to a neighbor, at most
TIMELESS = CONTROL, BYE, LACKS, PIECES  # kinds of frames that are sent whatever round it is
ENDED = "its process has ended"
CAME_BACK = "its process came back"
LEFT = "this process has left"
OBJECT = 1 << 10  # bytes of a frame without its body, about
ROOM_CHECK_SECONDS = 0.01  # seconds between looks at whether there is room for more frames


class Stream:
    """One stream of messages in each direction: a header with the first bytes of its body, then the rest of the body.

    Messages of a round wait to be sent until there are some of another: then nobody asks for them any more.

    Args:
        connection: whose stream this is.

    Attributes:
        reason: why no more frames arrive, once that is so.
        cancel: ends what carries the stream at once.
        serial: serial number of the neighbor's certificate; 0: it has none.
    """

    def __init__(self, connection: "Connection", cancel: Callable[[], object] = bool, serial: int = 0) -> None:
        self.connection, self.cancel, self.serial, self.reason = connection, cancel, serial, ""
        self.inbox: SimpleQueue[Frame | None] = SimpleQueue()  # None: no more will come
        self._taken = self._read = 0  # bytes that have arrived, and that were received
        self._outbox: deque[Frame | None] = deque()  # None: nothing more is sent
        self._outgoing = Condition()  # guards the outbox
        self._round = 0  # of the messages in the outbox
        self.sent, self.ended = Event(), Event()  # nothing more is sent; nothing more arrives

    def send(self, frame: Frame) -> None:
        """Send a frame without waiting."""
        with self._outgoing:
            if self.ended.is_set():
                return
            if frame.kind not in TIMELESS and frame.round != self._round:
                self._round = frame.round
                self._outbox = deque(each for each in self._outbox if each is None or each.kind in TIMELESS)
            self._outbox.append(frame)
            self._outgoing.notify()
            if sum(size_of(each) for each in self._outbox if each) > WAITING:
                self.end(f"it has not taken {WAITING:,} bytes that were sent to it")

    def close(self) -> None:
        """Send nothing more."""
        with self._outgoing:
            self._outbox.append(None)
            self._outgoing.notify()

    def _next(self) -> Frame | None:
        with self._outgoing:
            self._outgoing.wait_for(lambda: self._outbox)
            return self._outbox.popleft()

    def outgoing(self) -> Iterator[bytes]:
        """Yield the messages of all frames that are sent, until the last."""
        try:
            while frame := self._next():
                kind, messages = frame.kind, self._messages(frame.header(), frame.body)
                del frame  # so that the body is not held until there is another
                yield from messages
                if kind == BYE:
                    return
        finally:
            self.sent.set()

    def take(self, incoming: Iterator[bytes]) -> None:
        """Take all frames that arrive, until the stream ends.

        While frames of more than MAX_BODY_BYTES bytes wait to be received, no more are taken: the sender has to wait.
        """
        try:
            while not self.ended.is_set():
                frame = self._frame(incoming)
                while self._taken - self._read > MAX_BODY_BYTES and not self.ended.is_set():
                    time.sleep(ROOM_CHECK_SECONDS)
                self._taken += size_of(frame)
                self.inbox.put(frame)
        except StopIteration:
            self.end(ENDED)
        except HmtlError as error:
            self.end(str(error))

    def receive(self, seconds: float) -> Frame | None:
        """Return the next frame, or None if none arrives in time; raise EngineError if no more will."""
        ended = self.ended.is_set()  # first: the last frames may arrive after the queue was found empty
        with suppress(Empty):
            if frame := self.inbox.get(timeout=0 if ended else max(0.0, seconds)):
                self._read += size_of(frame)
                return frame
            ended = True
        if ended:
            raise EngineError(self.reason)
        return None

    def end(self, reason: str) -> None:
        """Let no more frames arrive, and send none, also of those that wait."""
        with self._outgoing:
            if not self.ended.is_set():
                self.reason = reason
                self.ended.set()
                self.inbox.put(None)
            self._outbox.clear()
            self.close()

    def _messages(self, header: Header, body: Tensor) -> Iterator[bytes]:
        content = body.numpy().data
        yield b"".join((header.to_bytes(), content[:MAX_CHUNK_BYTES]))
        for start in range(MAX_CHUNK_BYTES, len(content), MAX_CHUNK_BYTES):
            yield bytes(content[start : start + MAX_CHUNK_BYTES])

    def _frame(self, incoming: Iterator[bytes]) -> Frame:
        message = memoryview(next(incoming))
        header = Header.from_bytes(bytes(message[:HEADER]))
        kind = KINDS[header.kind]
        if kind not in self.connection.hears:
            raise CodingError(f"it sent {kind}, which its role does not")
        if header.body > MAX_BODY_BYTES:
            raise CodingError(
                f"it sent {kind} of {header.body:,} bytes, more than the {MAX_BODY_BYTES:,} that a frame may have"
            )
        if kind == BYE:
            raise EngineError("it has left")
        return Frame.from_bytes(header, self._body(header.body, message[HEADER:], incoming))

    def _body(self, nbytes: int, message: memoryview, incoming: Iterator[bytes]) -> Tensor:
        body, end = torch.empty(nbytes, dtype=torch.uint8), len(message)
        content = body.numpy().data
        while True:
            if end > nbytes or (end < nbytes and not message):
                raise CodingError("it sent a body of another length than its header says")
            content[end - len(message) : end] = message
            if end == nbytes:
                return body
            message = memoryview(next(incoming))
            end += len(message)


class Connection:
    """The connection to a neighbor, by one stream after another.

    Args:
        name: of the neighbor.
        hears: the kinds of frames that its role may send.

    Attributes:
        stream: the stream in use.
        newer: the stream with which the neighbor came back, until `take_back`.
        trouble: why there is no stream at present, as far as it is known.
    """

    def __init__(self, name: str, hears: Set[str]) -> None:
        self.name, self.hears = name, hears
        self.stream: Stream | None = None
        self.newer: Stream | None = None
        self.trouble = ""
        self._attached, self._lock = Event(), Lock()
        self._closed = False

    def attach(self, stream: Stream) -> None:
        """Use a stream: the first one at once, a later one after `take_back`, none after `close`. End those before."""
        with self._lock:
            if self._closed:
                stream.end(LEFT)
                return
            for former in (self.stream, self.newer):
                if former:
                    former.end(CAME_BACK)
            if self.stream:
                self.newer = stream
            else:
                self.stream = stream
        self._attached.set()

    def take_back(self) -> bool:
        """Use the stream with which the neighbor came back; return whether there is one."""
        with self._lock:
            if self.newer is None:
                return False
            self.stream, self.newer = self.newer, None
            return True

    @property
    def alive(self) -> bool:
        """Whether there is a stream in use that has not ended."""
        return self.stream is not None and not self.stream.ended.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for the first stream, and return whether there is one."""
        return self._attached.wait(max(0.0, seconds))

    def send(self, frame: Frame) -> None:
        """Send a frame without waiting."""
        if self.stream:
            self.stream.send(frame)

    def receive(self, seconds: float) -> Frame | None:
        """Return the next frame, or None if none arrives in time.

        Raises:
            EngineError: no more frames will arrive.
        """
        if self.stream is None:
            raise EngineError(self.trouble or "it never arrived")
        return self.stream.receive(seconds)

    def join(self, deadline: float) -> None:
        """Wait until both sides have sent BYE, at most until the deadline (`time.monotonic()`)."""
        if self.stream:
            for event in (self.stream.sent, self.stream.ended):
                event.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End all streams, also those that are yet to come."""
        with self._lock:
            self._closed = True
            for stream in (self.stream, self.newer):
                if stream:
                    stream.end(LEFT)


def size_of(frame: Frame) -> int:
    """Return about how many bytes of memory a frame takes."""
    return OBJECT + frame.payload.numel() + frame.overhead.numel()
