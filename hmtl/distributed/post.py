"""The post of a node at a site: what it gets from its neighbors, and what it sends them, over a wire."""

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import torch

from hmtl.communication.messages import SERVER, nothing
from hmtl.distributed.connections import MAX_BODY_BYTES, Connection, size_of
from hmtl.distributed.dialing import Streams
from hmtl.distributed.frames import BYE, CAST, CONTROL, HEADER, LACKS, PIECES, Frame, Header
from hmtl.distributed.multicast import ROOM, Caster, Listener, digest, put
from hmtl.errors import EngineError

MOMENT = 1.0  # seconds after which this process looks at its clock
UNASKED = 4 * MAX_BODY_BYTES  # bytes of a neighbor's frames that wait until they are asked for, at most


class Post:
    """Frames from and to the neighbors of a node.

    Frames with control values are received in order, messages by their numbers.

    Args:
        wire: the streams to the neighbors.
        seconds: how long to wait in all for messages that were sent, from one call of `control` to the next.

    Attributes:
        caster, listener: this node's end of a multicast group, if it is the server or a relay and there is one.
    """

    def __init__(self, wire: Streams, seconds: float) -> None:
        self.wire, self._seconds, self._left = wire, seconds, seconds
        self.caster: Caster | None = None
        self.listener: Listener | None = None
        self._numbers = count(1)
        self._boxes: dict[str, dict[int, Frame]] = defaultdict(dict)  # messages, by sender and number
        self._control: dict[str, deque[Frame]] = defaultdict(deque)  # by sender
        self._unasked: dict[str, int] = defaultdict(int)  # bytes of both, by sender, at most
        self._round = 0

    def hand(self, receivers: Sequence[str], frame: Frame) -> int:
        """Send a message, and return its number."""
        frame = replace(frame, number=next(self._numbers))
        if frame.round != self._round:  # what nobody asked for in earlier rounds is late
            self._round = frame.round
            for name, box in self._boxes.items():
                self._boxes[name] = {number: each for number, each in box.items() if each.round >= frame.round}
        if self.caster and len(receivers) > 1 and len(frame.body) > ROOM:
            self.caster.cast(frame.number, frame.body)
            known = np.frombuffer(frame.header().to_bytes() + digest(frame.body), np.uint8)
            frame = Frame(CAST, frame.round, torch.from_numpy(known.copy())[None], nothing(1), number=frame.number)
        for receiver in receivers:
            self._connection(receiver).send(frame)
        return frame.number

    def fetch(self, sender: str, number: int) -> Frame | None:
        """Return a message that was sent, or None if it does not arrive."""
        frame = self._wait(sender, number)
        return self._cast(sender, frame) if frame and frame.kind == CAST else frame

    def _wait(self, sender: str, number: int) -> Frame | None:
        """Take frames of a neighbor until that with a number has arrived; return None if it does not."""
        try:
            while number not in self._boxes[sender]:
                begin = time.monotonic()
                took = self._take(sender, max(0.0, min(MOMENT, self._left)))
                self._left -= min(MOMENT, time.monotonic() - begin)  # this process may have been suspended for longer
                if self._left <= 0 and (not took or self._left < -MOMENT):
                    break
        except EngineError:  # it has ended
            pass
        return self._boxes[sender].pop(number, None)

    def _cast(self, sender: str, frame: Frame) -> Frame | None:
        """Return the frame whose body came by multicast, with the pieces that it lacked."""
        content, number = frame.payload.numpy().tobytes(), frame.number
        header, seal = Header.from_bytes(content[:HEADER]), content[HEADER:]
        body = torch.empty(header.body, dtype=torch.uint8)
        lacks = everything = torch.arange(-(-header.body // ROOM))
        if self.listener:
            body, lacks = self.listener.wait(number, header.body)
        for places in (lacks, everything):  # all of them, if what arrived was forged
            if len(places):
                asked = places.int().view(torch.uint8)[None]
                self.send(sender, Frame(LACKS, frame.round, asked, nothing(1), number=number))
                answer = self._wait(sender, number)
                if answer is None or len(answer.payload[0]) < len(places):  # the server has forgotten the body
                    return None
                put(body, places, answer.payload[0])
            if digest(body) == seal:
                return Frame.from_bytes(header, body)
        return None

    def send(self, receiver: str, frame: Frame) -> None:
        """Send control values."""
        self._connection(receiver).send(frame)

    def control(self, sender: str, seconds: float) -> Frame | None:
        """Return the next frame with control values, or None if none arrives in time.

        What has arrived is read first, for at most MOMENT more.

        Raises:
            EngineError: none will ever arrive.
        """
        self._left, deadline = self._seconds, time.monotonic() + seconds
        while not self._control[sender]:
            left = deadline - time.monotonic()
            took = self._take(sender, max(0.0, left))
            if left <= 0 and (not took or left < -MOMENT):
                break
        return self._control[sender].popleft() if self._control[sender] else None

    def take_back(self, name: str) -> bool:
        """Use the stream with which a neighbor came back, if there is one, and forget what it sent before."""
        if not self.wire.connections[name].take_back():
            return False
        self._control[name].clear()
        self._boxes[name].clear()
        return True

    def close(self, seconds: float = 5.0) -> None:
        """Send what is still waiting, give neighbors at most `seconds` to do the same, and leave."""
        deadline = time.monotonic() + seconds
        for connection in self.wire.connections.values():
            connection.send(Frame(BYE, 0))
        for connection in self.wire.connections.values():
            connection.join(deadline)
        self.wire.close()
        for end in (self.caster, self.listener):
            if end:
                end.close()

    def _take(self, sender: str, seconds: float) -> bool:
        """Take the next frame of a neighbor, if one arrives in time, and return whether one did."""
        connection = self._connection(sender)
        frame = connection.receive(seconds)
        if frame is None:
            return False
        if frame.kind == LACKS:
            asked = frame.payload.reshape(-1)
            if self.caster and len(asked) % 4 == 0:
                pieces = self.caster.pieces(frame.number, asked.view(torch.int32))
                self.send(sender, Frame(PIECES, frame.round, pieces[None], nothing(1), number=frame.number))
            return True
        if frame.kind == CONTROL:
            self._control[sender].append(frame)
        else:
            self._boxes[sender][frame.number] = frame
        self._unasked[sender] += size_of(frame)
        if self._unasked[sender] > UNASKED:  # or fewer, as some have been asked for
            self._unasked[sender] = sum(map(size_of, (*self._control[sender], *self._boxes[sender].values())))
            if self._unasked[sender] > UNASKED and connection.stream:
                connection.stream.end(f"it sent {UNASKED:,} bytes that nobody asked for")
        return True

    def _connection(self, name: str) -> Connection:
        connection = self.wire.connections[name]
        if not connection.alive and SERVER not in (name, self.wire.party.name):  # a controller has to know of it
            self.take_back(name)
        return connection
