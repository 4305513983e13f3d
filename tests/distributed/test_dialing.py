"""Who may speak over gRPC, what strangers cost, and streams that break."""

import datetime
import logging
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from hmtl.communication.messages import IVS, REPORT, SERVER
from hmtl.distributed import dialing as module
from hmtl.distributed.dialing import METHOD, Party, Streams, certificate_at, grpc
from hmtl.distributed.frames import CONTROL, Frame
from hmtl.distributed.identity import Credentials, Key, issue, key_to_pem, make_authority, make_key, serial_of, to_pem
from hmtl.distributed.launching import free_port
from hmtl.errors import EngineError

NAMES = ["server", "relay 0", "relay 1", "host 0", "host 1"]
IDENTITIES = {name: name.replace(" ", "-") for name in NAMES}
Authority = tuple[Key, Any]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("the authority", 1)


def credentials(authority: Authority, name: str, trusted: bytes = b"") -> Credentials:
    key = make_key()
    certificate = issue(IDENTITIES.get(name, name), key, 1, authority)
    return Credentials(key_to_pem(key), to_pem(certificate), trusted or to_pem(authority[1]))


def party(name: str, own: Callable[[], Credentials], **how: Any) -> Party:
    return replace(Party(name, NAMES, IDENTITIES, None, {}, own, "this run"), **how)


class Site:
    """Nodes of one process that find each other."""

    def __init__(self, authority: Authority) -> None:
        self.authority, self.ports, self.wires = authority, {}, {}
        self.held: dict[str, Credentials] = {}  # by name, at present

    def wire(self, name: str, **how: Any) -> Streams:
        own = partial(self.held.__getitem__, name)
        self.held[name] = credentials(self.authority, name)
        if not name.startswith("host"):
            self.ports.setdefault(name, free_port())
            how = {"listen": f"127.0.0.1:{self.ports[name]}", **how}
        addresses = {each: f"127.0.0.1:{port}" for each, port in self.ports.items()}
        self.wires[name] = wire = Streams(party(name, own, addresses=addresses, **how), 5)
        return wire

    def all(self) -> dict[str, Streams]:
        for name in NAMES:
            self.wire(name)
        assert [wire.missing(10) for wire in self.wires.values()] == [{}] * len(NAMES)
        return self.wires

    def revoke(self, name: str) -> None:
        revoked = frozenset({serial_of(self.held[name].certificate)})
        self.held.update({each: replace(own, revoked=revoked) for each, own in self.held.items()})

    def close(self) -> None:
        for wire in self.wires.values():
            wire.close()


@pytest.fixture
def site(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(module, "RECONNECT_SECONDS", 0.1)
    monkeypatch.setattr(module, "REPEAT", 1e9)
    module._warn.cache_clear()
    found = Site(authority)
    yield found
    found.close()


def frame(number: int, kind: str = CONTROL, size: int = 2) -> Frame:
    return Frame(kind, 5, torch.full((1, size), number, dtype=torch.uint8))


def hears(wire: Streams, sender: str) -> int:
    each = wire.connections[sender].receive(10)
    assert each is not None
    assert (each.payload == each.payload[0, 0]).all()
    return int(each.payload[0, 0])


def check_all_hear_all(wires: dict[str, Streams]) -> None:
    for own, wire in wires.items():
        number = NAMES.index(own)
        for name, connection in wire.connections.items():
            kind = CONTROL if SERVER in (own, name) else IVS if own.startswith("host") else "models"
            connection.send(frame(number, kind, 1 + 1000 * number))
    for wire in wires.values():
        for name in wire.connections:
            assert hears(wire, name) == NAMES.index(name)


def test_neighbors_hear_each_other_and_nobody_else(site: Site) -> None:
    wires = site.all()
    assert {name: list(wire.connections) for name, wire in wires.items()} == {
        "server": NAMES[1:],
        "relay 0": ["server", "host 0", "host 1"],
        "relay 1": ["server", "host 0", "host 1"],
        "host 0": ["server", "relay 0", "relay 1"],
        "host 1": ["server", "relay 0", "relay 1"],
    }
    check_all_hear_all(wires)


def test_a_node_that_comes_back_is_heard(site: Site) -> None:
    wires = site.all()
    server = wires[SERVER].connections["relay 1"]
    wires["relay 1"].close()
    with pytest.raises(EngineError):
        server.receive(10)
    again = site.wire("relay 1")
    assert again.connections[SERVER].wait(10)
    again.connections[SERVER].send(frame(4))
    deadline = time.monotonic() + 10
    while not server.take_back():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert hears(wires[SERVER], "relay 1") == 4


def test_a_name_that_two_processes_use_is_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    first = site.all()["host 0"]
    site.wire("host 0")
    try:
        deadline = time.monotonic() + 10
        while "host 0 was refused by server: another process came under this name" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        first.close()


def opened(port: int, who: Credentials, hello: Sequence[tuple[str, str]]) -> str:
    """The reason why a stream to the server is refused."""
    trust = grpc.ssl_channel_credentials(who.trusted, who.key, who.certificate)
    with grpc.secure_channel(
        f"127.0.0.1:{port}", trust, [("grpc.ssl_target_name_override", IDENTITIES[SERVER])]
    ) as channel:
        call = channel.stream_stream(METHOD)(iter([]), metadata=hello)
        with pytest.raises(grpc.RpcError):
            list(call)
        return str(call.details())


def test_a_node_is_who_its_certificate_says(site: Site, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    wires, agreed = site.all(), (("agreed", "this run"), ("name", "relay 0"))
    port, root = site.ports[SERVER], to_pem(authority[1])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert "no node" in opened(port, credentials(authority, "stranger"), agreed)
        assert "no node" in opened(port, credentials(authority, SERVER), agreed)
        assert "configuration" in opened(port, credentials(authority, "relay 0"), [("agreed", "another")])
    assert len(caplog.records) == 3, "what is repeated is logged once"
    opened(port, credentials(make_authority("another", 1), "relay 0", trusted=root), agreed)
    for wire in wires.values():
        assert not any(connection.newer for connection in wire.connections.values())
    check_all_hear_all(wires)


def test_what_a_role_may_not_send_ends_the_stream_of_its_sender_alone(site: Site) -> None:
    wires = site.all()
    wires["host 0"].connections[SERVER].send(frame(1, REPORT))
    with pytest.raises(EngineError, match="role"):
        wires[SERVER].connections["host 0"].receive(10)
    del wires["host 0"]
    for name in ("host 1", "relay 0"):
        wires[name].connections[SERVER].send(frame(2))
        assert hears(wires[SERVER], name) == 2


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_revoked_certificate_ends_the_streams_of_its_node_alone_until_it_has_another(
    site: Site, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    wires = site.all()
    streams = {name: wires[name].connections["relay 1"].stream for name in ("server", "host 0", "host 1")}
    site.revoke("relay 1")
    for name, stream in streams.items():
        until(stream.ended.is_set)
        assert "revoked" in stream.reason
        until(lambda name=name: f"{name} refused relay" in caplog.text and "was refused by server" in caplog.text)
    own = [record.getMessage() for record in caplog.records]
    assert len(own) == len({*own}) == 7, own
    del wires["relay 1"]
    assert not any(connection.newer for connection in wires["host 0"].connections.values())
    for name in ("relay 0", "host 1"):
        wires[name].connections[SERVER].send(frame(2))
        assert hears(wires[SERVER], name) == 2
    site.held["relay 1"] = credentials(authority, "relay 1")
    for name in streams:
        until(wires[name].connections["relay 1"].take_back)


def test_who_shows_the_certificate_of_another_is_not_trusted(
    site: Site, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revoked server lets the genuine one answer when it is asked for its certificate."""
    genuine = credentials(authority, SERVER)
    monkeypatch.setattr(module, "certificate_at", lambda *_: genuine.certificate)
    site.wire(SERVER)
    connection = site.wire("relay 0").connections[SERVER]
    until(lambda: "trust" in connection.trouble)
    site.held[SERVER] = genuine
    assert connection.wait(10)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def knocks(port: int) -> Iterator[Callable[[], object]]:
    """What strangers do, again and again."""
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE

    def connect(content: bytes = b"", secure: bool = False) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        with suppress(OSError):
            if secure:
                sock = tls.wrap_socket(sock)
            sock.sendall(content)
        return sock

    http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    while True:
        yield lambda: connect().close()
        yield lambda: connect(secrets.token_bytes(2000)).close()
        yield lambda: connect(http2 + secrets.token_bytes(500)).close()
        yield lambda: connect(http2 + secrets.token_bytes(500), secure=True).close()
        yield connect  # and hold


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts file descriptors in /proc")
def test_strangers_cost_nothing(site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "HANDSHAKE", 1.0)
    count = int(os.environ.get("HMTL_STRANGERS", "250"))
    wires = site.all()
    check_all_hear_all(wires)
    before, held = descriptors(), []
    with caplog.at_level(logging.WARNING):
        for port in (site.ports[SERVER], site.ports["relay 1"]):
            for _, knock in zip(range(count), knocks(port), strict=False):
                if (sock := knock()) is not None:
                    held.append(sock)
            check_all_hear_all(wires)
        assert descriptors() - before < len(held) + 2 * (module.SPARE + 30)
        for sock in held:
            sock.close()
        deadline = time.monotonic() + 20
        while descriptors() > before + 2:
            assert time.monotonic() < deadline, descriptors() - before
            time.sleep(0.1)
    check_all_hear_all(wires)
    assert len(caplog.records) < 20


def context(folder: Path, own: Credentials) -> ssl.SSLContext:
    """TLS as a node speaks it."""
    files = [folder / name for name in ("key", "certificate", "trusted")]
    for file, content in zip(files, (own.key, own.certificate, own.trusted), strict=True):
        file.write_bytes(content)
    tls = ssl.create_default_context(cafile=str(files[2]))
    tls.load_cert_chain(files[1], files[0])
    tls.set_alpn_protocols(["h2"])
    return tls


def http2(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def fields(**values: str) -> bytes:
    """Fields of a header; `_name` is `:name`."""
    pairs = [(name.replace("_", ":").encode(), value.encode()) for name, value in values.items()]
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs)


CALL = fields(_method="POST", _scheme="https", _path=METHOD, _authority=SERVER, te="trailers", name="relay 0")
CALL += fields(agreed="another run") + fields(**{"content-type": "application/grpc"})
FLOODS = {
    "resets": [http2(1, 4, n, CALL) + http2(3, 0, n, bytes(4)) for n in range(1, 4000, 2)],
    "calls": [http2(1, 4, n, CALL) for n in range(1, 4000, 2)],
    "pings": [http2(6, 0, 0, bytes(8))] * 5000,
    "settings": [http2(4, 0, 0, bytes([0, 3, 0, 0, 0, 9]))] * 5000,
    "continued headers": [http2(1, 0, 1, CALL), *[http2(9, 0, 1, fields(x="y" * 100))] * 5000],
    "empty bodies": [http2(1, 4, 1, CALL), *[http2(0, 0, 1)] * 5000],
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts file descriptors in /proc")
def test_floods_of_known_nodes_cost_nothing(
    site: Site, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of one whose certificate is of the same authority, but who is no node."""
    wires, before = site.all(), descriptors()
    for who in ("relay 0", "stranger"):
        tls = context(tmp_path, credentials(authority, who))
        for flood in FLOODS.values():
            with suppress(OSError), socket.create_connection(("127.0.0.1", site.ports[SERVER]), timeout=5) as sock:
                secured = tls.wrap_socket(sock, server_hostname="server")
                secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2(4, 0, 0) + b"".join(flood))
                secured.settimeout(0.2)
                while secured.recv(1 << 16):
                    pass  # until nothing has come for a while: the server has read all
            check_all_hear_all(wires)
    # strangers may knock at other nodes meanwhile, such as one that looks for a process that had this port before
    own = [record.getMessage() for record in caplog.records if record.getMessage().startswith("server")]
    assert {*own} == {
        "server refused relay 0: another configuration, or version of hmtl, than that of server",
        "server refused stranger: no node that talks to server",
    }
    assert len(own) < 8
    deadline = time.monotonic() + 20
    while descriptors() > before + 2:
        assert time.monotonic() < deadline, descriptors() - before
        time.sleep(0.1)


def test_a_node_that_waits_says_so_at_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    site.ports["server"] = free_port()
    wire, begin = site.wire("relay 0"), time.monotonic()
    assert wire.missing(0.5).keys() == {"server", "host 0", "host 1"}
    (first,) = (each for each in caplog.records if "waits for" in each.getMessage())
    assert first.created - caplog.records[0].created < 5
    assert all(name in first.getMessage() for name in ("relay 0 waits", "server (", "host 0 (", "host 1 ("))
    assert time.monotonic() - begin < 5
    caplog.clear()
    site.wire("server")
    assert wire.missing(10, [SERVER]) == {}
    assert "still" not in caplog.text


def test_a_check_ends_the_wait(site: Site) -> None:
    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise EngineError("host 1 is dead")

    site.ports["server"], begin = free_port(), time.monotonic()
    with pytest.raises(EngineError, match="dead"):
        site.wire("relay 0").missing(60, check=check)
    assert time.monotonic() - begin < 10


def test_nodes_speak_tls_1_3_and_nothing_older(site: Site, authority: Authority, tmp_path: Path) -> None:
    """A listener that speaks TLS 1.2 gets no certificate to check, either."""
    site.all()
    tls = context(tmp_path, credentials(authority, "relay 0"))
    with socket.create_connection(("127.0.0.1", site.ports[SERVER]), timeout=10) as sock:
        assert tls.wrap_socket(sock, server_hostname="server").version() == "TLSv1.3"
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", site.ports[SERVER]), timeout=10) as sock,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        tls.wrap_socket(sock, server_hostname="server")
    listener = listening(tmp_path, credentials(authority, SERVER), ssl.TLSVersion.TLSv1_2)
    with pytest.raises(OSError, match=r"(?i)version|protocol"):
        certificate_at(listener, "server", to_pem(authority[1]))


def listening(folder: Path, own: Credentials, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> str:
    """Return the address at which somebody waits for one handshake."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (folder / "own").write_bytes(own.certificate + own.key)
    tls.load_cert_chain(folder / "own")
    tls.maximum_version = newest
    sock = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            tls.wrap_socket(sock.accept()[0], server_side=True)

    Thread(target=accept, daemon=True).start()
    return f"127.0.0.1:{sock.getsockname()[1]}"


def nameless(authority: Authority, name: str, entry: Any = None) -> Credentials:
    """Credentials of the same authority whose certificate names a node in its CN, or in another entry than DNS."""
    key, now = make_key(), datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(authority[1].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
    )
    if entry:
        builder = builder.add_extension(x509.SubjectAlternativeName([entry]), critical=False)
    signed = builder.sign(authority[0], hashes.SHA256())
    return Credentials(key_to_pem(key), to_pem(signed), to_pem(authority[1]))


@pytest.mark.parametrize("entry", [None, x509.UniformResourceIdentifier("relay-0"), x509.RFC822Name("relay-0")])
def test_a_name_that_is_no_dns_entry_is_nobodys(
    site: Site, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, entry: Any
) -> None:
    site.all()
    hello = (("agreed", "this run"), ("name", "relay 0"))
    assert "no node" in opened(site.ports[SERVER], nameless(authority, "relay-0", entry), hello)
    assert not site.wires[SERVER].connections["relay 0"].newer
    assert "refused a certificate without a DNS name" in caplog.text
    with pytest.raises(OSError, match=r"(?i)host"):
        certificate_at(listening(tmp_path, nameless(authority, "server", entry)), "server", to_pem(authority[1]))


def test_half_open_connections_delay_nobody(site: Site) -> None:
    """300 strangers connect and say nothing, before a node is there for the first time."""
    for name in NAMES[:-1]:
        site.wire(name)
    until(lambda: site.wires["host 0"].connections[SERVER].wait(0))
    held = [socket.create_connection(("127.0.0.1", site.ports[SERVER])) for _ in range(300)]
    begin = time.monotonic()
    assert site.wire("host 1").connections[SERVER].wait(30)
    assert time.monotonic() - begin < 3
    for sock in held:
        sock.close()
