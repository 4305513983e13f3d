"""Multicast over real sockets, on this machine."""

import secrets
import time
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
import torch
from lossy import GROUP, HERE, RATE, losing, possible

from hmtl.distributed.multicast.group import Caster, Listener, Multicast
from hmtl.distributed.multicast.protocol import SILENCE
from hmtl.errors import ConfigError, EngineError

pytestmark = pytest.mark.skipif(not possible(), reason="no multicast on the loopback interface here")
RUN = secrets.randbits(48)  # tests elsewhere on this machine may use the same group at the same time


def numbers(size: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


@pytest.fixture
def caster() -> Iterator[Caster]:
    found = Caster(GROUP, HERE, RUN, RATE)
    yield found
    found.close()


@pytest.fixture
def listeners() -> Iterator[list[Listener]]:
    found = [losing(Listener(GROUP, HERE, RUN, rank), loss) for rank, loss in enumerate((0.0, 0.01, 0.2))]
    yield found
    for listener in found:
        listener.close()


def test_what_is_cast_reaches_all_one_after_the_other(caster: Caster, listeners: list[Listener]) -> None:
    other = Listener(GROUP, HERE, RUN + 1, 0)
    bodies = [numbers(size, size) for size in (1, 400_000, 10_000)]
    casts = [caster.cast(body, range(3)) for body in bodies]
    for cast, body in zip(casts, bodies, strict=True):
        for rank, listener in enumerate(listeners):
            assert cast.reaches(rank)
            assert torch.equal(listener.take(cast.number), body)
    assert not caster.unreachable
    assert 0.02 < caster.overhead() / sum(map(len, bodies)) < 1, "headers, and combinations for who lost a fifth"
    assert listeners[2].overhead() > 0
    other.close()
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
    assert caster.unreachable == {9}
    caster.begin()
    assert not caster.unreachable


def test_a_receiver_is_lost_in_the_middle(caster: Caster, listeners: list[Listener]) -> None:
    hear, heard = listeners[1].receiver.hear, count()
    listeners[1].receiver.hear = lambda datagram: hear(datagram) if next(heard) < 50 else None  # type: ignore[method-assign]
    body, before = numbers(300_000, 2), time.monotonic()
    cast = caster.cast(body, range(3))
    assert [cast.reaches(rank) for rank in range(3)] == [True, False, True]
    assert time.monotonic() - before < SILENCE + 30
    assert all(torch.equal(listeners[rank].take(cast.number), body) for rank in (0, 2))


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
