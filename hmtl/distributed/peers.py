"""The frames that a process exchanges with all others, checked, sorted by round and kind, within deadlines."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from math import inf

from hmtl.communication.wires import NOTHING
from hmtl.distributed.connections import Connection
from hmtl.distributed.frames import BYE, Frame
from hmtl.distributed.multicast.datagrams import ROOM
from hmtl.distributed.multicast.group import Cast, Caster, Listener
from hmtl.errors import EngineError

PER_NUMBER = 2  # rounds with the same number: the learner's, and then that of its figures
BEFORE = -2 * PER_NUMBER  # the number before that of the set-up, when processes load their data and build the learner


class Peers:
    """The other processes, by the names of their nodes.

    A sender marks the last frame of each batch of one kind, and `receive` returns whole batches. Frames of past epochs
    and rounds are dropped. A batch that arrives too late is never mistaken for a later one of its kind.

    A peer that misses a deadline is late until it answers again; `receive` then grants it only as much extra time as
    the other peers took. If nobody answered, this process itself may have been suspended: late peers get the full time
    again, but only once per round.

    Args:
        name: the node of this process.
        connections: to the other processes, by name.
        seconds: how long to wait for a batch whose sender does not wait for others.
        group: this process's end of the multicast group, if there is one.
        leave: called at the end, once all have been told that this process leaves.

    Attributes:
        epoch: how often the run has been taken up again.
        round: the present round as it is numbered on the wire: PER_NUMBER times its number, or 1 more for figures.
        lost: by name, why a peer will send nothing more.
        late: names of the peers that missed their last deadline.
        notices: for the log, what happened to peers since the list was last cleared, one sentence each.
    """

    def __init__(
        self,
        name: str,
        connections: Mapping[str, Connection],
        seconds: float,
        group: Caster | Listener | None = None,
        leave: Callable[[], object] = bool,
    ) -> None:
        self.name, self.connections, self.seconds, self._leave = name, connections, seconds, leave
        self.group: Caster | Listener | None = None
        self.lost: dict[str, str] = {}
        self.late: set[str] = set()
        self.notices: list[str] = []
        self.epoch, self.round = 0, BEFORE
        self._early: dict[str, Frame] = {}  # a frame of a future round, by sender
        self._incomplete: dict[tuple[str, str], list[Frame]] = defaultdict(list)  # batches, by sender and kind
        self._complete: dict[tuple[str, str], deque[list[Frame]]] = defaultdict(deque)
        self._missed: dict[tuple[str, str], int] = defaultdict(int)  # number of batches that came too late
        self._waited_since: dict[str, float] = {}  # when the first wait of this round began in which a peer was late
        self.join(group)

    def join(self, group: Caster | Listener | None) -> None:
        """Use a multicast group, in which some of the bodies arrive or are sent."""
        self.group = group
        for connection in self.connections.values():
            connection.listener = group if isinstance(group, Listener) else None

    def limit(self, nbytes: int) -> None:
        """Refuse bodies of more than `nbytes` bytes."""
        for connection in self.connections.values():
            connection.largest = nbytes
        if isinstance(self.group, Listener):
            self.group.receiver.largest = nbytes

    def lose(self, name: str, reason: str) -> None:
        """Exchange nothing more with a peer, which has sent what it may not, even if it comes back."""
        self.lost[name] = reason
        self.connections[name].close(reason)

    def take_back(self, name: str) -> bool:
        """Exchange frames again with a peer if it was lost and has come back; return whether it is there."""
        connection = self.connections[name]
        if not connection.take_back() and name not in self.lost:
            return connection.alive
        if not connection.alive:
            return False
        self.lost.pop(name, None)
        self.late.discard(name)
        self._early.pop(name, None)
        return True

    @property
    def returned(self) -> list[str]:
        """The peers that were lost here and could be taken back."""
        return [
            name
            for name, each in self.connections.items()
            if (each.newer and not each.newer.ended.is_set()) or (name in self.lost and each.alive)
        ]

    def take_up(self, epoch: int) -> None:
        """Begin an epoch, and forget the frames of earlier ones."""
        self.epoch = epoch
        self.begin(BEFORE)

    def follow(self, name: str) -> bool:
        """Wait for a peer to begin another epoch, and begin it, too; return False if the peer is lost before."""
        while name not in self.lost:
            try:
                frame = self._early.pop(name, None) or self.connections[name].receive(self.seconds)
            except EngineError as error:
                self.lost[name] = str(error)
                break
            if frame and frame.epoch > self.epoch:
                self.take_up(frame.epoch)
                self._early[name] = frame
                return True
        return False

    def begin(self, round: int) -> None:
        """Begin a round, and forget the frames of earlier rounds."""
        self.round = round
        self._incomplete.clear()
        self._complete.clear()
        self._missed.clear()
        self._waited_since.clear()
        if isinstance(self.group, Caster):
            self.group.begin()

    def multicast(self, to: Sequence[str], frame: Frame) -> Cast | None:
        """Send a frame's body to several peers at once, if this is worthwhile; `send` must still send the headers."""
        ranks = [self.connections[name].rank for name in to if name not in self.lost]
        if not isinstance(self.group, Caster) or len(ranks) < 2 or len(frame.body) <= ROOM:
            return None
        return self.group.cast(frame.body, ranks)

    def send(self, to: str, frame: Frame, cast: Cast | None = None) -> None:
        """Send a frame to a peer without waiting; the body is left out if `cast` brings it."""
        if to not in self.lost:
            self.connections[to].send(frame, cast, self.epoch)

    def receive(self, kind: str, senders: Sequence[str], patience: int = 1) -> dict[str, list[Frame]]:
        """Return the next batch of a kind from each sender, except from senders that miss the deadline.

        Args:
            patience: how many times `seconds` to wait: once for a sender that waits for nobody, once more for each
                further process in the chain of those that wait for each other.
        """
        start = time.monotonic()
        batches: dict[str, list[Frame]] = {}
        punctual = set(senders) - self.late
        since = start if punctual else max((self._waited_since.get(name, start) for name in senders), default=start)
        deadline = since + patience * self.seconds
        for name in sorted(senders, key=self.late.__contains__):  # late peers last
            if name in self.late and punctual:
                now = time.monotonic()
                deadline = min(deadline, now + (now - start))
            batch = self._next_batch(name, kind, deadline)
            if isinstance(batch, str):
                if name not in self.late and name not in self.lost:
                    self.notices.append(f"{name}: {batch}")
                self.late.add(name)
                continue
            batches[name] = batch
            if name in self.late:
                self.late.remove(name)
                self.notices.append(f"{name} answers again")
        overslept = max(0.0, time.monotonic() - deadline)
        for name in set(senders) - set(batches):
            self._waited_since.setdefault(name, -inf if batches else since + overslept)
        return {name: batches[name] for name in senders if name in batches}

    def close(self, seconds: float = 5.0) -> None:
        """Send what is still waiting, give peers at most `seconds` to do the same, and leave the group."""
        for name in self.connections:
            self.send(name, Frame(BYE, self.round, format=NOTHING))
        deadline = time.monotonic() + seconds
        for name, connection in self.connections.items():
            if name not in self.lost:
                connection.join(deadline)
        if self.group:
            self.group.close()
        self._leave()

    def _next_batch(self, name: str, kind: str, deadline: float) -> list[Frame] | str:
        """Return the next batch, or the reason why it is missing."""
        batches = self._complete[name, kind]
        while not batches:
            frame = self._next_frame(name, deadline)
            if frame is None:
                self._missed[name, kind] += 1
                return f"no {kind} in time"
            key = name, frame.kind
            if frame.format != NOTHING:
                self._incomplete[key].append(frame)
            if frame.last:
                batch = self._incomplete.pop(key, [])
                if self._missed[key]:
                    self._missed[key] -= 1
                else:
                    self._complete[key].append(batch)
        return batches.popleft()

    def _next_frame(self, name: str, deadline: float) -> Frame | None:
        """Return the next frame of this round; None if the peer is lost or the frame does not arrive in time."""
        while name not in self.lost:
            try:
                frame = self._early.pop(name, None) or self.connections[name].receive(deadline - time.monotonic())
            except EngineError as error:
                self.lost[name] = str(error)
                return None
            now = self.epoch, self.round
            if frame is None or (frame.epoch, frame.round) == now:
                return frame
            if (frame.epoch, frame.round) > now:
                self._early[name] = frame
                return None
        return None
