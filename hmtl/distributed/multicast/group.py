"""The two ends of a multicast group, in which the server sends only once what several relays receive.

At each end, a thread moves datagrams between a socket and the protocol of `hmtl.distributed.multicast.protocol`.
"""

import logging
import secrets
import select
import socket
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from queue import SimpleQueue
from struct import Struct
from threading import Event, Lock, Thread
from typing import NamedTuple, Self

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from hmtl.distributed.multicast.datagrams import DATAGRAM, KEY, derive
from hmtl.distributed.multicast.protocol import Receiver, Transmission
from hmtl.errors import ConfigError, EngineError

log = logging.getLogger(__name__)
BUFFER = 4 << 20  # bytes that may wait in the socket of a busy process; the system may limit it to less
INVITATION = Struct(f"!H {KEY}s {KEY}s 4s H")
LARGEST = 1 << 28  # bytes of a body, at most, unless the run needs more
REST = 64  # rounds, at most, in which a receiver that could not be reached gets copies before it is tried again


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


class Invitation(NamedTuple):
    """What a relay needs to take part; its holder can read what is sent to the group, and report for this relay."""

    rank: int
    group: bytes  # the group's key
    key: bytes  # this relay's own
    address: tuple[str, int]  # where reports go

    def to_bytes(self) -> bytes:
        host, port = self.address
        return INVITATION.pack(self.rank, self.group, self.key, socket.inet_aton(host), port)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        rank, group, key, host, port = INVITATION.unpack(content)
        return cls(rank, group, key, (socket.inet_ntoa(host), port))


class _End:
    """The base of both ends of a group: a thread that serves a socket and counts the bytes that it sends."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._closed = sock, Event()
        self._nbytes = self._reported = 0  # only the thread changes the first, only its owner the second
        self._warnings: set[str] = set()
        self._thread = Thread(target=self._work, daemon=True)

    def overhead(self) -> int:
        """Return the number of bytes sent since the last call, without one copy of each body."""
        before, self._reported = self._reported, self._nbytes
        return self._reported - before

    def close(self) -> None:
        """Leave the group."""
        self._closed.set()
        self._thread.join(timeout=1.0)
        self._socket.close()

    def _warn(self, what: str, error: Exception) -> None:
        """Log an unforeseen error once, and go on: a thread that ended would leave this end deaf."""
        warning = f"{what} ({type(error).__name__}: {error})"
        if warning not in self._warnings:
            log.warning(warning)
        self._warnings.add(warning)

    def _work(self) -> None:
        raise NotImplementedError


class Caster(_End):
    """The server's end of a group, which sends one body after another under a key of its own.

    A receiver that could not be reached gets copies of all other bodies of the round, too, and, if this happens in n
    rounds on end, in the next 2^(n - 1) - 1 rounds, so that one that is out of reach costs little time.

    Args:
        multicast: settings.
        server: address of the server.
        bps: sending rate [bit/s], unless the settings have one.
    """

    def __init__(self, multicast: Multicast, server: str, bps: float) -> None:
        super().__init__(multicast.socket(server, receive=False))
        self._to, self._bps = (multicast.group, multicast.port), multicast.rate_bps or bps
        self._secret = secrets.token_bytes(KEY)
        self._group = derive(self._secret, "group")
        self._casts: SimpleQueue[Cast | None] = SimpleQueue()
        self._number = self._round = 0
        self._failures: dict[int, int] = {}  # rounds on end in which a receiver could not be reached
        self._again: dict[int, int] = {}  # the round in which it is tried again
        self._thread.start()

    def invitation(self, rank: int) -> bytes:
        """Return what a relay's `Listener` needs; hand it to nobody else."""
        return Invitation(rank, self._group, self._key(rank), self._socket.getsockname()).to_bytes()

    def begin(self) -> None:
        """Begin a round."""
        self._round += 1

    def cast(self, body: Tensor, receivers: Iterable[int]) -> Cast:
        """Send a body to receivers, without waiting."""
        self._number += 1
        cast = Cast(self._number, body, receivers)
        self._casts.put(cast)
        return cast

    def unreachable(self) -> set[int]:
        """Return the receivers that get copies at present."""
        return {receiver for receiver, round in self._again.items() if round > self._round}

    def close(self) -> None:
        self._casts.put(None)
        super().close()

    def _key(self, rank: int) -> bytes:
        return derive(self._secret, f"relay {rank}")

    def _work(self) -> None:
        while cast := self._casts.get():
            try:
                self._transmit(cast)
            except Exception as error:
                self._warn("a multicast failed; copies are sent instead", error)
            finally:
                cast.settle(set(), set())

    def _transmit(self, cast: Cast) -> None:
        keys = {receiver: self._key(receiver) for receiver in cast.receivers - self.unreachable()}
        sending = Transmission(AESGCM(self._group), keys, cast.number, cast.body, self._bps, time.monotonic())
        readable = select.poll()
        readable.register(self._socket, select.POLLIN)
        while sending.waiting and not self._closed.is_set():
            cast.settle(sending.reached, sending.waiting)
            for datagram in sending.due(time.monotonic()):
                with suppress(OSError):  # counts as lost
                    self._socket.sendto(datagram, self._to)
            seconds = max(0.0, sending.wake() - time.monotonic()) if sending.waiting else 0.0
            if readable.poll(1e3 * seconds):
                with suppress(OSError):
                    sending.hear(self._socket.recv(DATAGRAM), time.monotonic())
        for receiver in keys:
            failures = 0 if receiver in sending.reached else self._failures.get(receiver, 0) + 1
            self._failures[receiver] = failures
            self._again[receiver] = self._round + min(2**failures // 2, REST)
        copies = len(cast.receivers) - len(sending.reached)  # for receivers not reached, sent through their connections
        self._nbytes += sending.nbytes + (copies - 1) * len(cast.body)
        cast.settle(sending.reached, set())


class Listener(_End):
    """A relay's end of a group.

    Args:
        multicast: settings.
        invitation: from the server's `Caster`.
        largest: see `Receiver`.

    Attributes:
        receiver: what has arrived.
    """

    def __init__(self, multicast: Multicast, invitation: bytes, largest: int = LARGEST) -> None:
        rank, group, key, self._server = Invitation.from_bytes(invitation)
        super().__init__(multicast.socket(self._server[0], receive=True))
        self._socket.settimeout(0.2)  # so that `close` does not wait long
        self._answers = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver, self._lock = Receiver(AESGCM(group), key, rank, largest), Lock()
        self._thread.start()

    def take(self, number: int) -> Tensor | None:
        """Return the body of a cast if it is complete; forget it and all earlier ones."""
        with self._lock:
            return self.receiver.take(number)

    def close(self) -> None:
        super().close()
        self._answers.close()

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                datagram = self._socket.recv(DATAGRAM)
                with self._lock:
                    answer = self.receiver.hear(datagram)
                if answer:
                    self._nbytes += len(answer)
                    self._answers.sendto(answer, self._server)
            except OSError:  # nothing has arrived in time, or an answer is lost: the server asks again
                pass
            except Exception as error:
                self._warn("a multicast datagram was dropped", error)


def this_end(server: str) -> str:
    """Return the address by which this machine reaches the server, without sending anything."""
    family, kind, *_, address = socket.getaddrinfo(server, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
