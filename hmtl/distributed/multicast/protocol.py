"""A reliable multicast protocol over datagrams that may be lost, without clock or sockets.

The sender transmits all pieces of a body once, at a given rate, and then asks what is missing; each receiver reports
how many pieces of each generation it lacks. The sender replies with as many combinations of a generation as the worst
receiver lacks. Their coefficients are rows of a Cauchy matrix, any m of which repair any m lost pieces, so the same
combinations serve all receivers. The sender asks again until every receiver has everything or has been silent for too
long, or the time is up.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.distributed.multicast.datagrams import (
    DATAGRAM,
    LACK,
    PIECE,
    QUESTION,
    REPORT,
    ROOM,
    Cut,
    Datagram,
    combinations,
)
from hmtl.errors import CodingError
from hmtl.gf256 import inverses, matmul

LOWER = 42  # bytes that UDP, IP and Ethernet add to a datagram, for pacing
BURST = 0.02  # seconds' worth of datagrams that a delayed sender may send at once
WINDOW, LONGEST = 0.005, 0.05  # seconds to wait for reports before asking again; doubled each time, up to LONGEST
SILENCE = 1.0  # seconds without a report after which the sender gives up on a receiver
SPARE, TIMES = 2.0, 4.0  # a body may take SPARE seconds plus TIMES as long as without losses


class Transmission:
    """The sender's state for one body.

    Args:
        run, number: see `Datagram`.
        body: uint8 [size].
        receivers: ranks.
        bps: sending rate [bit/s], including what UDP, IP and Ethernet add.
        now: the time [s]; all methods take it from the same clock.

    Attributes:
        waiting: receivers that may still complete the body.
        reached: receivers that have completed it.
        nbytes: number of bytes sent so far.
    """

    def __init__(self, run: int, number: int, body: Tensor, receivers: Iterable[int], bps: float, now: float) -> None:
        self.run, self.number, self.bps = run, number, bps
        self.cut = cut = Cut(len(body))
        self._pieces = body.new_zeros(cut.pieces, cut.length)
        self._pieces.view(-1)[: cut.size] = body
        self.waiting, self.reached, self.nbytes = set(receivers), set[int](), 0
        self._sent, self._wanted = np.zeros((2, cut.generations), np.int64)  # number of combinations of each generation
        self._sent_before: list[NDArray[np.int64]] = []  # `_sent` at the time of each question, by its number
        self._answered: set[int] = set()
        self._heard = dict.fromkeys(self.waiting, now)  # time of each receiver's last report
        self._line: Iterator[bytes] | None = self._originals()
        self._free = self._until = now
        self._window = WINDOW
        self._end = now + SPARE + TIMES * 8 * cut.pieces * (DATAGRAM + LOWER) / bps

    def due(self, now: float) -> list[bytes]:
        """Return the datagrams to send now."""
        if now >= self._end:
            self.waiting.clear()
        out = []
        while self.waiting and self.wake() <= now:
            if self._line is None:
                self._window = WINDOW if self.waiting <= self._answered else min(2 * self._window, LONGEST)
                self.waiting -= {receiver for receiver in self.waiting if now - self._heard[receiver] > SILENCE}
                self._line = self._repairs()
                continue
            if (datagram := next(self._line, None)) is None:
                datagram = self._question(now)
            self.nbytes += len(datagram)
            self._free = max(self._free, now - BURST) + 8 * (len(datagram) + LOWER) / self.bps
            out.append(datagram)
        return out

    def wake(self) -> float:
        """Return the time at which the next datagram is due, unless a report arrives earlier."""
        return min(self._end, self._free if self._line or self.waiting <= self._answered else self._until)

    def hear(self, content: bytes, now: float) -> int | None:
        """Take a report, and return its receiver; None if it is not a report of this run."""
        try:
            report = Datagram.from_bytes(content)
        except CodingError:
            return None
        if (report.run, report.what) != (self.run, REPORT):
            return None
        receiver, question = int.from_bytes(report.content[:2], "little"), report.generation
        if report.number == self.number and receiver in self.waiting:
            lacks = np.frombuffer(report.content[2:], LACK)
            if len(lacks) == 0:
                self.waiting.discard(receiver)
                self.reached.add(receiver)
            of = lacks["generation"]
            self._wanted[of] = np.maximum(self._wanted[of], self._sent_before[question][of] + lacks["pieces"])
            self._heard[receiver] = now
            if question == len(self._sent_before) - 1:
                self._answered.add(receiver)
        return receiver

    def _originals(self) -> Iterator[bytes]:
        for generation in range(self.cut.generations):
            for index, piece in enumerate(self._pieces[self.cut.places(generation)].numpy()):
                yield self._datagram(PIECE, generation, index, piece.data)

    def _repairs(self) -> Iterator[bytes]:
        """Yield the requested combinations: in each generation new ones, until all have been sent."""
        for generation in np.flatnonzero(self._wanted > self._sent).tolist():
            pieces = self._pieces[self.cut.places(generation)]
            all_rows = combinations(len(pieces))
            rows = np.arange(self._sent[generation], self._wanted[generation]) % len(all_rows)
            self._sent[generation] = self._wanted[generation]
            for row, content in zip(rows.tolist(), matmul(all_rows[rows], pieces).numpy(), strict=True):
                yield self._datagram(PIECE, generation, len(pieces) + row, content.data)

    def _question(self, now: float) -> bytes:
        if not self._sent_before:
            self._heard = dict.fromkeys(self.waiting, now)
        self._sent_before.append(self._sent.copy())
        self._answered.clear()
        self._line, self._until = None, now + self._window
        return self._datagram(QUESTION, len(self._sent_before) - 1)

    def _datagram(self, what: int, generation: int, index: int = 0, content: memoryview | bytes = b"") -> bytes:
        return Datagram(what, self.run, self.number, self.cut.size, generation, index, content).to_bytes()


class Receiving:
    """A receiver's state for one body.

    Attributes:
        lacks: number of pieces or combinations that each generation still needs.
    """

    def __init__(self, size: int) -> None:
        self.cut = cut = Cut(size)
        self._pieces = np.zeros((cut.pieces, cut.length), np.uint8)  # zeros in place of missing ones
        self._has = np.zeros(cut.pieces, bool)
        self._combinations: list[dict[int, NDArray[np.uint8]]] = [{} for _ in range(cut.generations)]  # by row
        self.lacks = np.array([len(self._has[cut.places(generation)]) for generation in range(cut.generations)])

    def add(self, datagram: Datagram) -> None:
        """Take a piece or a combination; ignore it if it has arrived before or is not needed."""
        generation, index = datagram.generation, datagram.index
        places = self.cut.places(generation)
        has, rows = self._has[places], self._combinations[generation]
        if not self.lacks[generation] or (has[index] if index < len(has) else index in rows):
            return
        content = np.frombuffer(datagram.content, np.uint8)
        if index < len(has):
            self._pieces[places][index] = content
            has[index] = True
        else:
            rows[index] = content
        self.lacks[generation] -= 1

    def body(self) -> Tensor:
        """Return the body, uint8 [size], once nothing is missing."""
        pieces = torch.from_numpy(self._pieces)
        for generation, rows in enumerate(self._combinations):
            if not rows:
                continue
            places = self.cut.places(generation)
            lost = torch.from_numpy(~self._has[places])
            coefficients = combinations(len(lost))[[index - len(lost) for index in rows]]
            solutions = inverses([coefficients[:, lost]])
            assert solutions is not None, "a Cauchy matrix has no singular minor"
            rest = matmul(coefficients, pieces[places]).bitwise_xor_(torch.from_numpy(np.stack(list(rows.values()))))
            pieces[places][lost] = matmul(solutions[0], rest)
        return pieces.view(-1)[: self.cut.size]


class Receiver:
    """All bodies that arrive at one receiver.

    Args:
        run: see `Datagram`.
        rank: of the receiver.
    """

    def __init__(self, run: int, rank: int) -> None:
        self.run, self.rank = run, rank
        self._bodies: dict[int, Receiving] = {}  # by number; the newest one, and complete ones that were not taken
        self._newest = 0

    def hear(self, content: bytes) -> bytes | None:
        """Take a datagram; if it is a question, return the report that answers it."""
        try:
            datagram = Datagram.from_bytes(content)
        except CodingError:
            return None
        if datagram.run != self.run or datagram.what == REPORT:
            return None
        number = datagram.number
        if number > self._newest:  # the sender has finished all earlier bodies
            self._newest = number
            self._bodies = {n: body for n, body in self._bodies.items() if not body.lacks.any()}
            self._bodies[number] = Receiving(datagram.size)
        if (body := self._bodies.get(number)) is None:
            return None
        if datagram.what == QUESTION:
            return self._report(datagram, body.lacks)
        body.add(datagram)
        return None

    def take(self, number: int) -> Tensor | None:
        """Return a body if it is complete; forget it and all earlier ones."""
        body = self._bodies.get(number)
        self._newest = max(self._newest, number)
        self._bodies = {n: kept for n, kept in self._bodies.items() if n > number}
        return body.body() if body and not body.lacks.any() else None

    def _report(self, question: Datagram, lacks: NDArray[np.int64]) -> bytes:
        lacking = np.flatnonzero(lacks)[: (ROOM - 2) // LACK.itemsize]
        report = np.empty(len(lacking), LACK)
        report["generation"], report["pieces"] = lacking, lacks[lacking]
        content = self.rank.to_bytes(2, "little") + report.tobytes()
        return Datagram(REPORT, self.run, question.number, question.size, question.generation, 0, content).to_bytes()
