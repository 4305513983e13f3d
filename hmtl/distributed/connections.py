"""Frames between processes, point to point over torch.distributed (gloo), on networks that are trusted: gloo neither
encrypts, nor makes sure who speaks.

A wait that gloo gives up breaks all connections of the process, and does not say for whom it waited. So nobody waits in
gloo but threads, two for each peer, and these as long as the peer lives; deadlines are kept where frames are taken from
the threads.
"""

import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from queue import Empty, SimpleQueue
from threading import Thread

import torch
import torch.distributed as dist
from torch import Tensor

from hmtl.distributed.frames import BYE, HEADER, KINDS, Frame, Header
from hmtl.distributed.multicast.datagrams import ROOM
from hmtl.distributed.multicast.group import Cast, Caster, Listener
from hmtl.errors import CodingError


class Peer:
    """The other end of a connection: one thread brings bytes to it, one puts what comes from it into a queue."""

    def __init__(self, rank: int, listener: Listener | None = None) -> None:
        self.rank, self.listener = rank, listener
        self.inbox: SimpleQueue[tuple[Header, Tensor] | str] = SimpleQueue()  # words: why no more will come
        self.outbox: SimpleQueue[tuple[Header, Tensor, Cast | None] | None] = SimpleQueue()
        self.threads = [Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self.threads:
            thread.start()

    def _send(self) -> None:
        while parts := self.outbox.get():
            header, body, cast = parts
            if cast and cast.reaches(self.rank):  # only now, so that frames keep their order
                header, body = replace(header, apart=True), body[:0]
            try:
                for part in (torch.frombuffer(bytearray(header.to_bytes()), dtype=torch.uint8), body):
                    if len(part):
                        dist.send(part, dst=self.rank)
                del parts, body, part, cast  # not kept until there is something else to say: they may be large
            except RuntimeError:
                return  # whoever waits for a word of this peer will notice

    def _receive(self) -> None:
        try:
            while True:
                content = torch.empty(HEADER, dtype=torch.uint8)
                dist.recv(content, src=self.rank)
                header = Header.from_bytes(content.numpy().tobytes())
                if KINDS[header.kind] == BYE:
                    raise CodingError("it has left")
                self.inbox.put((header, self._body(header)))
        except CodingError as error:
            self.inbox.put(str(error))
        except RuntimeError:
            self.inbox.put("it does not live any more")

    def _body(self, header: Header) -> Tensor:
        if header.apart and self.listener:
            return self.listener.take(header.cast)
        body = torch.empty(header.body, dtype=torch.uint8)
        if len(body):
            dist.recv(body, src=self.rank)
        if header.cast and self.listener:
            self.listener.forget(header.cast)
        return body


class Wires:
    """What a process says to others, and hears from them.

    Each says its frames of a kind in turns; a turn ends with a frame that is `last`. Frames of past rounds come too
    late, and are not heard, nor is a turn that was missed ever taken for a later one of its kind. A frame that arrived
    damaged is never read, and its turn is missing.

    Args:
        me: the name of this process's node.
        ranks: of the processes that it speaks with, by name.
        seconds: how long to wait for a turn of one who waits for nobody. Whoever missed it, is waited for only as long
            again as the others took, until it is heard. Where nobody was heard, it may be this process that stood
            still: all are waited for as usual then, but in each round only once in all.
        group: where the server speaks to several relays at once; at a relay, where it listens.
    """

    def __init__(
        self, me: str, ranks: Mapping[str, int], seconds: float, group: Caster | Listener | None = None
    ) -> None:
        self.me, self.rank, self.seconds = me, dist.get_rank(), seconds
        self.caster = group if isinstance(group, Caster) else None
        self.listener = group if isinstance(group, Listener) else None
        self.peers = {name: Peer(rank, self.listener) for name, rank in ranks.items()}
        self.lost: dict[str, str] = {}  # who is not heard any more, and why
        self.late: set[str] = set()  # who missed a turn, and was not heard since
        self.news: list[str] = []  # of who was late, and heard again, for whoever keeps a log
        self.round = 0
        self._sent, self._taken = (dict.fromkeys(ranks, 0) for _ in range(2))  # frames
        self._early: dict[str, Frame] = {}  # of rounds to come
        self._coming: dict[tuple[str, str], list[Frame]] = defaultdict(list)
        self._turns: dict[tuple[str, str], deque[list[Frame]]] = defaultdict(deque)
        self._missed: dict[tuple[str, str], int] = defaultdict(int)  # turns that nobody waits for any more
        self._since: dict[str, float] = {}  # when the first wait in this round began that it missed

    def begin(self, round: int) -> None:
        """What was said in earlier rounds is forgotten."""
        self.round = round
        self._coming.clear()
        self._turns.clear()
        self._missed.clear()
        self._since.clear()
        if self.caster:
            self.caster.begin()

    def cast(self, to: Sequence[str], frame: Frame) -> Cast | None:
        """Bring a frame's body on its way to several at once, where that pays; the frame is still to be said."""
        ranks = [self.peers[name].rank for name in to if name not in self.lost]
        if self.caster is None or len(ranks) < 2 or len(body := frame.body) <= ROOM:
            return None
        return self.caster.cast(body, ranks)

    def say(self, to: str, frame: Frame, cast: Cast | None = None) -> None:
        """Bring a frame on its way; its body goes by TCP where a cast does not bring it."""
        if to in self.lost:
            return
        header, body = frame.to_bytes(self.rank, self.peers[to].rank, self._sent[to])
        self._sent[to] += 1
        if cast:
            header = replace(header, cast=cast.number)
        self.peers[to].outbox.put((header, body, cast))

    def hear(self, kind: str, who: Sequence[str], patience: int = 1) -> dict[str, list[Frame]]:
        """What each of these says of a kind in its turn; those are missing who say nothing in time.

        Args:
            patience: how often `seconds` to wait: once for who waits for nobody, once more for who waits for those.
        """
        start, heard, others = time.monotonic(), {}, set(who).difference(self.late)
        since = start if others else max((self._since.get(name, start) for name in who), default=start)
        deadline = since + patience * self.seconds
        for name in sorted(who, key=self.late.__contains__):  # those who were late, last
            if name in self.late and others:
                now = time.monotonic()
                deadline = min(deadline, now + (now - start))
            turn = self._turn(name, kind, deadline)
            if isinstance(turn, str):
                self._miss(name, turn)
            else:
                heard[name] = turn
                if name in self.late:
                    self.late.remove(name)
                    self.news.append(f"{name} is heard again")
        stood = max(0.0, time.monotonic() - deadline)  # by so much this process overslept
        for name in set(who).difference(heard):
            self._since.setdefault(name, -inf if heard else since + stood)
        return {name: heard[name] for name in who if name in heard}

    def close(self, seconds: float = 5.0) -> None:
        """Let what was said leave, and others say their last word, if that takes no longer."""
        for name, peer in self.peers.items():
            self.say(name, Frame(BYE, self.round, empty=True))
            peer.outbox.put(None)
        deadline = time.monotonic() + seconds
        for peer in self.peers.values():
            for thread in peer.threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _miss(self, name: str, why: str) -> None:
        if name not in self.late | set(self.lost):
            self.news.append(f"{name}: {why}")
        self.late.add(name)

    def _turn(self, name: str, kind: str, deadline: float) -> list[Frame] | str:
        """The frames of a turn, or why it is missing."""
        turns = self._turns[name, kind]
        while not turns:
            if (frame := self._next(name, deadline)) is None:
                self._missed[name, kind] += 1
                return f"no {kind} came in time"
            key = name, frame.kind
            self._coming[key] += [] if frame.empty else [frame]
            if frame.last:
                turn = self._coming.pop(key)
                if self._missed[key]:
                    self._missed[key] -= 1
                else:
                    self._turns[key].append(turn)
        turn = turns.popleft()
        return next((frame.damaged for frame in turn if frame.damaged), turn)

    def _next(self, name: str, deadline: float) -> Frame | None:
        """The next frame of this round; None where the peer is lost, or there is none in time."""
        while name not in self.lost:
            frame = self._early.pop(name, None) or self._take(name, deadline)
            if frame is None or frame.round == self.round:
                return frame
            if frame.round > self.round:
                self._early[name] = frame
                return None
        return None

    def _take(self, name: str, deadline: float) -> Frame | None:
        try:
            arrived = self.peers[name].inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(arrived, str):
                raise CodingError(arrived)
            header, body = arrived
            if (header.sender, header.receiver) != (self.peers[name].rank, self.rank):
                raise CodingError(f"a frame of process {header.sender} for process {header.receiver} came from it")
            if header.sequence != self._taken[name]:
                raise CodingError(f"its frame {header.sequence} came where frame {self._taken[name]} belongs")
            self._taken[name] += 1
        except Empty:
            return None
        except CodingError as error:
            self.lost[name] = str(error)
            return None
        try:
            return Frame.from_bytes(header, body)
        except CodingError as error:
            return Frame(KINDS[header.kind], header.round, last=header.last, damaged=str(error))
