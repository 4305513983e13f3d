"""Links between processes, each of which plays one node: the server, a relay, or a host of users."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    USERS_TO_RELAYS,
    LinkLedger,
)
from hmtl.communication.links import Links
from hmtl.communication.messages import IVS, SERVER, Message, Users, host_name, relay_number
from hmtl.communication.wires import NOTHING
from hmtl.distributed.frames import HEADER, Frame
from hmtl.distributed.peers import PER_NUMBER, Peers
from hmtl.topology import Moving, Topology


class ProcessLinks(Links):
    """Links from the node of this process to those of other processes.

    The ledger counts messages as on all other links: once, even if several relays receive them. A frame adds a header
    and the numbers of the users whose rows it carries; both count as overhead on the link of the first row, for each
    receiver. Frames that only end a batch are not counted. What multicast sends beyond one copy of each message counts
    as overhead of the server's link to all relays, and a relay's multicast reports as overhead of its own link.

    Args:
        ledger: counts what this process sends.
        peers: the other processes.
        contacts: who hears whom, in all rounds or round by round; a relay gets only the rows of users that it hears.
        homes: the users of each host, which gets only their rows.
        figures: whether these links carry figures, in rounds that follow the learner's with the same numbers. Figures
            travel without multicast, so that `ledger` alone counts what the group has sent.
    """

    def __init__(
        self,
        ledger: LinkLedger,
        peers: Peers,
        contacts: Topology | Moving,
        homes: Sequence[Users],
        figures: bool = False,
    ) -> None:
        super().__init__(ledger)
        self.peers, self.contacts, self.topology, self.figures = peers, contacts, contacts.at(0), figures
        self._homes = {host_name(n): users for n, users in enumerate(homes)}
        self._posted: dict[tuple[str, str], list[Message]] = defaultdict(list)  # by receiver and kind

    def plays(self, node: str) -> bool:
        return node == self.peers.name

    def homes(self, K: int) -> dict[str, Users]:
        return self._homes

    def begin(self, round: int) -> None:
        self._posted.clear()
        self.peers.begin(PER_NUMBER * round + self.figures)
        self.topology = self.contacts.at(max(round, 0))

    def send(self, message: Message) -> None:
        """Keep a message until `end`, when it is known which one is the last of its kind."""
        for receiver in message.receivers:
            self._posted[receiver, message.kind].append(message)

    def end(self, kind: str, receivers: Sequence[str]) -> None:
        batches = {receiver: self._posted.pop((receiver, kind), []) for receiver in receivers}
        in_order = dict.fromkeys(message for messages in batches.values() for message in messages)
        shared = [each for each in in_order if each.users is None and len(each.receivers) > 1 and not self.figures]
        frames = {message: self._frame(message, message.receivers[0]) for message in shared}
        casts = {message: self.peers.multicast(message.receivers, frame) for message, frame in frames.items()}
        for receiver, messages in batches.items():
            for n, message in enumerate(messages, 1):
                frame = frames.get(message) or self._frame(message, receiver)
                if n < len(messages):
                    frame = replace(frame, last=False)
                links = message.links if isinstance(message.links, int) else message.links[:1]
                ids = 0 if frame.users is None else 4 * len(frame.users)
                self.ledger.add(message.tier, links, 0, 8 * (HEADER + ids))
                self.peers.send(receiver, frame, casts.get(message))
            if not messages:
                self.peers.send(receiver, Frame(kind, self.peers.round, format=NOTHING))

    def collect(self, node: str, kind: str, expected: Sequence[str]) -> list[Message]:
        batches = self.peers.receive(kind, expected, self._patience(expected))
        self._count_multicast()
        for sender in [name for name, frames in batches.items() if not all(self._may(name, frame) for frame in frames)]:
            self.peers.lose(sender, "it spoke for users that it does not hear or have")
            del batches[sender]
        return [self._message(sender, frame) for sender, frames in batches.items() for frame in frames]

    def _may(self, sender: str, frame: Frame) -> bool:
        """Return whether a sender may speak of these users: a host of its own, a relay of those that it hears.

        An aggregator's models are for users of other relays, too.
        """
        name, users = self.peers.name, frame.users
        if sender == SERVER:
            return True
        if users is None:
            return name == SERVER
        if sender in self._homes:
            return bool(np.isin(users, self._homes[sender]).all())
        heard = np.isin(users, self.topology.N(relay_number(sender))).all()
        if name in self._homes:
            return bool(heard and np.isin(users, self._homes[name]).all())
        return bool(heard or (frame.kind != IVS and (users < self.topology.K).all()))

    def _frame(self, message: Message, receiver: str) -> Frame:
        """Return the rows of a message that a receiver needs; all receivers need rows that belong to no user."""
        rows, users = message.rows(), message.users
        if users is not None and receiver != SERVER:
            own = self._homes[receiver] if receiver in self._homes else self.topology.N(relay_number(receiver))
            needed = np.isin(users, own)
            if len(rows) == len(users):  # otherwise there is one row for all of them
                rows = rows[torch.from_numpy(needed)]
            users = users[needed]
        parts = message.payload[rows], message.overhead[rows]
        return Frame(message.kind, self.peers.round, *parts, users, message.dtype, format=message.format)

    def _count_multicast(self) -> None:
        """Count what multicast has sent besides the bodies: headers, repairs, questions and reports."""
        name, group = self.peers.name, self.peers.group
        if group and not self.figures:
            tier, link = (
                (SERVER_TO_RELAYS, self.contacts.H) if name == SERVER else (RELAYS_TO_SERVER, relay_number(name))
            )
            self.ledger.add(tier, link, 0, 8 * group.overhead())

    def _patience(self, senders: Sequence[str]) -> int:
        """Return how many timeouts to wait for senders: hosts wait for nobody, relays wait for hosts, and so on."""
        if self.peers.name == SERVER:
            return 2
        if self.peers.name in self._homes:
            return 4
        return 3 if SERVER in senders else 1

    def _message(self, sender: str, frame: Frame) -> Message:
        name, users = self.peers.name, frame.users
        links: int | Users
        if name == SERVER:
            tier, links = RELAYS_TO_SERVER, relay_number(sender)
        elif sender == SERVER:
            tier, links = SERVER_TO_RELAYS, relay_number(name)
        else:
            assert users is not None, f"frames between {sender} and {name} carry rows of users"
            tier, links = (RELAYS_TO_USERS if name in self._homes else USERS_TO_RELAYS), users
        round, parts = frame.round // PER_NUMBER, (frame.payload, frame.overhead)
        return Message(
            round, tier, frame.kind, sender, (name,), links, *parts, users, dtype=frame.dtype, format=frame.format
        )
