"""Bytes to many over datagrams that are lost, doubled, damaged, late and out of order; the clock is the test's own."""

import heapq
import itertools
from collections.abc import Callable
from random import Random

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hmtl.distributed.multicast.datagrams import DATAGRAM, GENERATION, PIECE, QUESTION, ROOM, Cut, Datagram
from hmtl.distributed.multicast.protocol import SILENCE, SPARE, TIMES, Receiver, Receiving, Transmission

RUN, BPS, DELAY = 0x1234_5678_9ABC_DEF0, 100e6, 1e-3
Fate = Callable[[bytes], list[tuple[float, bytes]]]
"""Of a datagram: what arrives, after how many seconds."""


def numbers(size: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


def play(sending: Transmission, receivers: list[Receiver], there: Fate, back: Fate, now: float = 0.0) -> float:
    """Until the sender is done; gives the time. A question that is asked ever again would hang here."""
    events: list[tuple[float, int, Receiver | None, bytes]] = []
    count = itertools.count()

    def send(to: Receiver | None, datagram: bytes, fate: Fate) -> None:
        for delay, arrived in fate(datagram):
            heapq.heappush(events, (now + delay, next(count), to, arrived))

    while sending.waiting:
        for datagram in sending.due(now):
            for receiver in receivers:
                send(receiver, datagram, there)
        if not sending.waiting:
            break
        now = max(now, min(sending.wake(), events[0][0] if events else np.inf))
        while events and events[0][0] <= now:
            _, _, to, datagram = heapq.heappop(events)
            if to is None:
                sending.hear(datagram, now)
            elif answer := to.hear(datagram):
                send(None, answer, back)
    return now


def lossy(rate: float, seed: int) -> Fate:
    rng = np.random.default_rng(seed)
    return lambda datagram: [(DELAY, datagram)] if rng.random() >= rate else []


def fates(draw: st.DrawFn) -> Fate:
    """A channel on which some things happen often, and the rest seldom or never; its dice are hypothesis' own seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lost, twice, damaged, foreign, late = (draw(st.sampled_from((0.0, 0.02, 0.3, 0.9))) for _ in range(5))

    def fate(datagram: bytes) -> list[tuple[float, bytes]]:
        if rng.random() < lost:
            return []
        arrives = [datagram] * (1 + (rng.random() < twice))
        if rng.random() < damaged:
            spoilt = bytearray(datagram)
            bit = int(rng.integers(8 * len(spoilt)))
            spoilt[bit // 8] ^= 1 << bit % 8
            arrives[0] = bytes(spoilt)[: len(spoilt) - int(rng.integers(2))]
        if rng.random() < foreign:
            other = Datagram.from_bytes(datagram)
            arrives.append(
                Datagram(
                    other.what, RUN + 1, *list(vars(other).values())[2:-1], rng.bytes(len(other.content))
                ).to_bytes()
            )
        return [(DELAY + (0.2 * rng.random() if rng.random() < late else 0.0), copy) for copy in arrives]

    return fate


@settings(max_examples=60)
@given(st.data(), st.integers(1, 150_000), st.integers(1, 3))
def test_whatever_happens_on_the_way_bodies_are_whole_or_handed_over(
    data: st.DataObject, size: int, receivers: int
) -> None:
    draw = data.draw
    there, back = st.composite(fates)(), st.composite(fates)()
    at, ends = [Receiver(RUN, 10 + n) for n in range(receivers)], 0.0
    for number in (1, 2):
        sending = Transmission(RUN, number, numbers(size, number), range(10, 10 + receivers), 1e6, ends)
        start, ends = ends, play(sending, at, draw(there), draw(back), ends)
        assert ends - start <= 1e-9 + SPARE + TIMES * 8 * Cut(size).pieces * (DATAGRAM + 42) / 1e6
        for receiver in at:
            if receiver.rank in sending.reached:
                assert torch.equal(receiver.take(number), numbers(size, number))
            else:  # its copy goes by TCP
                found = receiver.take(number)
                assert found is None or torch.equal(found, numbers(size, number))
            assert receiver.take(number) is None, "it is forgotten"


def overhead(loss: float, size: int, frames: int) -> float:
    """Bytes sent for each byte of bodies, to five receivers."""
    at, sent = [Receiver(RUN, n) for n in range(5)], 0
    for number in range(1, frames + 1):
        sending = Transmission(RUN, number, numbers(size, number), range(5), BPS, 0.0)
        play(sending, at, lossy(loss, number), lossy(0.0, 0))
        assert sending.reached == set(range(5))
        assert all(torch.equal(receiver.take(number), numbers(size, number)) for receiver in at)
        sent += sending.nbytes
    return sent / (frames * size)


def test_one_per_cent_of_loss_costs_less_than_eight_per_cent() -> None:
    """Five receivers with losses of their own: what each of them lost, sent again, would be 5 %."""
    without = overhead(0.0, 500_000, 1)
    assert without < 1 + 33 / (DATAGRAM - 33)
    assert overhead(0.01, 500_000, 20) < min(1.08, 1.035 * without)


@given(st.integers(1, 3 * GENERATION * ROOM))
def test_a_body_is_cut_into_even_pieces_and_these_into_even_generations(size: int) -> None:
    cut = Cut(size)
    assert cut.length <= ROOM
    assert size <= cut.pieces * cut.length < size + cut.pieces
    places = [list(range(cut.pieces))[cut.places(generation)] for generation in range(cut.generations)]
    assert [place for of in places for place in of] == list(range(cut.pieces))
    sizes = [len(of) for of in places]
    assert max(sizes) <= GENERATION
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=30)
@given(st.integers(1, 100), st.randoms(use_true_random=False))
def test_any_pieces_and_combinations_will_do_as_many_as_there_are_pieces(pieces: int, random: Random) -> None:
    """All 256 of a generation are got from the sender, by reports that ask for them."""
    body = numbers(pieces * ROOM)
    sending, every = Transmission(RUN, 1, body, [0], 1e15, 0.0), []
    for now in np.arange(300) * 1e-3:
        datagrams = [Datagram.from_bytes(datagram) for datagram in sending.due(now)]
        every += [datagram for datagram in datagrams if datagram.what == PIECE]
        if len(every) >= 256:
            break
        empty = Receiver(RUN, 0)
        for datagram in datagrams:
            if datagram.what == QUESTION:
                sending.hear(empty.hear(datagram.to_bytes()), now)
    every = every[:256]
    assert sorted(datagram.index for datagram in every) == list(range(256))
    random.shuffle(every)
    receiving = Receiving(len(body))
    for n, datagram in enumerate(every[:pieces]):
        assert receiving.lacks.sum() == pieces - n
        receiving.add(datagram)
        receiving.add(datagram)  # counts once
    for datagram in every[pieces:]:
        receiving.add(datagram)
    assert not receiving.lacks.any()
    assert torch.equal(receiving.body(), body)


def sent(sending: Transmission, now: float) -> list[tuple[int, int, int]]:
    datagrams = map(Datagram.from_bytes, sending.due(now))
    return [(datagram.what, datagram.generation, datagram.index) for datagram in datagrams]


def questions(sending: Transmission, receivers: list[Receiver], lost: list[set[int]]) -> list[bytes]:
    """Send everything that is due, of which each receiver loses pieces by their indices; gives answers."""
    answers = []
    for datagram in sending.due(1.0):
        for receiver, without in zip(receivers, lost, strict=True):
            if (read := Datagram.from_bytes(datagram)).what == QUESTION or read.index not in without:
                answers += [answer] if (answer := receiver.hear(datagram)) else []
    return answers


def test_as_many_combinations_as_the_worst_lacks_repair_all_and_reports_that_come_again_ask_for_no_more() -> None:
    body = numbers(20 * ROOM)
    sending, receivers = Transmission(RUN, 1, body, [0, 1, 2], 1e12, 0.0), [Receiver(RUN, n) for n in range(3)]
    first = questions(sending, receivers, [{1, 2}, {3, 4, 5}, {0}])
    for answer in [*first, *first]:
        sending.hear(answer, 1.0)
    repairs = sending.due(1.0)
    assert [Datagram.from_bytes(d).index for d in repairs[:-1]] == [20, 21, 22]
    for answer in first:  # once more, late
        sending.hear(answer, 1.0)
    for datagram in repairs:
        for receiver in receivers:
            if answer := receiver.hear(datagram):
                sending.hear(answer, 1.0)
    assert not sending.waiting
    assert sending.reached == {0, 1, 2}
    assert all(torch.equal(receiver.take(1), body) for receiver in receivers)


def test_datagrams_keep_to_the_rate() -> None:
    sending, now, bits = Transmission(RUN, 1, numbers(100 * ROOM), [0], BPS, 0.0), 0.0, 0
    while sending.wake() <= now + 1e-3:
        now = max(now + 1e-4, sending.wake())
        datagrams = sending.due(now)
        assert all(len(datagram) <= 1400 for datagram in datagrams)
        bits += sum(8 * (len(datagram) + 42) for datagram in datagrams)
        assert bits <= BPS * (now + 1e-3), "what lower layers add included"
    assert bits > 800 * ROOM


def test_who_stays_silent_is_given_up_and_keeps_nobody_from_the_rest() -> None:
    sending, at = Transmission(RUN, 1, numbers(50_000), [0, 1], BPS, 0.0), [Receiver(RUN, 0)]
    now = play(sending, at, lossy(0.05, 1), lossy(0.0, 1))
    assert sending.reached == {0}
    assert SILENCE < now < SILENCE + 0.2
    alone, times = Transmission(RUN, 2, numbers(30), [1], 1e12, 0.0), [1.0]
    for _ in range(6):
        alone.due(times[-1])
        times.append(alone.wake())
    np.testing.assert_allclose(np.diff(times), [0.005, 0.01, 0.02, 0.04, 0.05, 0.05], err_msg="questions get rarer")


def test_datagrams_that_are_damaged_or_of_others_are_ignored() -> None:
    receiver, body, good = Receiver(RUN, 0), numbers(30), Datagram(PIECE, RUN, 4, 30, 0, 0, bytes(30))
    receiver.hear(Datagram(PIECE, RUN, 4, 30, 0, 0, body.numpy().data).to_bytes())
    changed = [Datagram(**{**vars(good), name: value}) for name, value in (("run", 7), ("number", 3), ("index", 0))]
    foreign = b"a word of somebody else's, who uses the same group and port"
    for datagram in (good.to_bytes()[:-1], b"", foreign, *(datagram.to_bytes() for datagram in changed)):
        assert receiver.hear(datagram) is None
        assert Transmission(RUN, 1, body, [0], BPS, 0.0).hear(datagram, 0.0) is None
    assert torch.equal(receiver.take(4), body)
