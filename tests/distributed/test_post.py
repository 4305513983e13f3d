"""What a node gets from its neighbors: in order or by number, in time or not at all, once or by multicast."""

import contextlib
import time
from collections.abc import Iterator
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cells import has_multicast

from hmtl.communication.messages import BROADCAST, IVS, REPORT, SERVER, nothing
from hmtl.distributed import connections
from hmtl.distributed import post as module
from hmtl.distributed.connections import Connection, Stream
from hmtl.distributed.frames import CONTROL, LACKS, MAY_SEND, Frame, role
from hmtl.distributed.launching import free_port
from hmtl.distributed.multicast import ROOM, Caster, Group, Listener
from hmtl.distributed.post import Post
from hmtl.errors import ConfigError, EngineError


class Pair:
    """Two nodes in this process, the streams of which are joined."""

    def __init__(self, *names: str) -> None:
        self.wires = {name: Ends(name, names) for name in names}
        self.posts = {name: Post(wire, 0.3) for name, wire in self.wires.items()}  # type: ignore[arg-type]
        self.join(*names)

    def join(self, first: str, second: str) -> None:
        """Connect both by new streams."""
        ends = [self.wires[a].connections[b] for a, b in ((first, second), (second, first))]
        streams = [Stream(end) for end in ends]
        for own, other in (streams, streams[::-1]):
            Thread(target=own.take, args=(other.outgoing(),), daemon=True).start()
        for end, stream in zip(ends, streams, strict=True):
            end.attach(stream)


class Ends:
    """The connections of a node."""

    def __init__(self, own: str, names: tuple[str, ...]) -> None:
        self.party = SimpleNamespace(name=own)
        self.connections = {name: Connection(name, MAY_SEND[role(name), role(own)]) for name in names if name != own}

    def close(self) -> None:
        for connection in self.connections.values():
            connection.close()


@pytest.fixture
def pair() -> Pair:
    return Pair(SERVER, "relay 0")


def frame(number: int, kind: str = REPORT, round: int = 5, size: int = 1) -> Frame:
    return Frame(kind, round, torch.full((1, size), number, dtype=torch.uint8), nothing(1))


def content(each: Frame | None) -> int | None:
    return None if each is None else int(each.payload[0, 0])


def test_messages_arrive_by_their_numbers_and_control_values_in_order(pair: Pair) -> None:
    relay, server = pair.posts["relay 0"], pair.posts[SERVER]
    numbers = [relay.hand([SERVER], frame(n)) for n in (1, 2, 3)]
    for n in (4, 5):
        relay.send(SERVER, frame(n, CONTROL))
    assert [content(server.fetch("relay 0", number)) for number in numbers[::-1]] == [3, 2, 1]
    assert [content(server.control("relay 0", 5)) for _ in range(2)] == [4, 5]


def test_a_message_that_never_arrives_is_waited_for_once(pair: Pair) -> None:
    begin = time.monotonic()
    assert pair.posts[SERVER].fetch("relay 0", 77) is None
    assert pair.posts[SERVER].control("relay 0", 0.1) is None
    assert 0.3 < time.monotonic() - begin < 5
    pair.wires["relay 0"].close()
    pair.posts[SERVER]._seconds = 60
    assert pair.posts[SERVER].fetch("relay 0", 78) is None
    assert time.monotonic() - begin < 30, "nothing comes from who has ended"
    with pytest.raises(EngineError):
        pair.posts[SERVER].control("relay 0", 60)


def test_what_has_arrived_is_read_although_there_is_no_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control values are behind messages that nobody has asked for, but not endlessly many."""
    relay, server = pair.posts["relay 0"], pair.posts[SERVER]
    for n in range(5):
        relay.hand([SERVER], frame(n))
    relay.send(SERVER, frame(9, CONTROL))
    inbox, deadline = pair.wires[SERVER].connections["relay 0"].stream.inbox, time.monotonic() + 10
    while inbox.qsize() < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert content(server.control("relay 0", 0.0)) == 9
    monkeypatch.setattr(module, "MOMENT", 0.1)
    stream = pair.wires[SERVER].connections["relay 0"].stream
    monkeypatch.setattr(stream, "receive", lambda seconds: frame(1, LACKS))
    begin = time.monotonic()
    assert server.control("relay 0", 0.0) is None
    assert server.fetch("relay 0", 77) is None
    assert time.monotonic() - begin < 5


def test_silent_neighbors_share_the_time(pair: Pair) -> None:
    """Otherwise a node that waits for two of them would be late itself."""
    server = pair.posts[SERVER]
    for _ in range(2):
        begin = time.monotonic()
        assert [server.fetch("relay 0", number) for number in range(70, 80)] == [None] * 10
        assert 0.3 <= time.monotonic() - begin < 2
        assert server.control("relay 0", 0.0) is None  # the next call, with new time


def test_what_nobody_asked_for_in_an_earlier_round_is_forgotten(pair: Pair) -> None:
    relay, server = pair.posts["relay 0"], pair.posts[SERVER]
    old, new = (relay.hand([SERVER], frame(round, round=round)) for round in (5, 6))
    assert content(server.fetch("relay 0", new)) == 6
    server.hand(["relay 0"], frame(0, "verdict", round=6))
    assert server.fetch("relay 0", old) is None


def test_a_neighbor_that_comes_back_is_heard_and_what_it_sent_before_is_forgotten(pair: Pair) -> None:
    relay, server = pair.posts["relay 0"], pair.posts[SERVER]
    assert not server.take_back("relay 0")
    number = relay.hand([SERVER], frame(1))
    for _ in range(2):
        relay.send(SERVER, frame(2, CONTROL))
    assert content(server.control("relay 0", 5)) == 2
    pair.wires["relay 0"].connections[SERVER].stream.end("it has ended")
    pair.join(SERVER, "relay 0")
    assert pair.wires["relay 0"].connections[SERVER].take_back()
    assert server.take_back("relay 0")
    assert server.fetch("relay 0", number) is None
    relay.send(SERVER, frame(3, CONTROL))
    assert content(server.control("relay 0", 5)) == 3


@pytest.mark.parametrize("kind", [REPORT, CONTROL])
def test_what_nobody_asks_for_takes_bounded_memory(pair: Pair, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Those that are asked for do not count, however many they are."""
    monkeypatch.setattr(module, "UNASKED", 100_000)
    monkeypatch.setattr(connections, "MAX_BODY_BYTES", 20_000)
    relay, server = pair.posts["relay 0"], pair.posts[SERVER]
    server._seconds = 10
    for _ in range(30):
        number = relay.hand([SERVER], frame(1, kind, size=9_000))
        assert content(server.fetch("relay 0", number) if kind == REPORT else server.control("relay 0", 5)) == 1
    for _ in range(30):
        relay.hand([SERVER], frame(1, kind, size=9_000))
    assert server.fetch("relay 0", 1000) is None
    assert sum(map(len, (*server._boxes.values(), *server._control.values()))) < 17
    assert "nobody asked for" in pair.wires[SERVER].connections["relay 0"].stream.reason


def test_kinds_of_another_role_end_the_stream(pair: Pair) -> None:
    pair.posts[SERVER].send("relay 0", frame(1, IVS))
    with pytest.raises(EngineError, match="role"):
        pair.posts["relay 0"].control(SERVER, 5)


HERE = "127.0.0.1"


@pytest.fixture
def group(pair: Pair) -> Iterator[Group]:
    """The group of a pair."""
    if not has_multicast():
        pytest.skip("this machine has no multicast")
    group = Group(f"239.255.71.83:{free_port()}", HERE)
    server, relay = pair.posts[SERVER], pair.posts["relay 0"]
    server.caster = Caster(group, 400e6)
    relay.listener = Listener(group, server.caster.key, 10**6)
    yield group
    server.caster.close()
    relay.listener.close()


def fetch_cast(pair: Pair, body: torch.Tensor) -> Frame | None:
    """What the relay gets of a body that the server sends to all relays; the server meanwhile waits for an answer."""
    server, relay = pair.posts[SERVER], pair.posts["relay 0"]
    server.wire.connections["relay 1"] = Connection("relay 1", frozenset())  # has no stream
    number = server.hand(["relay 0", "relay 1"], Frame(BROADCAST, 5, body[None], nothing(1)))
    found: list[Any] = []
    asking = Thread(target=lambda: found.append(relay.fetch(SERVER, number)))
    asking.start()
    while asking.is_alive():
        server.control("relay 0", 0.05)
    return found[0]


@pytest.mark.parametrize("loss", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [ROOM + 1, 40 * ROOM, 100_000])
def test_a_body_arrives_by_multicast_whatever_is_lost(
    pair: Pair, group: Group, monkeypatch: pytest.MonkeyPatch, loss: float, size: int
) -> None:
    pair.posts["relay 0"]._seconds = 10
    generator = torch.Generator().manual_seed(size)
    body = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    lost = torch.rand(1000, generator=generator) < loss
    caster = pair.posts[SERVER].caster
    send, count = caster._socket.sendto, iter(range(1000))

    class Losing:
        def sendto(self, *args: Any) -> None:
            if not lost[next(count)]:
                send(*args)

        close = caster._socket.close

    monkeypatch.setattr(caster, "_socket", Losing())
    arrived = fetch_cast(pair, body)
    assert arrived is not None
    assert torch.equal(arrived.payload[0], body)


def test_pieces_of_strangers_and_forged_ones_are_not_believed(pair: Pair, group: Group) -> None:
    """A stranger has no key; a relay has, but the stream brings the digest."""
    pair.posts["relay 0"]._seconds = 10
    body = torch.arange(3000).to(torch.uint8)
    forger = Caster(group, 400e6)
    for key in (forger.key, pair.posts[SERVER].caster.key):
        forger._seal = type(forger._seal)(key)
        forger.cast(1, torch.zeros(3000, dtype=torch.uint8))
    time.sleep(0.2)
    arrived = fetch_cast(pair, body)
    assert arrived is not None
    assert torch.equal(arrived.payload[0], body)
    forger.close()


@pytest.mark.parametrize(
    "asked",
    [b"", b"abc", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", 4000 * b"\1\0\0\0"],
    ids=["none", "odd", "negative", "beyond", "many"],
)
@pytest.mark.slow
def test_senseless_questions_for_pieces_harm_nobody(pair: Pair, group: Group, asked: bytes) -> None:
    pair.posts[SERVER].caster.cast(1, torch.zeros(3000, dtype=torch.uint8))
    payload = torch.tensor([[*asked]], dtype=torch.uint8)
    pair.posts["relay 0"].send(SERVER, Frame(LACKS, 5, payload, nothing(1), number=1))
    assert pair.posts[SERVER].control("relay 0", 0.2) is None
    with contextlib.suppress(EngineError):
        pair.posts["relay 0"].control(SERVER, 0.1)
    assert all(len(pieces.payload[0]) <= 3000 for pieces in pair.posts["relay 0"]._boxes[SERVER].values())


@pytest.mark.parametrize("address", ["10.0.0.1:4000", "239.1.1.1", "239.1.1.1:0", "239.1.1.1:70000", "name:1", ""])
def test_other_addresses_are_no_groups(address: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.multicast"):
        Group(address)
