"""The sockets of a multicast group: what the server says once for several relays.

For networks that are trusted, as all between the processes. Each end is a thread that moves datagrams between a socket
and the protocol of `multicast`; nobody else waits for the network.
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
from hmtl.distributed.multicast.protocol import Receiver, Sending
from hmtl.errors import CodingError, ConfigError, EngineError

BUFFER = 4 << 20  # bytes of datagrams that may wait for a busy process; the system may allow less


@dataclass(frozen=True)
class Multicast:
    """A multicast group, as settings have it.

    Args:
        group, port: where the datagrams go, an IPv4 address from 224.0.0.0 to 239.255.255.255.
        interface: address of this machine on the network that leads to the others; None: by which it reaches the
            server.
        rate_bps: at which to send [bit/s]; None: the network's W2.

    Raises:
        ConfigError: a setting that cannot be.
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
                f"engine.multicast.group={self.group} is no multicast address: give one from 224.0.0.0 to "
                "239.255.255.255, of one's own network those that begin with 239."
            )
        if not 0 < self.port < 65536:
            raise ConfigError(f"engine.multicast.port={self.port} is no port: give a number from 1 to 65535.")
        if self.rate_bps is not None and not self.rate_bps > 0:
            raise ConfigError(f"engine.multicast.rate_bps={self.rate_bps} is not positive: give bit/s, say 1e8.")

    def socket(self, server: str, receive: bool) -> socket.socket:
        """A socket of the group.

        Args:
            server: the address of the server.
            receive: to hear what is said there; else to say it, and to hear answers.

        Raises:
            EngineError: the system does not allow it.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            interface = self.interface or _this_end(server)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            if receive:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # other runs may hear the same group
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
                f"multicast group {self.group}:{self.port} cannot be used here ({error}): set "
                "engine.multicast.interface to this machine's address on the network that leads to the others, or "
                "engine=torch_distributed."
            ) from error
        return sock


class Cast:
    """A body that is said once for several receivers.

    Args:
        number: see `Datagram`.
        body: uint8 [size].
        receivers: their ranks.
    """

    def __init__(self, number: int, body: Tensor, receivers: Iterable[int]) -> None:
        self.number, self.body, self.receivers = number, body, tuple(receivers)
        self.reached: set[int] = set()
        self._settled = {receiver: Event() for receiver in self.receivers}

    def reaches(self, receiver: int) -> bool:
        """Whether it has reached a receiver; waits until that is known."""
        self._settled[receiver].wait()
        return receiver in self.reached

    def settle(self, reached: set[int], waiting: set[int]) -> None:
        """Who has it, and who may still get it."""
        self.reached |= reached
        for receiver, event in self._settled.items():
            if receiver not in waiting:
                event.set()


class Caster:
    """The server's end of a group: says one body after the other.

    Args:
        multicast: settings.
        server: its own address.
        run: see `Datagram`.
        bps: at which to send, where the settings do not say.
    """

    def __init__(self, multicast: Multicast, server: str, run: int, bps: float) -> None:
        self._to, self._run, self._bps = (multicast.group, multicast.port), run, multicast.rate_bps or bps
        self._socket = multicast.socket(server, receive=False)
        self._casts: SimpleQueue[Cast | None] = SimpleQueue()
        self._number, self._nbytes, self._lock = 0, 0, Lock()
        self.deaf: set[int] = set()  # receivers that were not reached in this round, and were not heard since
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """A new round: everybody may hear."""
        self.deaf.clear()

    def cast(self, body: Tensor, receivers: Iterable[int]) -> Cast:
        """Bring a body on its way to receivers, by their ranks."""
        self._number += 1
        cast = Cast(self._number, body, receivers)
        self._count(-len(body))  # which is no overhead
        self._casts.put(cast)
        return cast

    def overhead(self) -> int:
        """Bytes sent beyond the bodies themselves, since this was last asked."""
        with self._lock:
            nbytes, self._nbytes = self._nbytes, 0
        return nbytes

    def close(self) -> None:
        """Say no more."""
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
        receivers = set(cast.receivers) - self.deaf
        sending = Sending(self._run, cast.number, cast.body, receivers, self._bps, time.monotonic())
        cast.settle(set(), sending.waiting)
        while sending.waiting:
            for datagram in sending.due(time.monotonic()):
                with suppress(OSError):  # as good as lost
                    self._socket.sendto(datagram, self._to)
            seconds = max(0.0, sending.wake() - time.monotonic()) if sending.waiting else 0.0
            if select.select([self._socket], [], [], seconds)[0]:
                with suppress(OSError):
                    self.deaf.discard(sending.hear(self._socket.recv(DATAGRAM), time.monotonic()))
            cast.settle(sending.reached, sending.waiting)
        self.deaf |= receivers - sending.reached
        lacking = len(cast.receivers) - len(sending.reached)  # each is sent a copy by its connection
        self._count(sending.nbytes + lacking * len(cast.body))

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self._nbytes += nbytes


class Listener:
    """A relay's end of a group.

    Args:
        multicast: settings.
        server: its address.
        run, rank: see `Receiver`.

    Attributes:
        receiver: what came.
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
        """The body of a cast, which has told the server that it is whole; it and those before are forgotten.

        Raises:
            CodingError: it is not here.
        """
        if (body := self.forget(number)) is None:
            raise CodingError(f"multicast {number} is not here, though it was reported so")
        return body

    def forget(self, number: int) -> Tensor | None:
        """Of what was said up to a cast nothing is waited for any more; gives its body, if it is whole."""
        with self._lock:
            return self.receiver.take(number)

    def overhead(self) -> int:
        """Bytes of reports, since this was last asked."""
        with self._lock:
            nbytes, self._nbytes = self._nbytes, 0
        return nbytes

    def close(self) -> None:
        """Hear no more."""
        self._closed.set()
        self._thread.join()
        self._socket.close()
        self._answers.close()

    def _work(self) -> None:
        while not self._closed.is_set():
            if select.select([self._socket], [], [], 0.2)[0]:  # not longer, so that it can be closed
                with suppress(OSError):  # until there is none, or what went wrong with one is told
                    while True:
                        self._hear(*self._socket.recvfrom(DATAGRAM))

    def _hear(self, datagram: bytes, sender: tuple[str, int]) -> None:
        with self._lock:
            answer = self.receiver.hear(datagram)
            self._nbytes += len(answer or b"")
        if answer:
            with suppress(OSError):  # the question comes again
                self._answers.sendto(answer, sender)


def _this_end(server: str) -> str:
    """The address of this machine by which it reaches the server; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server, 9))
        return str(probe.getsockname()[0])
