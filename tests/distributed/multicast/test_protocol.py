"""Bytes to many over datagrams that are lost, doubled, damaged, late and out of order; the clock is the test's own."""

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from random import Random
from unittest.mock import patch

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from hmtl.distributed.multicast import protocol
from hmtl.distributed.multicast.datagrams import (
    DATAGRAM,
    GENERATION,
    LACK,
    PIECE,
    QUESTION,
    ROOM,
    Cut,
    Datagram,
    LackReport,
)
from hmtl.distributed.multicast.protocol import (
    FEW,
    KEPT,
    SHARE,
    SILENCE,
    SPARE,
    TIMES,
    Receiver,
    Receiving,
    Transmission,
)

KEY, OTHER, BPS, DELAY = AESGCM(bytes(32)), AESGCM(bytes(31) + b"1"), 100e6, 1e-3
KEYS = [bytes([rank]) * 32 for rank in range(256)]
LARGEST = 1_000_000
Fate = Callable[[bytes], list[tuple[float, bytes]]]
"""Of a datagram: what arrives, after how many seconds."""


def numbers(size: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


def transmission(number: int, body: Tensor, receivers: Iterable[int], bps: float, now: float) -> Transmission:
    return Transmission(KEY, {rank: KEYS[rank] for rank in receivers}, number, body, bps, now)


def receiver_of(rank: int) -> Receiver:
    return Receiver(KEY, KEYS[rank], rank, LARGEST)


def read(datagram: bytes) -> Datagram:
    found = Datagram.from_bytes(datagram, KEY)
    assert found
    return found


def play(sending: Transmission, receivers: Sequence[Receiver], there: Fate, back: Fate, now: float = 0.0) -> float:
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
            arrives.append(datagram[:12] + rng.bytes(len(datagram) - 12))
        return [(DELAY + (0.2 * rng.random() if rng.random() < late else 0.0), copy) for copy in arrives]

    return fate


@given(st.data(), st.integers(1, 150_000), st.integers(1, 3))
def test_whatever_happens_on_the_way_bodies_are_whole_or_handed_over(
    data: st.DataObject, size: int, receivers: int
) -> None:
    draw = data.draw
    there, back = st.composite(fates)(), st.composite(fates)()
    at, ends = [receiver_of(10 + n) for n in range(receivers)], 0.0
    for number in (1, 2):
        sending = transmission(number, numbers(size, number), range(10, 10 + receivers), 1e6, ends)
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
    at, sent = [receiver_of(n) for n in range(5)], 0
    for number in range(1, frames + 1):
        sending = transmission(number, numbers(size, number), range(5), BPS, 0.0)
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


@given(st.integers(1, 100), st.randoms(use_true_random=False))
def test_any_pieces_and_combinations_will_do_as_many_as_there_are_pieces(pieces: int, random: Random) -> None:
    """All 256 of a generation are got from the sender, by reports that ask for them."""
    body = numbers(pieces * ROOM)
    sending, every = transmission(1, body, [0], 1e15, 0.0), []
    with patch.multiple(protocol, SHARE=np.inf, TURNS=np.inf):
        for question, now in enumerate(np.arange(1, 257) * 1e-3):
            datagrams = map(read, sending.due(now))
            every += [datagram for datagram in datagrams if datagram.what == PIECE]
            lacks = np.array([(0, min(pieces, 256 - len(every)))], LACK)
            sending.hear(LackReport(0, 1, question, False, lacks).to_bytes(KEYS[0]), now)
    assert sorted(datagram.place for datagram in every) == list(range(256))
    random.shuffle(every)
    receiving = Receiving(1, len(body))
    for n, datagram in enumerate(every[:pieces]):
        assert receiving.lacks.sum() == pieces - n
        receiving.add(datagram)
        receiving.add(datagram)  # counts once
    for datagram in every[pieces:]:
        receiving.add(datagram)
    assert not receiving.lacks.any()


def questions(sending: Transmission, receivers: list[Receiver], lost: list[set[int]]) -> list[bytes]:
    """Send everything that is due, of which each receiver loses pieces by their indices; gives answers."""
    answers = []
    for datagram in sending.due(1.0):
        for receiver, without in zip(receivers, lost, strict=True):
            if read(datagram).what == QUESTION or read(datagram).place not in without:
                answers += [answer] if (answer := receiver.hear(datagram)) else []
    return answers


def test_as_many_combinations_as_the_worst_lacks_repair_all_and_reports_that_come_again_ask_for_no_more() -> None:
    body = numbers(20 * ROOM)
    sending, receivers = transmission(1, body, [0, 1, 2], 1e12, 0.0), [receiver_of(n) for n in range(3)]
    first = questions(sending, receivers, [{1, 2}, {3, 4, 5}, {0}])
    for answer in [*first, *first]:
        sending.hear(answer, 1.0)
    repairs = sending.due(1.0)
    assert [read(d).place for d in repairs[:-1]] == [20, 21, 22]
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
    sending, now, bits = transmission(1, numbers(100 * ROOM), [0], BPS, 0.0), 0.0, 0
    while sending.wake() <= now + 1e-3:
        now = max(now + 1e-4, sending.wake())
        datagrams = sending.due(now)
        assert all(len(datagram) <= 1400 for datagram in datagrams)
        bits += sum(8 * (len(datagram) + 42) for datagram in datagrams)
        assert bits <= BPS * (now + 1e-3), "what lower layers add included"
    assert bits > 800 * ROOM


def test_who_stays_silent_is_given_up_and_keeps_nobody_from_the_rest() -> None:
    sending, at = transmission(1, numbers(50_000), [0, 1], BPS, 0.0), [receiver_of(0)]
    now = play(sending, at, lossy(0.05, 1), lossy(0.0, 1))
    assert sending.reached == {0}
    assert SILENCE < now < SILENCE + 0.2
    alone, times = transmission(2, numbers(30), [1], 1e12, 0.0), [1.0]
    for _ in range(6):
        alone.due(times[-1])
        times.append(alone.wake())
    np.testing.assert_allclose(np.diff(times), [0.005, 0.01, 0.02, 0.04, 0.05, 0.05], err_msg="questions get rarer")


class Stranger:
    """Sends, after each datagram that it sees, random ones, some from before, and some that it forges."""

    def __init__(self, rng: np.random.Generator, key: AESGCM, report_key: bytes) -> None:
        self.rng, self.key, self.report_key = rng, key, report_key
        self.seen: list[bytes] = []

    def choose(self, *values: int) -> int:
        return int(self.rng.choice(values))

    def forged(self) -> bytes:
        """Change one thing in the last datagram or report."""
        if (found := Datagram.from_bytes(self.seen[-1], KEY)) is None:
            return self.report(int(self.seen[-1][2]), int(self.seen[-1][6]))
        kept = len(found.content)
        changed = {
            "what": self.choose(0, 1, 2),
            "number": self.choose(0, found.number - 1, found.number + 1, 2**32 - 1),
            "size": self.choose(0, 1, LARGEST, LARGEST + 1, 2**32 - 1),
            "generation": self.choose(0, found.generation + 1, 65535),
            "place": self.choose(*range(256)),
            "content": self.rng.bytes(self.choose(kept, kept, 0, 1, 32, 33, 1372)),
            "": self.report(found.number, found.generation),
        }
        name = list(changed)[self.choose(*range(len(changed)))]
        return found._replace(**{name: changed[name]}).to_bytes(self.key) if name else changed[name]  # type: ignore

    def report(self, number: int, question: int) -> bytes:
        """Report in the name of somebody that the body is there, or what it lacks."""
        lacks = np.array([(n, 255) for n in range(self.choose(0, 0, 1, 3))], LACK)
        question = self.choose(question, question, question + 1, 65535)
        return LackReport(self.choose(*range(4)), number, question, self.choose(0, 1) == 1, lacks).to_bytes(
            self.report_key
        )

    def between(self, fate: Fate) -> Fate:
        def spoilt(datagram: bytes) -> list[tuple[float, bytes]]:
            self.seen.append(datagram)
            again = self.seen[int(self.rng.integers(len(self.seen)))]
            more = [again, self.rng.bytes(self.choose(0, 16, 19, 25, 28, 100, 1400)), self.forged()]
            false = [(DELAY * (1 + self.rng.random()), other) for other in more if self.rng.random() < 0.5]
            return fate(datagram) + false

        return spoilt


def game(
    seed: int, loss: float, sizes: list[int], disturb: Callable[[Fate], Fate]
) -> tuple[list[Receiver], list[object]]:
    """Three receivers with losses of their own get bodies; gives what happened."""
    at, now, story = [receiver_of(n) for n in range(3)], 0.0, list[object]()
    for number, size in enumerate(sizes, 1):
        sending = transmission(number, numbers(size, number), range(3), BPS, now)
        now = play(sending, at, disturb(lossy(loss, seed)), disturb(lossy(0.0, seed)), now)
        for receiver in at:
            body = receiver.take(number)
            assert (receiver.rank in sending.reached) <= (body is not None)
            assert body is None or torch.equal(body, numbers(size, number))
        story += [sending.reached, sending.nbytes, now]
    return at, story


@given(st.integers(0, 2**32), st.lists(st.integers(1, 400_000), min_size=1, max_size=3))
def test_strangers_change_nothing(seed: int, sizes: list[int]) -> None:
    stranger = Stranger(np.random.default_rng(seed), OTHER, KEYS[200])
    assert game(seed, 0.0, sizes, stranger.between)[1] == game(seed, 0.0, sizes, lambda fate: fate)[1]


@given(st.integers(0, 2**32), st.lists(st.integers(1, 400_000), min_size=1, max_size=3))
def test_a_receiver_that_forges_costs_copies_but_changes_no_body_and_leaves_nobody_deaf(
    seed: int, sizes: list[int]
) -> None:
    """It has the group's key, and reports under the names of others with its own."""
    forger = Stranger(np.random.default_rng(seed), KEY, KEYS[200])
    at, _ = game(seed, 0.1, sizes, forger.between)
    body, now = numbers(5000), 1e3
    sending = transmission(len(sizes) + 1, body, range(3), BPS, now)
    assert play(sending, at, lossy(0.0, 0), lossy(0.0, 0), now) < now + 0.02
    assert sending.reached == {0, 1, 2}
    assert all(torch.equal(receiver.take(len(sizes) + 1), body) for receiver in at)


class Liar(Receiver):
    """Answers questions with reports that are drawn.

    Args:
        lies: by how much numbers of body and question are wrong, and for each generation and further ones, which share
            is said to be missing; None: nothing.
    """

    def __init__(self, lies: list[tuple[int, int, bool, list[float | None]]]) -> None:
        super().__init__(KEY, KEYS[9], 9, LARGEST)
        self.lies = itertools.cycle(lies)

    def hear(self, content: bytes) -> bytes | None:
        if (asked := read(content)).what != QUESTION:
            return None
        number, question, gives_up, shares = next(self.lies)
        lacks = [(n, min(255, int(np.ceil(100 * share)))) for n, share in enumerate(shares) if share is not None]
        place = max(0, asked.generation + question)
        return LackReport(9, asked.number + number, place, gives_up, np.array(lacks, LACK)).to_bytes(KEYS[9])


LIES = st.tuples(
    st.sampled_from((0, 0, 0, 0, 1)),
    st.sampled_from((0, 0, 0, 0, -1, 1, 60000)),
    st.sampled_from((False, False, False, True)),
    st.lists(st.sampled_from((None, 0.0, 0.01, 0.3, 0.8, 1.0, 2.0)), max_size=5),
)


@given(st.lists(LIES, min_size=1, max_size=3), st.integers(1, 400_000))
@example([(0, 0, False, [0.8] * 3)], 300 * ROOM)
@example([(0, 1, False, [0.01])], 300 * ROOM)
@example([(0, 0, False, [0.0])], 300 * ROOM)
@example([(0, 0, False, [0.01])], 300 * ROOM)
def test_false_reports_cost_their_sender_a_copy_and_others_at_most_half_a_body(
    lies: list[tuple[int, int, bool, list[float | None]]], size: int
) -> None:
    costs, pieces = [], Cut(size).pieces
    for others in ([], [Liar(lies)]):
        at = [receiver_of(n) for n in range(3)]
        sending = transmission(1, numbers(size), [receiver.rank for receiver in [*at, *others]], BPS, 0.0)
        ends = play(sending, [*at, *others], lossy(0.01, 1), lossy(0.0, 0))
        assert sending.reached >= {0, 1, 2}
        assert all(torch.equal(receiver.take(1), numbers(size)) for receiver in at)
        costs.append(sending.nbytes)
    assert ends < SILENCE + 0.5
    assert len(sending._sent_before) < 40, "questions"
    questions = 150 * 300 * ends  # bytes, for who does not answer
    assert costs[1] - costs[0] <= DATAGRAM * (SHARE * pieces + FEW + pieces / 50 + 1) + questions


def test_who_loses_a_fifth_far_away_is_repaired() -> None:
    """The same report comes several times, since the sender asks again before the first one has arrived."""
    sending, at = transmission(1, numbers(300 * ROOM), [0], BPS, 0.0), [receiver_of(0)]
    lose = lossy(0.2, 1)
    play(sending, at, lambda datagram: [(0.08, got) for _, got in lose(datagram)], lambda answer: [(0.08, answer)])
    assert sending.reached == {0}


def test_a_question_is_answered_once_and_only_to_who_proves_to_ask() -> None:
    sending, receiver = transmission(1, numbers(10), [0], BPS, 0.0), receiver_of(0)
    piece, question = sending.due(1.0)
    receiver.hear(piece)
    for forged in (read(question)._replace(generation=1), read(question)._replace(content=bytes(50))):
        assert receiver.hear(forged.to_bytes(KEY)) is None
    assert receiver.hear(question)
    assert receiver.hear(question) is None


def test_reports_that_are_sent_again_keep_no_dead_receiver_waiting() -> None:
    sending, receiver = transmission(1, numbers(10 * ROOM), [0], BPS, 0.99), receiver_of(0)
    *pieces, question = sending.due(1.0)
    for piece in pieces[2:]:
        receiver.hear(piece)
    report, now = receiver.hear(question), 1.0
    assert report
    while sending.waiting:
        now += 1e-3
        sending.due(now)
        sending.hear(report, now)
    assert now < 1.1 + SILENCE
    assert not sending.reached


def test_a_receiver_gives_memory_only_to_bodies_that_it_expects() -> None:
    receiver = receiver_of(0)
    piece = Datagram(PIECE, 1, LARGEST + 1, 0, 0, bytes(ROOM))
    receiver.hear(piece.to_bytes(KEY))
    assert receiver._arriving is None
    number = 0
    while number < 20:
        number += 1
        sending = transmission(number, numbers(LARGEST, number), [0], BPS, 0.0)
        play(sending, [receiver], lossy(0.0, 0), lossy(0.0, 0))
        if not sending.reached:
            break
    assert number == KEPT + 1, "nobody takes them, so the next one comes as a copy"
    assert torch.equal(receiver.take(2), numbers(LARGEST, 2))
    sending = transmission(number + 1, numbers(LARGEST), [0], BPS, 0.0)
    play(sending, [receiver], lossy(0.0, 0), lossy(0.0, 0))
    assert sending.reached == {0}


def test_no_two_datagrams_under_a_key_share_a_nonce() -> None:
    """Many receivers with losses make the sender ask and repair often, and one asks for one generation only."""
    at = [*(receiver_of(n) for n in range(10, 100)), Liar([(0, 0, False, [0.9])])]
    sending, heads = transmission(1, numbers(700 * ROOM), [receiver.rank for receiver in at], BPS, 0.0), list[bytes]()
    due = sending.due

    def recorded(now: float) -> list[bytes]:
        datagrams = due(now)
        heads.extend(datagram[:12] for datagram in datagrams)
        return datagrams

    sending.due = recorded  # type: ignore[method-assign]
    play(sending, at, lossy(0.1, 1), lossy(0.3, 2))
    assert len(heads) > 800
    assert len(set(heads)) == len(heads)
