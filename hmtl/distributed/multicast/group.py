"""The two ends of a multicast group, in which the server sends only once what several relays receive.

At each end, a thread moves datagrams between a socket and the protocol of `hmtl.distributed.multicast.protocol`. The
datagrams are neither encrypted nor authenticated: trusted networks only.
"""

import select
import socket
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from queue import SimpleQueue
from threading import Event, Lock, Thread

from torch import Tensor

from hmtl.distributed.multicast.datagrams import DATAGRAM
from hmtl.distributed.multicast.protocol import Receiver, Transmission
from hmtl.errors import ConfigError, EngineError

BUFFER = 4 << 20  # bytes that may wait in the socket of a busy process; the system may limit it to less


@dataclass(frozen=True)
class Multicast:
    """Settings of a multicast group.

    Args:
        group: the group's IPv4 address, from 224.0.0.0 to 239.255.255.255.
        port: the group's UDP port.
        interface: this machine's address on the network to the other machines; None: the one that reaches the server.
        rate_bps: sending rate [bit/s]; None: the network's W2.

    Raises:
        ConfigError: a setting is out of range.
    """

    group: str = "239.255.71.82"
    port: int = 47182
    interface: str | None = None
    rate_bps: float | None = None

    def __post_init__(self) -> None:
        try:
            fits = IPv4Address(self.group).is_multicast
        except AddressValueError:
            fits = False
        if not fits:
            raise ConfigError(
                f"engine.multicast.group={self.group} is not a multicast address. Set it to one from 224.0.0.0 to "
                "239.255.255.255; those that begin with 239 are meant for private networks."
            )
        if not 0 < self.port < 65536:
            raise ConfigError(f"engine.multicast.port={self.port} is not a port. Set it to a number from 1 to 65535.")
        if self.rate_bps is not None and not self.rate_bps > 0:
            raise ConfigError(
                f"engine.multicast.rate_bps={self.rate_bps} is not positive. Set it to a rate in bit/s, such as 1e8."
            )

    def socket(self, server: str, receive: bool) -> socket.socket:
        """Return a socket of the group.

        Args:
            server: address of the server.
            receive: whether to receive what is sent to the group; otherwise to send to it and to receive reports.

        Raises:
            EngineError: the system refuses it.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            interface = self.interface or this_end(server)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            if receive:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # other runs may use the same group
                sock.bind((self.group, self.port))
                member = socket.inet_aton(self.group) + socket.inet_aton(interface)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)  # relays may be on the same machine
                sock.bind((interface, 0))
        except OSError as error:
            sock.close()
            raise EngineError(
                f"multicast group {self.group}:{self.port} cannot be used on this machine ({error}). Set "
                "engine.multicast.interface to this machine's address on the network to the other machines, or use "
                "engine=torch_distributed."
            ) from error
        return sock


class Cast:
    """A body that is sent once to several receivers.

    Args:
        number: see `Datagram`.
        body: uint8 [size].
        receivers: ranks.
    """

    def __init__(self, number: int, body: Tensor, receivers: Iterable[int]) -> None:
        self.number, self.body, self.receivers = number, body, set(receivers)
        self._reached = {receiver: Future[bool]() for receiver in self.receivers}

    def reaches(self, receiver: int) -> bool:
        """Wait until it is known whether the body has reached a receiver, and return it."""
        return self._reached[receiver].result()

    def settle(self, reached: set[int], waiting: set[int]) -> None:
        """Record which receivers have been `reached`; nothing is known yet about those that are `waiting`."""
        for receiver, known in self._reached.items():
            if receiver not in waiting and not known.done():
                known.set_result(receiver in reached)


class _End:
    """The base of both ends of a group: a thread that serves a socket and counts the bytes that it sends."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._nbytes = self._reported = 0  # only the thread changes the first, only its owner the second
        self._thread = Thread(target=self._work, daemon=True)

    def overhead(self) -> int:
        """Return the number of bytes sent since the last call, without one copy of each body."""
        before, self._reported = self._reported, self._nbytes
        return self._reported - before

    def _work(self) -> None:
        raise NotImplementedError


class Caster(_End):
    """The server's end of a group, which sends one body after another.

    Args:
        multicast: settings.
        server: address of the server.
        run: see `Datagram`.
        bps: sending rate [bit/s], unless the settings have one.

    Attributes:
        unreachable: ranks of receivers that could not be reached in this round and have not reported since.
    """

    def __init__(self, multicast: Multicast, server: str, run: int, bps: float) -> None:
        super().__init__(multicast.socket(server, receive=False))
        self._to, self._run, self._bps = (multicast.group, multicast.port), run, multicast.rate_bps or bps
        self._casts: SimpleQueue[Cast | None] = SimpleQueue()
        self._number = 0
        self.unreachable: set[int] = set()
        self._thread.start()

    def begin(self) -> None:
        """Begin a round, and try all receivers again."""
        self.unreachable.clear()

    def cast(self, body: Tensor, receivers: Iterable[int]) -> Cast:
        """Send a body to receivers, without waiting."""
        self._number += 1
        cast = Cast(self._number, body, receivers)
        self._casts.put(cast)
        return cast

    def close(self) -> None:
        """Stop sending."""
        self._casts.put(None)
        self._thread.join(timeout=1.0)
        self._socket.close()

    def _work(self) -> None:
        while cast := self._casts.get():
            try:
                self._transmit(cast)
            finally:
                cast.settle(set(), set())

    def _transmit(self, cast: Cast) -> None:
        receivers = cast.receivers - self.unreachable
        sending = Transmission(self._run, cast.number, cast.body, receivers, self._bps, time.monotonic())
        while sending.waiting:
            cast.settle(sending.reached, sending.waiting)
            for datagram in sending.due(time.monotonic()):
                with suppress(OSError):  # counts as lost
                    self._socket.sendto(datagram, self._to)
            seconds = max(0.0, sending.wake() - time.monotonic()) if sending.waiting else 0.0
            if select.select([self._socket], [], [], seconds)[0]:
                with suppress(OSError):
                    self.unreachable.discard(sending.hear(self._socket.recv(DATAGRAM), time.monotonic()))
        self.unreachable |= receivers - sending.reached
        copies = len(cast.receivers) - len(sending.reached)  # for receivers not reached, sent through their connections
        self._nbytes += sending.nbytes + (copies - 1) * len(cast.body)
        cast.settle(sending.reached, set())


class Listener(_End):
    """A relay's end of a group.

    Args:
        multicast: settings.
        server: address of the server.
        run, rank: see `Receiver`.

    Attributes:
        receiver: what has arrived.
    """

    def __init__(self, multicast: Multicast, server: str, run: int, rank: int) -> None:
        super().__init__(multicast.socket(server, receive=True))
        self._socket.settimeout(0.2)  # so that `close` does not wait long
        self._answers = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver, self._lock, self._closed = Receiver(run, rank), Lock(), Event()
        self._thread.start()

    def take(self, number: int) -> Tensor | None:
        """Return the body of a cast if it is complete; forget it and all earlier ones."""
        with self._lock:
            return self.receiver.take(number)

    def close(self) -> None:
        """Stop receiving."""
        self._closed.set()
        self._thread.join()
        self._socket.close()
        self._answers.close()

    def _work(self) -> None:
        while not self._closed.is_set():
            with suppress(OSError):  # nothing has arrived in time, or an answer is lost: the server asks again
                datagram, sender = self._socket.recvfrom(DATAGRAM)
                with self._lock:
                    answer = self.receiver.hear(datagram)
                if answer:
                    self._nbytes += len(answer)
                    self._answers.sendto(answer, sender)


def this_end(server: str) -> str:
    """Return the address by which this machine reaches the server, without sending anything."""
    family, kind, *_, address = socket.getaddrinfo(server, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
