"""Multicast over real sockets, on this machine."""

import contextlib
import time
import unittest.mock
from collections.abc import Iterator
from itertools import count
from threading import Event, Thread

import numpy as np
import pytest
import torch
from lossy import GROUP, HERE, RATE, losing, possible

from hmtl.distributed.multicast.group import Caster, Listener, Multicast
from hmtl.distributed.multicast.protocol import SILENCE, Transmission
from hmtl.errors import ConfigError, EngineError

pytestmark = pytest.mark.skipif(not possible(), reason="no multicast on the loopback interface here")


def numbers(size: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


@pytest.fixture
def caster() -> Iterator[Caster]:
    found = Caster(GROUP, HERE, RATE)
    yield found
    found.close()


@pytest.fixture
def listeners(caster: Caster) -> Iterator[list[Listener]]:
    found = [losing(Listener(GROUP, caster.invitation(rank)), loss) for rank, loss in enumerate((0.0, 0.01, 0.2))]
    yield found
    for listener in found:
        listener.close()


def test_what_is_cast_reaches_all_one_after_the_other(caster: Caster, listeners: list[Listener]) -> None:
    another = Caster(GROUP, HERE, RATE)
    other = Listener(GROUP, another.invitation(0))
    bodies = [numbers(size, size) for size in (1, 80_000, 10_000)]
    casts = [caster.cast(body, range(3)) for body in bodies]
    for cast, body in zip(casts, bodies, strict=True):
        for rank, listener in enumerate(listeners):
            assert cast.reaches(rank)
            assert torch.equal(listener.take(cast.number), body)
    assert not caster.unreachable()
    assert 0.02 < caster.overhead() / sum(map(len, bodies)) < 1, "headers, and combinations for who lost a fifth"
    assert listeners[2].overhead() > 0
    other.close()
    another.close()
    assert other.take(1) is None, "the same group, but another run"
    assert listeners[0].take(3) is None, "it is forgotten"


def test_who_is_not_reached_in_time_is_sent_a_copy_and_for_this_round_at_once(
    caster: Caster, listeners: list[Listener]
) -> None:
    body = numbers(5000, 1)
    first = caster.cast(body, [0, 9])
    assert [first.reaches(0), first.reaches(9)] == [True, False]
    assert caster.overhead() > len(body), "which is counted"
    before = time.monotonic()
    assert not caster.cast(body, [9]).reaches(9)
    assert time.monotonic() - before < SILENCE / 2
    assert caster.unreachable() == {9}
    caster.begin()
    assert not caster.unreachable()


def test_a_receiver_is_lost_in_the_middle(caster: Caster, listeners: list[Listener]) -> None:
    hear, heard = listeners[1].receiver.hear, count()
    listeners[1].receiver.hear = lambda datagram: hear(datagram) if next(heard) < 20 else None  # type: ignore[method-assign]
    body, before = numbers(80_000, 2), time.monotonic()
    cast = caster.cast(body, range(3))
    assert [cast.reaches(rank) for rank in range(3)] == [True, False, True]
    assert time.monotonic() - before < SILENCE + 30
    assert all(torch.equal(listeners[rank].take(cast.number), body) for rank in (0, 2))


@pytest.fixture
def strangers(caster: Caster, listeners: list[Listener]) -> Iterator[list[int]]:
    """Send what is seen in the group again, and noise, to the group and to where reports go; counts the datagrams."""
    ear, mouth = GROUP.socket(HERE, receive=True), GROUP.socket(HERE, receive=False)
    ear.settimeout(0.05)
    done, sent, rng = Event(), [0], np.random.default_rng(1)

    def disturb() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                seen = ear.recv(2000)
                for datagram in (seen, rng.bytes(1400), seen[:12] + rng.bytes(100)):
                    for to in ((GROUP.group, GROUP.port), listeners[0]._server):
                        mouth.sendto(datagram, to)
                        sent[0] += 1

    thread = Thread(target=disturb)
    thread.start()
    yield sent
    done.set()
    thread.join()
    ear.close()
    mouth.close()


def test_strangers_are_ignored(
    caster: Caster, listeners: list[Listener], strangers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("SILENCE", "SPARE"):  # the threads of all ends and the strangers share the machine
        monkeypatch.setattr(f"hmtl.distributed.multicast.protocol.{limit}", 60.0)
    for seed in range(5):
        caster.begin()
        body = numbers(20_000, seed)
        cast = caster.cast(body, range(3))
        assert all(cast.reaches(rank) for rank in range(3))
        assert all(torch.equal(listener.take(cast.number), body) for listener in listeners)
    assert strangers[0] > 20


def test_an_error_in_a_thread_leaves_neither_end_deaf(
    caster: Caster, listeners: list[Listener], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Transmission, "due", None)
        assert not caster.cast(numbers(10, 1), [0, 1]).reaches(1)
    with monkeypatch.context() as patch:
        patch.setattr(listeners[1].receiver, "hear", None)
        cast = caster.cast(numbers(10, 2), [0, 1])
        assert [cast.reaches(0), cast.reaches(1)] == [True, False]
    caster.begin()
    cast = caster.cast(numbers(10, 3), [0, 1])
    assert cast.reaches(1)
    assert torch.equal(listeners[1].take(cast.number), numbers(10, 3))
    assert len(caplog.records) == 2, "one word for each kind of error"


def test_a_receiver_that_stays_out_of_reach_is_tried_less_and_less_often(caster: Caster) -> None:
    tried = []
    for round in range(1, 13):
        caster.begin()
        if 9 not in caster.unreachable():
            tried.append(round)
            caster._bps = 1e12
            with unittest.mock.patch("hmtl.distributed.multicast.protocol.SILENCE", 0.01):
                assert not caster.cast(numbers(10, round), [9]).reaches(9)
        else:
            assert not caster.cast(numbers(10, round), [9]).reaches(9)
    assert tried == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"group": "10.0.0.1"}, "not a multicast address"),
        ({"group": "all"}, "not a multicast address"),
        ({"port": 0}, "from 1 to 65535"),
        ({"rate_bps": 0.0}, "not positive"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Multicast(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize("receive", [True, False])
def test_an_interface_that_is_not_here(receive: bool) -> None:
    with pytest.raises(EngineError, match=r"engine\.multicast\.interface"):
        Multicast(interface="192.0.2.77").socket(HERE, receive)
