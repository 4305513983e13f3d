"""One downlink for all relays of a site: the server sends once, by UDP multicast, what several of them receive.

A body is cut into pieces, each sealed with AES-GCM under a key of the run that the server hands to the relays. The
streams bring its header and its digest; a relay asks there for pieces that it lacks. A relay that forges pieces can
make others fetch a body by the stream, but cannot make them believe in it.
"""

import secrets
import socket
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import AddressValueError, IPv4Address
from struct import Struct
from struct import error as StructError

import numpy as np
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from hmtl.errors import ConfigError, EngineError

HEAD = Struct("!I I I")  # number of the body, place of the piece, bytes of the body; with these, no nonce comes twice
SEAL_BYTES = 16  # bytes of a seal
ROOM = 1400 - HEAD.size - SEAL_BYTES  # bytes of a piece, so that links carry a datagram in one packet
BUFFER = 4 << 20  # bytes that may wait in the socket of a busy process; the system may limit it to less
QUIET = 0.1  # seconds without a piece after which a relay asks for those that it lacks
MAX_KEPT_BODIES = 8  # bodies


@dataclass(frozen=True)
class Group:
    """A multicast group.

    Args:
        address: HOST:PORT with an IPv4 address from 224.0.0.0 to 239.255.255.255.
        interface: this machine's address on the network to the others; None: the system's choice.

    Raises:
        ConfigError: it is not such an address.
    """

    address: str
    interface: str | None = None

    def __post_init__(self) -> None:
        host, _, port = self.address.partition(":")
        try:
            fits = IPv4Address(host).is_multicast and 0 < int(port) < 65536
        except (AddressValueError, ValueError):
            fits = False
        if not fits:
            raise ConfigError(
                f"engine.multicast={self.address} is not the address of a multicast group. Set it to one such as "
                "239.255.71.82:47182; those that begin with 239 are meant for private networks."
            )

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.address.partition(":")
        return host, int(port)

    def socket(self, receive: bool) -> socket.socket:
        """Return a socket that receives what is sent to the group, or that sends to it.

        Raises:
            EngineError: the system refuses it.
        """
        own, sock = socket.inet_aton(self.interface or "0.0.0.0"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            if receive:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # other runs may use the same group
                sock.bind(self.place)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(self.place[0]) + own)
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)  # relays may be on the same machine
        except OSError as error:
            sock.close()
            raise EngineError(
                f"multicast group {self.address} cannot be used on this machine ({error}). Set engine.interface to its "
                "address on the network to the others, or engine.multicast=null."
            ) from error
        return sock


class Caster:
    """The server's end of a group.

    Args:
        group: the group.
        bps: sending rate [bit/s].

    Attributes:
        key: of the run, for relays alone.
    """

    def __init__(self, group: Group, bps: float) -> None:
        self.key, self._bps, self._to = secrets.token_bytes(32), bps, group.place
        self._seal, self._socket = AESGCM(self.key), group.socket(receive=False)
        self._bodies: OrderedDict[int, Tensor] = OrderedDict()

    def cast(self, number: int, body: Tensor) -> None:
        """Send a body once; losses are not noticed here."""
        self._bodies[number] = body
        while len(self._bodies) > MAX_KEPT_BODIES:
            self._bodies.popitem(last=False)
        content, begin = body.numpy().data, time.monotonic()
        for place, start in enumerate(range(0, len(content), ROOM)):
            head = HEAD.pack(number, place, len(content))
            with suppress(OSError):  # counts as lost
                self._socket.sendto(head + self._seal.encrypt(head, content[start : start + ROOM], None), self._to)
            ahead = begin + 8 * start / self._bps - time.monotonic()
            if ahead > 0.001:
                time.sleep(ahead)

    def pieces(self, number: int, places: Tensor) -> Tensor:
        """Return the pieces at these ascending places [n], uint8; nothing if the body is forgotten."""
        body = self._bodies.get(number, torch.empty(0, dtype=torch.uint8))
        parts = [body[place * ROOM : (place + 1) * ROOM] for place in sorted(set(places.tolist()))]
        return torch.cat([body[:0], *parts])

    def close(self) -> None:
        """Leave the group."""
        self._socket.close()


class Listener:
    """A relay's end of a group: a thread collects pieces.

    Args:
        group: the group.
        key: of the run, from the server.
        largest: bytes of a body, at most.
    """

    def __init__(self, group: Group, key: bytes, largest: int) -> None:
        self._seal, self._largest = AESGCM(key), largest
        self._socket, self._lock = group.socket(receive=True), threading.Condition()
        self._bodies: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()  # bytes, and which pieces are there
        self._socket.settimeout(0.2)  # so that `close` does not wait long
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def wait(self, number: int, size: int) -> tuple[Tensor, Tensor]:
        """Return a body of this size, uint8, and the places of the pieces that did not arrive in time."""
        with self._lock:
            have, there = -1, self._body(number, size)[1]
            while have < int(there.sum()) < len(there):  # more arrived while it waited
                have = int(there.sum())
                self._lock.wait(QUIET)
            body, _ = self._bodies.pop(number, (torch.empty(size, dtype=torch.uint8), there))  # or too many came since
        return body, (~there).nonzero().flatten()

    def close(self) -> None:
        """Leave the group."""
        self._closed.set()
        self._thread.join(1.0)
        self._socket.close()

    def _body(self, number: int, size: int) -> tuple[Tensor, Tensor]:
        if number not in self._bodies or len(self._bodies[number][0]) != size:
            pieces = torch.zeros(-(-size // ROOM), dtype=torch.bool)
            self._bodies[number] = torch.empty(size, dtype=torch.uint8), pieces
            while len(self._bodies) > MAX_KEPT_BODIES:
                self._bodies.popitem(last=False)
        return self._bodies[number]

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                datagram = self._socket.recv(1500)
                head, sealed = datagram[: HEAD.size], datagram[HEAD.size :]
                number, place, size = HEAD.unpack(head)
                piece = self._seal.decrypt(head, sealed, None)
            except (OSError, InvalidTag, ValueError, StructError):  # nothing has arrived, or it is of a stranger
                continue
            start = place * ROOM
            if not 0 < size <= self._largest or len(piece) != min(ROOM, size - start):
                continue
            with self._lock:
                body, there = self._body(number, size)
                body[start : start + len(piece)] = torch.from_numpy(np.frombuffer(piece, np.uint8).copy())
                there[place] = True
                if bool(there.all()):
                    self._lock.notify_all()


def put(body: Tensor, places: Tensor, pieces: Tensor) -> None:
    """Put pieces, which `Caster.pieces` returned, at their places in a body."""
    begin = 0
    for place in places.tolist():
        part = body[place * ROOM : (place + 1) * ROOM]
        part.copy_(pieces[begin : begin + len(part)])
        begin += len(part)


def digest(body: Tensor) -> bytes:
    """Return the digest by which a body is known."""
    return blake2b(body.numpy().data, digest_size=32).digest()
