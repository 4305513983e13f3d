"""The post of a node at a site: what it gets from its neighbours, and what it sends them, over a wire."""

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from hmtl.distributed.connections import Connection
from hmtl.distributed.frames import BYE, CONTROL, Frame
from hmtl.distributed.wire import Wire
from hmtl.errors import EngineError

MOMENT = 1.0  # seconds after which this process looks at its clock


class Post:
    """Frames from and to the neighbours of a node.

    Frames with control values are received in order, messages by their numbers.

    Args:
        wire: the streams to the neighbours.
        seconds: how long to wait for a message that was sent.
    """

    def __init__(self, wire: Wire, seconds: float) -> None:
        self.wire, self._seconds = wire, seconds
        self._numbers = count(1)
        self._boxes: dict[tuple[str, int], Frame] = {}  # messages, by sender and number
        self._control: dict[str, deque[Frame]] = defaultdict(deque)  # by sender
        self._round = 0

    def hand(self, receivers: Sequence[str], frame: Frame) -> int:
        """Send a message, and return its number."""
        frame = replace(frame, number=next(self._numbers))
        if frame.round != self._round:  # what nobody asked for in earlier rounds is late
            self._round = frame.round
            self._boxes = {key: each for key, each in self._boxes.items() if each.round >= frame.round}
        for receiver in receivers:
            self._connection(receiver).send(frame)
        return frame.number

    def fetch(self, sender: str, number: int) -> Frame | None:
        """Return a message that was sent, or None if it does not arrive."""
        left, key = self._seconds, (sender, number)
        try:
            while key not in self._boxes and left > 0:
                begin = time.monotonic()
                self._take(sender, min(MOMENT, left))
                left -= min(MOMENT, time.monotonic() - begin)  # this process may have been suspended for longer
        except EngineError:  # it has ended
            pass
        return self._boxes.pop(key, None)

    def send(self, receiver: str, frame: Frame) -> None:
        """Send control values."""
        self._connection(receiver).send(frame)

    def control(self, sender: str, seconds: float) -> Frame | None:
        """Return the next frame with control values, or None if none arrives in time.

        Raises:
            EngineError: none will ever arrive.
        """
        deadline = time.monotonic() + seconds
        while not self._control[sender]:
            left = deadline - time.monotonic()
            self._take(sender, max(0.0, left))
            if left <= 0:
                break
        return self._control[sender].popleft() if self._control[sender] else None

    def take_back(self, name: str) -> bool:
        """Use the stream with which a neighbour came back, if there is one, and forget what it sent before."""
        if not self.wire.connections[name].take_back():
            return False
        self._control[name].clear()
        self._boxes = {key: each for key, each in self._boxes.items() if key[0] != name}
        return True

    def limit(self, nbytes: int) -> None:
        """Refuse bodies of more than `nbytes` bytes."""
        for connection in self.wire.connections.values():
            connection.largest = nbytes

    def close(self, seconds: float = 5.0) -> None:
        """Send what is still waiting, give neighbours at most `seconds` to do the same, and leave."""
        deadline = time.monotonic() + seconds
        for connection in self.wire.connections.values():
            connection.send(Frame(BYE, 0))
        for connection in self.wire.connections.values():
            connection.join(deadline)
        self.wire.close()

    def _take(self, sender: str, seconds: float) -> None:
        """Take the next frame of a neighbour, if one arrives in time."""
        frame = self._connection(sender).receive(seconds)
        if frame is None:
            return
        if frame.kind == CONTROL:
            self._control[sender].append(frame)
        else:
            self._boxes[sender, frame.number] = frame

    def _connection(self, name: str) -> Connection:
        connection = self.wire.connections[name]
        if not connection.alive and name != "server":
            self.take_back(name)
        return connection
