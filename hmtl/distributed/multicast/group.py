"""The two ends of a multicast group, in which the server sends once what several relays receive.

At each end, a thread moves datagrams between a socket and the protocol of `hmtl.distributed.multicast.protocol`. The
datagrams are neither encrypted nor authenticated: trusted networks only.
"""

import select
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from queue import SimpleQueue
from threading import Event, Lock, Thread

from torch import Tensor

from hmtl.distributed.multicast.datagrams import DATAGRAM
from hmtl.distributed.multicast.protocol import Receiver, Transmission
from hmtl.errors import CodingError, ConfigError, EngineError

BUFFER = 4 << 20  # bytes that may wait in the socket of a busy process; the system may limit it to less


@dataclass(frozen=True)
class Multicast:
    """Settings of a multicast group.

    Args:
        group: the group's IPv4 address, from 224.0.0.0 to 239.255.255.255.
        port: the group's UDP port.
        interface: address of this machine on the network to the other machines; None: the one that reaches the server.
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
            interface = self.interface or _this_end(server)
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
                "engine.multicast.interface to its address on the network to the other machines, or use "
                "engine=torch_distributed."
            ) from error
        return sock


class Cast:
    """A body that is sent once to several receivers.

    Args:
        number: see `Datagram`.
        body: uint8 [size].
        receivers: ranks.

    Attributes:
        reached: ranks of the receivers that have reported the whole body.
    """

    def __init__(self, number: int, body: Tensor, receivers: Iterable[int]) -> None:
        self.number, self.body, self.receivers = number, body, tuple(receivers)
        self.reached: set[int] = set()
        self._settled = {receiver: Event() for receiver in self.receivers}

    def reaches(self, receiver: int) -> bool:
        """Return whether the body has reached a receiver, once that is known."""
        self._settled[receiver].wait()
        return receiver in self.reached

    def settle(self, reached: set[int], waiting: set[int]) -> None:
        """Record the receivers that were reached, and release those that are no longer `waiting`."""
        self.reached |= reached
        for receiver, event in self._settled.items():
            if receiver not in waiting:
                event.set()


class Caster:
    """The server's end of a group, which sends one body after the other.

    Args:
        multicast: settings.
        server: address of the server.
        run: see `Datagram`.
        bps: sending rate [bit/s], unless the settings have one.

    Attributes:
        unreachable: ranks of the receivers that were not reached in this round and have not reported since.
    """

    def __init__(self, multicast: Multicast, server: str, run: int, bps: float) -> None:
        self._to, self._run, self._bps = (multicast.group, multicast.port), run, multicast.rate_bps or bps
        self._socket = multicast.socket(server, receive=False)
        self._casts: SimpleQueue[Cast | None] = SimpleQueue()
        self._number, self._nbytes, self._lock = 0, 0, Lock()
        self.unreachable: set[int] = set()
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Begin a round, in which all receivers are tried again."""
        self.unreachable.clear()

    def cast(self, body: Tensor, receivers: Iterable[int]) -> Cast:
        """Send a body to receivers, without waiting."""
        self._number += 1
        cast = Cast(self._number, body, receivers)
        self._count(-len(body))  # only what exceeds one copy is overhead
        self._casts.put(cast)
        return cast

    def overhead(self) -> int:
        """Return the number of bytes sent beyond one copy of each body, since the last call."""
        with self._lock:
            nbytes, self._nbytes = self._nbytes, 0
        return nbytes

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
        receivers = set(cast.receivers) - self.unreachable
        sending = Transmission(self._run, cast.number, cast.body, receivers, self._bps, time.monotonic())
        cast.settle(set(), sending.waiting)
        while sending.waiting:
            for datagram in sending.due(time.monotonic()):
                with suppress(OSError):  # counts as lost
                    self._socket.sendto(datagram, self._to)
            seconds = max(0.0, sending.wake() - time.monotonic()) if sending.waiting else 0.0
            if select.select([self._socket], [], [], seconds)[0]:
                with suppress(OSError):
                    self.unreachable.discard(sending.hear(self._socket.recv(DATAGRAM), time.monotonic()))
            cast.settle(sending.reached, sending.waiting)
        self.unreachable |= receivers - sending.reached
        lacking = len(cast.receivers) - len(sending.reached)  # each of them gets a copy through its connection
        self._count(sending.nbytes + lacking * len(cast.body))

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self._nbytes += nbytes


class Listener:
    """A relay's end of a group.

    Args:
        multicast: settings.
        server: address of the server.
        run, rank: see `Receiver`.

    Attributes:
        receiver: what has arrived.
    """

    def __init__(self, multicast: Multicast, server: str, run: int, rank: int) -> None:
        self._socket = multicast.socket(server, receive=True)
        self._socket.setblocking(False)
        self._answers = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver, self._lock = Receiver(run, rank), Lock()
        self._nbytes, self._closed = 0, Event()
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def take(self, number: int) -> Tensor:
        """Return the body of a cast that has been reported as whole, and forget it and those before.

        Raises:
            CodingError: the body is not whole.
        """
        if (body := self.forget(number)) is None:
            raise CodingError(f"multicast {number} is incomplete, although it was reported as whole")
        return body

    def forget(self, number: int) -> Tensor | None:
        """Forget the bodies up to a cast, and return its body if it is whole."""
        with self._lock:
            return self.receiver.take(number)

    def overhead(self) -> int:
        """Return the number of bytes of reports sent since the last call."""
        with self._lock:
            nbytes, self._nbytes = self._nbytes, 0
        return nbytes

    def close(self) -> None:
        """Stop receiving."""
        self._closed.set()
        self._thread.join()
        self._socket.close()
        self._answers.close()

    def _work(self) -> None:
        while not self._closed.is_set():
            if select.select([self._socket], [], [], 0.2)[0]:  # a short wait, so that `close` need not wait long
                with suppress(OSError):  # no more datagrams, or an error of an earlier one
                    while True:
                        self._hear(*self._socket.recvfrom(DATAGRAM))

    def _hear(self, datagram: bytes, sender: tuple[str, int]) -> None:
        with self._lock:
            answer = self.receiver.hear(datagram)
            self._nbytes += len(answer or b"")
        if answer:
            with suppress(OSError):  # the server asks again
                self._answers.sendto(answer, sender)


def _this_end(server: str) -> str:
    """Return the address by which this machine reaches the server, without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server, 9))
        return str(probe.getsockname()[0])
