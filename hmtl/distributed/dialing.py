"""Nodes dial others, or listen, and say hello: gRPC, with mutual TLS; the only module that knows grpc.

The server and the relays listen. Relays dial the server, hosts dial the server and the relays. Between two neighbors
there is one call of gRPC with a stream of messages in each direction, see `hmtl.distributed.connections`. Keepalive,
backoff between attempts to connect, flow control and limits of messages are those of gRPC.
"""

import atexit
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from threading import Event, Thread
from typing import Any

import grpc

from hmtl.distributed.connections import CAME_BACK, ENDED, MAX_CHUNK_BYTES, Connection, Stream
from hmtl.distributed.frames import HEADER, HOSTS, MAY_SEND, RELAYS, SERVES, role
from hmtl.distributed.identity import Credentials, names_of, serial_of
from hmtl.errors import EngineError

log = logging.getLogger(__name__)
METHOD = "/hmtl/Stream"
RECONNECT_SECONDS = 1.0  # seconds between attempts to open a stream
CLOSE_SECONDS = 5.0  # seconds for a stream to end once all is said
SETTLE = 2.0  # seconds for threads to end at the end of the process
HANDSHAKE = 5.0  # seconds for a handshake
LONGEST = 2**31 - 1  # milliseconds that gRPC can count
REMIND = 30.0  # seconds after which a node logs again for whom it is waiting
REPEAT = 60.0  # seconds in which what is refused is logged once
SPARE = 512  # connections to a port besides those of nodes: strangers who hold more delay nodes by a handshake's time
REVOKED = "its certificate is revoked"
REFUSED = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.ALREADY_EXISTS


@dataclass(frozen=True)
class Party:
    """A node among all nodes of a run.

    Attributes:
        name: of this node.
        names: all nodes, the server first.
        identities: by name, the DNS name in the node's certificate.
        listen: HOST:PORT at which this node listens; None: it does not. Port 0: one that is free.
        addresses: HOST:PORT by which others reach the server and the relays, by name.
        credentials: returns who this node is at present, and whom it trusts.
        agreed: what all nodes have to agree on, such as a hash of the configuration.
    """

    name: str
    names: Sequence[str]
    identities: Mapping[str, str]
    listen: str | None
    addresses: Mapping[str, str]
    credentials: Callable[[], Credentials]
    agreed: str = ""

    @property
    def neighbors(self) -> list[str]:
        """The nodes that this one talks to."""
        return [name for name in self.names if (role(name), role(self.name)) in MAY_SEND]

    @property
    def dialed(self) -> list[str]:
        """The neighbors that this node dials; the others dial this one."""
        above = {RELAYS: (SERVES,), HOSTS: (SERVES, RELAYS)}.get(role(self.name), ())
        return [name for name in self.neighbors if role(name) in above]


class Streams:
    """This node's streams to all neighbors.

    Args:
        party: this node among all.
        seconds: a neighbor's process that does not answer for six times as long counts as dead.

    Attributes:
        connections: by name of the neighbor.

    Raises:
        EngineError: this node cannot listen at its address.
    """

    def __init__(self, party: Party, seconds: float = 60.0) -> None:
        self.party = party
        self.connections = {name: Connection(name, MAY_SEND[role(name), role(party.name)]) for name in party.neighbors}
        self._options = [
            ("grpc.max_receive_message_length", MAX_CHUNK_BYTES + HEADER),
            ("grpc.max_send_message_length", MAX_CHUNK_BYTES + HEADER),
            ("grpc.keepalive_time_ms", int(min(1000 * seconds, LONGEST))),
            ("grpc.keepalive_timeout_ms", int(min(6000 * seconds, LONGEST))),
            # fixed windows and large frames take less CPU time than probes for the best window
            ("grpc.http2.lookahead_bytes", 4 * MAX_CHUNK_BYTES),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.max_frame_size", 4 * MAX_CHUNK_BYTES),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_metadata_size", 8192),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._closed = Event()
        self._channels: dict[str, grpc.Channel] = {}
        self._server: grpc.Server | None = None
        if party.listen:
            self._listen(party.listen)
        Thread(target=self._watch, name="revoked certificates", daemon=True).start()
        for name in party.dialed:
            Thread(target=self._dial, args=(name, party.addresses[name]), name=f"to {name}", daemon=True).start()

    def missing(
        self, seconds: float, names: Sequence[str] | None = None, check: Callable[[], object] = bool
    ) -> dict[str, str]:
        """Wait for a first stream to each of some neighbors, and return those without one, and why.

        The log says at once and every now and then who is missing.

        Args:
            seconds: how long to wait.
            names: those neighbors; None: all.
            check: called each second; an error that it raises ends the wait.
        """
        deadline, level, remind = time.monotonic() + seconds, logging.INFO, time.monotonic()
        while True:
            check()
            until = min(deadline, time.monotonic() + RECONNECT_SECONDS)
            waited = [self.connections[name] for name in names or self.connections]
            late = [each for each in waited if not each.wait(until - time.monotonic())]
            missing = {each.name: each.trouble or "it has not arrived" for each in late}
            if not missing or time.monotonic() >= deadline:
                return missing
            if time.monotonic() >= remind:
                whom = "; ".join(f"{name} ({trouble})" for name, trouble in missing.items())
                log.log(level, "%s waits for %s", self.party.name, whom)
                level, remind = logging.WARNING, time.monotonic() + REMIND

    def close(self) -> None:
        """End all streams, and listen no more."""
        self._closed.set()
        for connection in self.connections.values():
            connection.close()
        for channel in list(self._channels.values()):
            channel.close()
        if self._server:
            self._server.stop(None).wait(CLOSE_SECONDS)

    def _dial(self, name: str, address: str) -> None:
        """Open a stream to a neighbor, and another whenever it has ended, until the wire is closed."""
        connection = self.connections[name]
        hello = (("agreed", self.party.agreed),)
        while not self._closed.is_set():
            stream = Stream(connection)
            try:
                with self._channel(name, address, stream) as channel:
                    self._channels[name] = channel
                    if self._closed.is_set():
                        return
                    call = channel.stream_stream(METHOD)(stream.outgoing(), metadata=hello)
                    stream.cancel = call.cancel
                    call.initial_metadata()  # waits until the neighbor has accepted
                    if call.is_active():
                        connection.attach(stream)
                    self._take(stream, call)
                    call.cancel()
                connection.trouble = _reason(call, name, address)
                if call.code() in REFUSED:
                    self._log(f"was refused by {name}: {connection.trouble}")
            except (grpc.RpcError, OSError, ValueError) as error:  # ValueError: the channel is closed
                connection.trouble = _reason(error, name, address)
            stream.end(connection.trouble or ENDED)
            self._closed.wait(RECONNECT_SECONDS)

    def _channel(self, name: str, address: str, stream: Stream) -> grpc.Channel:
        """Return a channel to a neighbor with the present credentials.

        gRPC for Python does not say which certificate a listener has shown, so this one is learned beforehand, and the
        channel trusts no other.

        Raises:
            OSError: nobody is there, or not with a certificate that is trusted.
        """
        identity = self.party.identities[name]
        options = [*self._options, ("grpc.ssl_target_name_override", identity)]
        own = self.party.credentials()
        shown = certificate_at(address, identity, own.trusted)
        stream.serial = serial_of(shown)
        if stream.serial in own.revoked:
            self._log(f"refused {name}: {REVOKED}")
            raise ConnectionRefusedError(REVOKED)
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(shown, own.key, own.certificate), options)

    def _watch(self) -> None:
        """End streams whose certificates are revoked meanwhile."""
        while not self._closed.wait(RECONNECT_SECONDS):
            revoked = self.party.credentials().revoked
            for connection in self.connections.values():
                for stream in (connection.stream, connection.newer):
                    if stream and stream.serial in revoked and not stream.ended.is_set():
                        stream.end(REVOKED)
                        stream.cancel()

    def _listen(self, address: str) -> None:
        """Listen at an address."""
        callers = [name for name in self.party.neighbors if name not in self.party.dialed]
        streams = 2 * len(callers) + 8  # a node that comes back has two for a moment
        options = [
            *self._options,
            ("grpc.so_reuseport", 0),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE)),
            ("grpc.max_allowed_incoming_connections", streams + SPARE),
            ("grpc.max_concurrent_streams", 2),  # of one connection
        ]
        handlers = grpc.method_handlers_generic_handler(
            "hmtl", {"Stream": grpc.stream_stream_rpc_method_handler(self._accept)}
        )
        used = self.party.credentials()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            """Return a configuration if there is another one: replacing it may race (grpc/grpc issue 36693)."""
            nonlocal used
            if used is (present := self.party.credentials()):
                return None
            used = present
            return _configuration(present)

        trust = grpc.dynamic_ssl_server_credentials(_configuration(used), renewed, True)  # at each handshake
        self._server = grpc.server(Daemons(), [handlers], options=options, maximum_concurrent_rpcs=streams)
        try:
            self._server.add_secure_port(address, trust)
        except RuntimeError as error:
            raise EngineError(
                f"{self.party.name} cannot listen at {address}. Check that the address is of this machine and that "
                "nobody else uses the port."
            ) from error
        self._server.start()

    def _accept(self, incoming: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Take the stream of a neighbor that has dialed, or refuse it."""
        stream = self._known(context)
        if not context.add_callback(lambda: stream.end(ENDED)):
            return
        context.send_initial_metadata(())
        stream.connection.attach(stream)
        Thread(target=self._take, args=(stream, incoming), daemon=True).start()
        yield from stream.outgoing()
        stream.ended.wait(CLOSE_SECONDS)
        if stream.reason == CAME_BACK:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "another process came under this name")

    def _take(self, stream: Stream, incoming: Any) -> None:
        try:
            stream.take(incoming)
        except Exception as error:  # grpc raises RpcError at one end, and a bare Exception at the other
            ends = isinstance(error, grpc.RpcError) or type(error) is Exception
            stream.end(ENDED if ends else f"{type(error).__name__}: {error}")
        if stream.reason not in (ENDED, CAME_BACK) and not stream.reason.endswith("has left"):
            self._log(f"ended the stream of {stream.connection.name}: {stream.reason}")
            stream.cancel()

    def _known(self, context: Any) -> Stream:
        """Return a stream of the neighbor that dials, or refuse it."""
        party, hello, why = self.party, dict(context.invocation_metadata()), ""
        shown = context.auth_context()["x509_pem_cert"][0]
        proven, serial = names_of(shown), serial_of(shown)
        name = next((name for name in party.names if party.identities[name] in proven), "")
        who = ", ".join(proven) or "a certificate without a DNS name"
        if serial in party.credentials().revoked:
            why = f"{who}: {REVOKED}"
        elif name not in self.connections or name in party.dialed:
            why = f"{who}: no node that talks to {party.name}"
        elif hello.get("agreed") != party.agreed:
            why = f"{name}: another configuration, or version of hmtl, than that of {party.name}"
        if why:
            self._log(f"refused {why}")
            context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        return Stream(self.connections[name], context.cancel, serial)

    def _log(self, sentence: str) -> None:
        _warn(f"{self.party.name} {sentence}", time.monotonic() // REPEAT)


def _configuration(own: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(own.key, own.certificate)], own.trusted)


class Daemons(Executor):
    """A thread for each stream, which does not keep a process alive that ends by an error."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()

        def run() -> None:
            try:
                work(*args, **kwargs)
            finally:
                done.set_result(None)

        Thread(target=run, daemon=True).start()
        return done


@lru_cache(1000)
def _warn(sentence: str, when: float) -> None:
    """Log a sentence, but not again for the same time: a node that is refused comes back each second."""
    log.warning("%s", sentence)


@atexit.register
def settle() -> None:
    """Let threads end before the process does: Python aborts if one of them is then within gRPC or torch."""
    deadline = time.monotonic() + SETTLE
    for thread in threading.enumerate():
        if thread.daemon and type(thread) is Thread:  # not one of C++
            with suppress(KeyboardInterrupt):
                thread.join(max(0.0, deadline - time.monotonic()))


def certificate_at(address: str, identity: str, trusted: bytes) -> bytes:
    """Return the certificate, in PEM, that a node shows at an address HOST:PORT.

    Raises:
        OSError: nobody is there, or not with a certificate that is trusted and has the DNS name `identity`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.hostname_checks_common_name = False  # certificates without DNS names are nobody's
    context.load_verify_locations(cadata=trusted.decode(errors="ignore"))
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host.strip("[]"), int(port)), HANDSHAKE) as plain,
        context.wrap_socket(plain, server_hostname=identity) as secured,
    ):
        return ssl.DER_cert_to_PEM_cert(secured.getpeercert(True) or b"").encode()


def _reason(error: Any, name: str, address: str) -> str:
    """Return why a stream ended, or was not opened."""
    details = error.details() if hasattr(error, "details") else getattr(error, "strerror", "") or error
    if "handshake" in str(details).lower() or "CERTIFICATE" in str(details):
        return f"{name} at {address} and this node do not trust each other's certificates"
    first = str(details or ENDED).splitlines()[0]
    return first.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")[:120]
