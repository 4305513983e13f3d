"""A reliable multicast protocol over datagrams that may be lost or false, without clock or sockets.

The sender transmits all pieces of a body once, at a given rate, and then asks what is missing; each receiver reports
how many pieces of each generation it lacks. The sender replies with as many combinations of a generation as the worst
receiver lacks. Their coefficients are rows of a Cauchy matrix, any m of which repair any m lost pieces, so the same
combinations serve all receivers. The sender asks again until every receiver has everything, has been silent for too
long or has asked for too much, or the time is up.

A receiver trusts only questions that prove to it who asks, and bodies whose digest these prove. Other datagrams, which
any receiver could have forged, cost at most the body that is under way: the receiver asks for a copy of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from itertools import chain

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray
from torch import Tensor

from hmtl.distributed.multicast.datagrams import (
    DATAGRAM,
    KEY,
    LACK,
    PIECE,
    PROOF,
    QUESTION,
    REPORT,
    ROOM,
    TAG,
    Cut,
    Datagram,
    LackReport,
    combinations,
    digest,
    prove,
)
from hmtl.gf256 import inverses, matmul

LOWER = 42  # bytes that UDP, IP and Ethernet add to a datagram, for pacing
BURST = 0.02  # seconds' worth of datagrams that a delayed sender may send at once
WINDOW, LONGEST = 0.005, 0.05  # seconds to wait for reports before asking again; doubled each time, up to LONGEST
SILENCE = 1.0  # seconds without a report after which the sender gives up on a receiver
SPARE, TIMES = 2.0, 4.0  # a body may take SPARE seconds plus TIMES as long as without losses
SHARE, FEW, TURNS = 0.5, 4, 12  # most a receiver gets repaired: SHARE of a body plus FEW pieces, in TURNS reports
ASKED = (ROOM - KEY) // PROOF.size  # receivers in one datagram of a question, at most
MOST = (DATAGRAM - REPORT.size - TAG) // LACK.itemsize  # generations in a report, at most
KEPT = 4  # complete bodies that wait to be taken hold at most KEPT times the bytes of the largest one


@dataclass
class Claims:
    """What one receiver has reported about a body."""

    heard: float  # time of its last report
    wanted: NDArray[np.int64]  # number of combinations of each generation that it needs
    question: int = -1  # the newest that it has answered
    asked: int = 0  # number of combinations that it has asked for
    turns: int = 0  # number of reports that asked for combinations


class Transmission:
    """The sender's state for one body.

    Args:
        group: the group's key.
        keys: of each receiver, by rank.
        number: of the body; no two bodies that are sent under the same key share it.
        body: uint8 [size].
        bps: sending rate [bit/s], including what UDP, IP and Ethernet add.
        now: the time [s]; all methods take it from the same clock.

    Attributes:
        waiting: receivers that may still complete the body.
        reached: receivers that have completed it.
        nbytes: number of bytes sent so far.
    """

    def __init__(
        self, group: AESGCM, keys: Mapping[int, bytes], number: int, body: Tensor, bps: float, now: float
    ) -> None:
        self.number, self.bps = number, bps
        self._group, self._keys = group, keys
        self.cut = cut = Cut(len(body))
        self._pieces = body.new_zeros(cut.pieces, cut.length)
        self._pieces.view(-1)[: cut.size] = body
        self._sizes = np.array([len(self._pieces[cut.places(n)]) for n in range(cut.generations)])
        self.waiting, self.reached, self.nbytes = set(keys), set[int](), 0
        self._sent = np.zeros(cut.generations, np.int64)  # number of combinations of each generation
        self._sent_before: list[NDArray[np.int64]] = []  # `_sent` at the time of each question, by its number
        self._answered: set[int] = set()  # the newest question
        self._claims = {receiver: Claims(now, np.zeros_like(self._sent)) for receiver in keys}
        self._digest = b""  # of the body, once all pieces have been sent
        self._line: Iterator[bytes] | None = chain(self._originals(), self._question())
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
                self.waiting -= {receiver for receiver in self.waiting if now - self._claims[receiver].heard > SILENCE}
                self._line = chain(self._repairs(), self._question())
                continue
            if (datagram := next(self._line, None)) is None:
                self._line, self._until = None, now + self._window
                if len(self._sent_before) == 1:
                    for claims in self._claims.values():
                        claims.heard = now
                continue
            self.nbytes += len(datagram)
            self._free = max(self._free, now - BURST) + 8 * (len(datagram) + LOWER) / self.bps
            out.append(datagram)
        return out

    def wake(self) -> float:
        """Return the time at which the next datagram is due, unless a report arrives earlier."""
        return min(self._end, self._free if self._line or self.waiting <= self._answered else self._until)

    def hear(self, content: bytes, now: float) -> None:
        """Take a report; ignore it if it is not about this body, or if the receiver has reported the same or more."""
        report = LackReport.from_bytes(content, self._keys)
        if report is None or report.number != self.number or report.receiver not in self.waiting:
            return
        receiver, claims = report.receiver, self._claims[report.receiver]
        if not claims.question < report.question < len(self._sent_before):
            return
        claims.question, claims.heard = report.question, now
        if report.question == len(self._sent_before) - 1:
            self._answered.add(receiver)
        if not report.gives_up and not len(report.lacks):
            self.reached.add(receiver)
        elif not report.gives_up and self._grant(claims, report.lacks):
            return
        self.waiting.discard(receiver)

    def _grant(self, claims: Claims, lacks: NDArray[np.void]) -> bool:
        """Return whether a receiver may have the combinations that it lacks, and remember that it wants them."""
        of, pieces = lacks["generation"].astype(np.int64), lacks["pieces"].astype(np.int64)
        if of[-1] >= self.cut.generations or (np.diff(of) <= 0).any():
            return False
        sent, before = self._sent_before[claims.question][of], claims.wanted[of]
        more = np.maximum(sent + pieces - np.maximum(before, sent), 0)  # none if it only repeats an earlier report
        claims.wanted[of] = wanted = np.maximum(before, sent + pieces)
        claims.asked += int(more.sum())
        claims.turns += bool(more.any())
        exist = 256 - self._sizes[of]
        return bool(
            (pieces > 0).all()
            and (wanted <= exist).all()
            and claims.asked <= SHARE * self.cut.pieces + FEW
            and claims.turns <= TURNS
        )

    def _originals(self) -> Iterator[bytes]:
        digests = []
        for generation in range(self.cut.generations):
            pieces = self._pieces[self.cut.places(generation)].numpy()
            for index, piece in enumerate(pieces):
                yield self._datagram(PIECE, generation, index, piece.data)
            digests.append(digest(pieces.data))
        self._digest = digest(b"".join(digests))

    def _repairs(self) -> Iterator[bytes]:
        """Yield the combinations that receivers want and that have not been sent."""
        wanted = np.max([self._claims[receiver].wanted for receiver in self.waiting], 0, initial=0)
        for generation in np.flatnonzero(wanted > self._sent).tolist():
            pieces = self._pieces[self.cut.places(generation)]
            rows = range(self._sent[generation], wanted[generation])
            self._sent[generation] = wanted[generation]
            found = matmul(combinations(len(pieces))[list(rows)], pieces).numpy()
            for row, content in zip(rows, found, strict=True):
                yield self._datagram(PIECE, generation, len(pieces) + row, content.data)

    def _question(self) -> Iterator[bytes]:
        """Ask all waiting receivers, in as many datagrams as their proofs need."""
        question, receivers = len(self._sent_before), sorted(self.waiting)
        self._sent_before.append(self._sent.copy())
        self._answered.clear()
        for part, first in enumerate(range(0, len(receivers), ASKED)):
            head = Datagram(QUESTION, self.number, self.cut.size, question, part, b"").head + self._digest
            asked = receivers[first : first + ASKED]
            proofs = b"".join(PROOF.pack(receiver, prove(self._keys[receiver], head)) for receiver in asked)
            yield self._datagram(QUESTION, question, part, self._digest + proofs)

    def _datagram(self, what: int, generation: int, index: int, content: memoryview | bytes) -> bytes:
        return Datagram(what, self.number, self.cut.size, generation, index, content).to_bytes(self._group)


class Receiving:
    """A receiver's state for one body.

    Attributes:
        lacks: number of pieces or combinations that each generation still needs.
    """

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.cut = cut = Cut(size)
        self._pieces = np.zeros((cut.pieces, cut.length), np.uint8)  # zeros in place of missing ones
        self._has = np.zeros(cut.pieces, bool)
        self._combinations: list[dict[int, NDArray[np.uint8]]] = [{} for _ in range(cut.generations)]  # by row
        self._digests = [b""] * cut.generations
        self.lacks = np.array([len(self._has[cut.places(generation)]) for generation in range(cut.generations)])

    def add(self, datagram: Datagram) -> None:
        """Take a piece or a combination; ignore it if it has arrived before, is not needed or does not fit the cut."""
        generation, index = datagram.generation, datagram.place
        if generation >= self.cut.generations or len(datagram.content) != self.cut.length:
            return
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
        if not self.lacks[generation]:
            self._complete(generation)

    def _complete(self, generation: int) -> None:
        """Solve for the missing pieces of a generation."""
        places, rows = self.cut.places(generation), self._combinations[generation]
        pieces = torch.from_numpy(self._pieces[places])
        if rows:
            lost = torch.from_numpy(~self._has[places])
            coefficients = combinations(len(lost))[[index - len(lost) for index in rows]]
            solutions = inverses([coefficients[:, lost]])
            assert solutions is not None, "a Cauchy matrix has no singular minor"
            rest = matmul(coefficients, pieces).bitwise_xor_(torch.from_numpy(np.stack(list(rows.values()))))
            pieces[lost] = matmul(solutions[0], rest)
            rows.clear()
        self._digests[generation] = digest(pieces.numpy().data)

    def body(self, expected: bytes) -> Tensor | None:
        """Return the body, uint8 [size], once nothing is missing; None if its digest is not the expected one."""
        if digest(b"".join(self._digests)) != expected:
            return None
        return torch.from_numpy(self._pieces).view(-1)[: self.cut.size]


class Receiver:
    """All bodies that arrive at one receiver.

    Args:
        group: the group's key.
        key: of this receiver.
        rank: of this receiver.
        largest: bytes of a body, at most; larger ones, and those for which there is no room, come as copies.
    """

    def __init__(self, group: AESGCM, key: bytes, rank: int, largest: int) -> None:
        self.rank, self.largest = rank, largest
        self._group, self._key = group, key
        self._arriving: Receiving | None = None
        self._complete: dict[int, Tensor] = {}  # by number, until they are taken
        self._answered = (0, -1)  # the newest question: its body and its number
        self._over = 0  # number of the newest body of which no more pieces are needed

    def hear(self, content: bytes) -> bytes | None:
        """Take a datagram; if it is a question, return the report that answers it."""
        datagram = Datagram.from_bytes(content, self._group)
        if datagram is None:
            return None
        if datagram.what == QUESTION:
            return self._answer(datagram)
        newest = self._arriving.number if self._arriving else self._over
        if datagram.number > newest:  # the sender has finished all earlier bodies
            self._begin(datagram)
        if body := self._body_of(datagram):
            body.add(datagram)
        return None

    def take(self, number: int) -> Tensor | None:
        """Return a body if it is complete; forget it and all earlier ones."""
        self._close(number)
        body = self._complete.get(number)
        self._complete = {n: kept for n, kept in self._complete.items() if n > number}
        return body

    def _answer(self, question: Datagram) -> bytes | None:
        """Return the report that answers a question; None if it does not prove who asks, or has been answered."""
        expected, proofs = bytes(question.content[:KEY]), question.content[KEY:]
        proof = dict(PROOF.iter_unpack(proofs)).get(self.rank, b"") if len(proofs) % PROOF.size == 0 else b""
        asked = question.number, question.generation
        if asked <= self._answered or not compare_digest(proof, prove(self._key, question.head + expected)):
            return None
        self._answered = asked
        lacks = self._lacks(question, expected)
        lacking = np.flatnonzero(0 if lacks is None else lacks)[:MOST]
        report = np.empty(len(lacking), LACK)
        if lacks is not None:
            report["generation"], report["pieces"] = lacking, lacks[lacking]
        return LackReport(self.rank, *asked, lacks is None, report).to_bytes(self._key)

    def _lacks(self, question: Datagram, expected: bytes) -> NDArray[np.int64] | None:
        """Return what a body lacks; None if it cannot be completed."""
        number = question.number
        if number in self._complete:
            return np.zeros(0, np.int64)
        if number > self._over and not self._body_of(question):
            self._begin(question)
        arriving = self._body_of(question)
        if arriving and not arriving.lacks.any():
            self._close(number)
            body = arriving.body(expected)
            if body is None:
                return None
            self._complete[number] = body
        return arriving.lacks if arriving else None

    def _begin(self, datagram: Datagram) -> None:
        """Receive a body in place of the one that is arriving, unless there is no room for it."""
        size, kept = datagram.size, sum(map(len, self._complete.values()))
        if size <= self.largest and kept + size <= KEPT * self.largest:
            self._arriving = Receiving(datagram.number, size)

    def _body_of(self, datagram: Datagram) -> Receiving | None:
        """Return the arriving body if the datagram is about it."""
        body = self._arriving
        return body if body and (body.number, body.cut.size) == (datagram.number, datagram.size) else None

    def _close(self, number: int) -> None:
        """Take no more pieces of a body and of all earlier ones."""
        self._over = max(self._over, number)
        if self._arriving and self._arriving.number <= number:
            self._arriving = None
