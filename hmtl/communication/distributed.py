"""The same messages between processes: point to point over torch.distributed (gloo).

Each process has one node: rank 0 the server, then the relays, then hosts. gloo neither encrypts nor tells who speaks:
it is for networks that are trusted.

A wait that gloo gives up breaks all connections of the process, and does not say for whom it waited. So nobody waits in
gloo but threads, two for each peer, and these as long as the peer lives; deadlines are kept where messages are taken
from the threads.
"""

import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.frames import DTYPES, HEADER, KINDS, Header, checksum, from_body, to_body
from hmtl.communication.ledger import RELAYS_TO_SERVER, RELAYS_TO_USERS, SERVER_TO_RELAYS, USERS_TO_RELAYS, LinkLedger
from hmtl.communication.links import Links
from hmtl.communication.messages import SERVER, Message, Users, nothing
from hmtl.errors import CodingError

Here = NDArray[np.bool_]
"""Whether each user is somebody's, [K]: heard by a relay, or at home on a host."""


class Peer:
    """The other end of a connection: one thread brings what is posted to it, one puts what it sends into a queue."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.sent = self.taken = 0  # frames
        self.early: tuple[Header, Tensor] | None = None  # of a round to come
        self.inbox: SimpleQueue[tuple[Header, Tensor] | str] = SimpleQueue()  # words: why no more will come
        self.outbox: SimpleQueue[tuple[Tensor, Tensor] | None] = SimpleQueue()
        self._sender = Thread(target=self._send, daemon=True)
        for thread in (self._sender, Thread(target=self._receive, daemon=True)):
            thread.start()

    def close(self, seconds: float) -> None:
        """Let what was posted leave, if that takes no longer."""
        self.outbox.put(None)
        self._sender.join(seconds)

    def _send(self) -> None:
        while frame := self.outbox.get():
            try:
                for part in frame:
                    if len(part):
                        dist.send(part, dst=self.rank)
            except RuntimeError:
                return  # whoever waits for a word of this peer will notice

    def _receive(self) -> None:
        try:
            while True:
                content = torch.empty(HEADER, dtype=torch.uint8)
                dist.recv(content, src=self.rank)
                header = Header.from_bytes(content.numpy().tobytes())
                body = torch.empty(header.body, dtype=torch.uint8)
                if len(body):
                    dist.recv(body, src=self.rank)
                self.inbox.put((header, body))
        except CodingError as error:
            self.inbox.put(str(error))
        except RuntimeError:
            self.inbox.put("the connection is closed")


class Distributed(Links):
    """Messages of one node to others, each in a process of its own.

    Besides what it carries, a message has a header, and numbers of users where rows belong to users; these are counted
    as overhead, on the link of its first row.

    Args:
        ledger: of what this process sends.
        me: the name of its node.
        peers: the processes that it speaks with, by the name of their node.
        users: of each relay those that it hears, of each host its own; they alone concern it.
        seconds: how long to wait for the word of a peer.
    """

    def __init__(
        self, ledger: LinkLedger, me: str, peers: Mapping[str, Peer], users: Mapping[str, Here], seconds: float = 60.0
    ) -> None:
        super().__init__(ledger)
        self.me, self.rank, self.peers, self.users, self.seconds = me, dist.get_rank(), peers, users, seconds
        self.lost: dict[str, str] = {}  # why nothing comes from these any more
        self.round = 0
        self._posted: dict[tuple[str, str], list[Message]] = defaultdict(list)
        self._coming: dict[tuple[str, str], list[Message]] = defaultdict(list)
        self._turns: dict[tuple[str, str], deque[list[Message]]] = defaultdict(deque)

    def begin(self, round: int) -> None:
        self.round = round
        for box in (self._posted, self._coming, self._turns):
            box.clear()

    def send(self, message: Message) -> None:
        for receiver in message.receivers:
            self._posted[receiver, message.kind].append(message)

    def end(self, kind: str, receivers: Sequence[str]) -> None:
        for receiver in receivers:
            messages = self._posted.pop((receiver, kind), [])
            for n, message in enumerate(messages, 1):
                self._frame(receiver, kind, message, last=n == len(messages))
            if not messages:
                self._frame(receiver, kind, None, last=True)

    def collect(self, node: str, kind: str, expected: Sequence[str]) -> tuple[list[Message], tuple[str, ...]]:
        deadline = time.monotonic() + self.seconds
        arrived: list[Message] = []
        missing = []
        for sender in expected:
            if (turn := self._turn(sender, kind, deadline)) is None:
                missing.append(sender)
            else:
                arrived += turn
        return arrived, tuple(missing)

    def _frame(self, receiver: str, kind: str, message: Message | None, last: bool) -> None:
        peer, users, payload, overhead, dtype = self.peers[receiver], None, nothing(0), nothing(0), torch.float64
        if message is not None:
            rows, users, dtype = message.rows(), message.users, message.dtype
            if users is not None and receiver in self.users:
                concerned = self.users[receiver][users]
                rows, users = rows[torch.from_numpy(concerned)], users[concerned]
            payload, overhead = message.payload[rows], message.overhead[rows]
            links = message.links if isinstance(message.links, int) else message.links[:1]
            self.ledger.add(message.tier, links, 0, 8 * (HEADER + 4 * (0 if users is None else len(users))))
        body = to_body(users, payload, overhead)
        header = Header(
            kind=KINDS.index(kind),
            dtype=DTYPES.index(dtype),
            of_users=users is not None,
            last=last,
            empty=message is None,
            sender=self.rank,
            receiver=peer.rank,
            round=self.round,
            sequence=peer.sent,
            rows=len(payload),
            payload=payload.shape[1],
            overhead=overhead.shape[1],
            checksum=checksum(body),
        )
        peer.sent += 1
        peer.outbox.put((torch.frombuffer(bytearray(header.to_bytes()), dtype=torch.uint8), body))

    def _turn(self, sender: str, kind: str, deadline: float) -> list[Message] | None:
        """What a node said of a kind in a turn; None where its word did not come in time."""
        turns = self._turns[sender, kind]
        while not turns:
            if (frame := self._next(sender, deadline)) is None:
                return None
            header, body = frame
            of = KINDS[header.kind]
            if not header.empty:
                self._coming[sender, of].append(self._message(sender, header, body))
            if header.last:
                self._turns[sender, of].append(self._coming.pop((sender, of), []))
        return turns.popleft()

    def _next(self, sender: str, deadline: float) -> tuple[Header, Tensor] | None:
        """The next frame of this round; None where a peer is lost, or does not come up with one in time."""
        peer = self.peers[sender]
        while sender not in self.lost:
            if peer.early is not None:
                if peer.early[0].round > self.round:
                    return None
                frame, peer.early = peer.early, None
                return frame
            try:
                frame = peer.inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                return None
            if isinstance(frame, str):
                self.lost[sender] = frame
                continue
            header, body = frame
            if header.sequence != peer.taken or header.sender != peer.rank:
                self.lost[sender] = f"frame {header.sequence} came where frame {peer.taken} belongs"
                continue
            peer.taken += 1
            if header.round >= self.round:  # what is older comes too late
                peer.early = (header, body)
        return None

    def _message(self, sender: str, header: Header, body: Tensor) -> Message:
        """The message in a frame.

        Raises:
            CodingError: it is damaged.
        """
        try:
            users, payload, overhead = from_body(header, body)
        except CodingError as error:
            raise CodingError(f"{sender} to {self.me}: {error}. Resume from the last checkpoint.") from error
        to_server, to_relay = self.me == SERVER, self.me.startswith("relay")
        if SERVER in (sender, self.me):  # counted on the link of the relay
            links: int | Users = int((sender if to_server else self.me).split()[1])
            tier = RELAYS_TO_SERVER if to_server else SERVER_TO_RELAYS
        else:
            assert users is not None, f"{sender} and {self.me} have nothing to say to each other but of users"
            links, tier = users, USERS_TO_RELAYS if to_relay else RELAYS_TO_USERS
        kind, dtype = KINDS[header.kind], DTYPES[header.dtype]
        return Message(
            header.round, tier, kind, sender, (self.me,), links, payload, overhead, users, dtype=dtype
        )
