"""Connections to other processes over torch.distributed; the only module that knows gloo, its backend for CPUs.

When a wait in gloo times out, all connections of the process break, and gloo does not say which peer it waited for.
Therefore only two threads per peer wait in gloo, for as long as the peer lives; deadlines are kept where frames are
taken from these threads, see `hmtl.distributed.peers`. Gloo neither encrypts nor authenticates: trusted networks only.
"""

import datetime
import time
from contextlib import suppress
from dataclasses import replace
from itertools import count
from queue import Empty, SimpleQueue
from threading import Thread

import torch
import torch.distributed as dist
from torch import Tensor

from hmtl.distributed.frames import BYE, HEADER, KINDS, Frame, Header
from hmtl.distributed.multicast.group import Cast, Listener
from hmtl.distributed.rendezvous import Rendezvous
from hmtl.errors import CodingError, EngineError, HmtlError

FOREVER = datetime.timedelta(days=365)  # a wait that times out in gloo would break all connections


class Transport:
    """A transport that moves bytes between processes, in order; use it after `connect`.

    Both methods raise RuntimeError once the other process has ended.
    """

    def send(self, content: Tensor, rank: int) -> None:
        """Send bytes to a process, and wait until they have left."""
        dist.send(content, dst=rank)

    def receive(self, content: Tensor, rank: int) -> None:
        """Wait for bytes from a process, as many as `content` holds, and write them there."""
        dist.recv(content, src=rank)


class Connection:
    """The connection to one other process, with one thread for the frames of each direction.

    A frame that arrives twice, out of order or with a damaged header ends the connection.

    Args:
        own: rank of this process.
        rank: of the other process.
        listener: this process's end of the multicast group that brings some of the bodies, if there is one.
        transport: moves the bytes.
    """

    def __init__(
        self,
        own: int,
        rank: int,
        listener: Listener | None = None,
        transport: Transport = Transport(),  # noqa: B008, it holds nothing
    ) -> None:
        self.own, self.rank, self.listener, self._transport = own, rank, listener, transport
        self.inbox: SimpleQueue[Frame | str] = SimpleQueue()  # frames, then the reason why no more will come
        self.outbox: SimpleQueue[tuple[Header, Tensor, Cast | None]] = SimpleQueue()
        self._sent = 0
        self._threads = [Thread(target=work, daemon=True) for work in (self._send_all, self._receive_all)]
        for thread in self._threads:
            thread.start()

    def send(self, frame: Frame, cast: Cast | None = None) -> None:
        """Send a frame without waiting; the body is left out if the multicast `cast` reaches the other process."""
        self.outbox.put((*frame.to_bytes(self.own, self.rank, self._sent), cast))
        self._sent += 1

    def receive(self, seconds: float) -> Frame | None:
        """Return the next frame, or None if none arrives in time.

        Raises:
            EngineError: no more frames will arrive.
        """
        try:
            frame = self.inbox.get(timeout=max(0.0, seconds))
        except Empty:
            return None
        if isinstance(frame, str):
            raise EngineError(frame)
        return frame

    def join(self, deadline: float) -> None:
        """Wait until both sides have sent BYE, at most until the deadline (`time.monotonic()`)."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _send_all(self) -> None:
        kind = ""
        with suppress(RuntimeError):  # `_receive_all` reports that the connection is broken
            while kind != BYE:
                kind = self._send(*self.outbox.get())

    def _send(self, header: Header, body: Tensor, cast: Cast | None) -> str:
        """Send a frame, and return its kind."""
        if cast:
            reached = cast.reaches(self.rank)  # waits in this thread, so that frames keep their order
            header, body = replace(header, cast=cast.number, apart=reached), body[:0] if reached else body
        for part in (torch.frombuffer(bytearray(header.to_bytes()), dtype=torch.uint8), body):
            if len(part):
                self._transport.send(part, self.rank)
        return KINDS[header.kind]

    def _receive_all(self) -> None:
        try:
            for sequence in count():
                self._receive_frame(sequence)
        except HmtlError as error:
            self.inbox.put(str(error))
        except RuntimeError:
            self.inbox.put("its process has ended")

    def _receive_frame(self, sequence: int) -> None:
        header = Header.from_bytes(self._receive(HEADER).numpy().tobytes())
        if (header.sender, header.receiver, header.sequence) != (self.rank, self.own, sequence):
            raise CodingError(
                f"frame {header.sequence} from process {header.sender} to {header.receiver} arrived in place of frame "
                f"{sequence}"
            )
        if KINDS[header.kind] == BYE:
            raise EngineError("it has left")
        cast = self.listener.take(header.cast) if self.listener and header.cast else None
        body = cast if header.apart else self._receive(header.body)
        if body is None:
            raise CodingError(f"multicast {header.cast} is incomplete, although it was reported as whole")
        self.inbox.put(Frame.from_bytes(header, body))

    def _receive(self, nbytes: int) -> Tensor:
        content = torch.empty(nbytes, dtype=torch.uint8)
        if nbytes:
            self._transport.receive(content, self.rank)
        return content


def connect(rendezvous: Rendezvous) -> None:
    """Connect all processes of the run, before any `Connection` is made.

    Raises:
        EngineError: a process did not arrive.
    """
    failed = []

    def initialize() -> None:
        try:
            dist.init_process_group("gloo", None, FOREVER, rendezvous.size, rendezvous.rank, rendezvous.store)
        except RuntimeError as error:
            failed.append(error)

    thread = Thread(target=initialize, daemon=True)  # gloo would wait forever for a process that has ended
    thread.start()
    thread.join(rendezvous.wait.total_seconds())
    if failed or thread.is_alive():
        raise EngineError("a process ended before all were connected. Start all of them again.")
