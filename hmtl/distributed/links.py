"""The same messages between processes, each with one node: the server, a relay, or a host of users."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    USERS_TO_RELAYS,
    LinkLedger,
)
from hmtl.communication.links import Links
from hmtl.communication.messages import SERVER, Message, Users, host_name
from hmtl.distributed.connections import Wires
from hmtl.distributed.frames import HEADER, Frame
from hmtl.distributed.multicast.group import Cast
from hmtl.topology import Moving, Topology


class Distributed(Links):
    """Messages of this process's node to others, each in a process of its own.

    A frame has a header, and numbers of users where its rows belong to users. These are counted as overhead, on the
    link of the first row, for each receiver; what the message has is counted as on all links, once for what several
    relays hear. Frames without a message, by which processes keep in step, are not counted. What multicast takes beyond
    a message once is overhead of what all relays hear, and a relay's reports are of its link.

    Args:
        ledger: of what this process sends.
        wires: to the other processes.
        contacts: of whom a relay hears, in all rounds or round by round; rows of others do not go to it.
        homes: the users of each host; rows of others do not go to it.
    """

    def __init__(self, ledger: LinkLedger, wires: Wires, contacts: Topology | Moving, homes: Sequence[Users]) -> None:
        super().__init__(ledger)
        self.wires, self.contacts, self.topology = wires, contacts, contacts.at(0)
        self._homes = {host_name(n): users for n, users in enumerate(homes)}
        self._posted: dict[tuple[str, str], list[Message]] = defaultdict(list)

    def plays(self, node: str) -> bool:
        return node == self.wires.me

    def homes(self, K: int) -> dict[str, Users]:
        return self._homes

    def begin(self, round: int) -> None:
        self._posted.clear()
        self.wires.begin(round)
        self.topology = self.contacts.at(max(round, 0))

    def send(self, message: Message) -> None:
        for receiver in message.receivers:
            self._posted[receiver, message.kind].append(message)

    def end(self, kind: str, receivers: Sequence[str]) -> None:
        turns = {receiver: self._posted.pop((receiver, kind), []) for receiver in receivers}
        posted = dict.fromkeys(message for messages in turns.values() for message in messages)  # in order
        shared = [message for message in posted if message.users is None and len(message.receivers) > 1]
        alike = {message: self._frame(message, message.rows()) for message in shared}
        casts = {message: self.wires.cast(message.receivers, frame) for message, frame in alike.items()}
        for receiver, messages in turns.items():
            for n, message in enumerate(messages, 1):
                frame = alike.get(message) or self._frame_for(receiver, message)
                if n < len(messages):
                    frame = replace(frame, last=False)
                self._say(receiver, message, frame, casts.get(message))
            if not messages:
                self.wires.say(receiver, Frame(kind, self.wires.round, empty=True))

    def collect(self, node: str, kind: str, expected: Sequence[str]) -> tuple[list[Message], tuple[str, ...]]:
        heard = self.wires.hear(kind, expected, self._patience(expected))
        self._count()
        arrived = [self._message(sender, frame) for sender, frames in heard.items() for frame in frames]
        return arrived, tuple(name for name in expected if name not in heard)

    def _frame_for(self, receiver: str, message: Message) -> Frame:
        """What of a message concerns a receiver."""
        rows, users = message.rows(), message.users
        if users is not None and receiver != SERVER:
            concerned = np.isin(users, self._users_of(receiver))
            if len(rows) == len(users):  # else one is for all
                rows = rows[torch.from_numpy(concerned)]
            users = users[concerned]
        return self._frame(message, rows, users)

    @staticmethod
    def _frame(message: Message, rows: Tensor, users: Users | None = None) -> Frame:
        payload, overhead = message.payload[rows], message.overhead[rows]
        return Frame(message.kind, message.round, payload, overhead, users, message.dtype)

    def _say(self, receiver: str, message: Message, frame: Frame, cast: Cast | None) -> None:
        links = message.links if isinstance(message.links, int) else message.links[:1]
        ids = 0 if frame.users is None else 4 * len(frame.users)
        self.ledger.add(message.tier, links, 0, 8 * (HEADER + ids))
        self.wires.say(receiver, frame, cast)

    def _count(self) -> None:
        """What multicast took beyond the bodies: headers, combinations, questions; reports."""
        if group := self.wires.caster or self.wires.listener:
            if self.wires.me == SERVER:
                tier, link = SERVER_TO_RELAYS, self.contacts.H
            else:
                tier, link = RELAYS_TO_SERVER, _number(self.wires.me)
            self.ledger.add(tier, link, 0, 8 * group.overhead())

    def _patience(self, expected: Sequence[str]) -> int:
        """Hosts wait for nobody at first, relays for them, the server for these; and what it says, comes back so."""
        if self.wires.me == SERVER:
            return 2
        return 4 if self.wires.me in self._homes else 3 if SERVER in expected else 1

    def _users_of(self, receiver: str) -> Users:
        """Those whose rows concern a relay, or a host."""
        if receiver in self._homes:
            return self._homes[receiver]
        return np.array(self.topology.N(_number(receiver)))

    def _message(self, sender: str, frame: Frame) -> Message:
        me, users = self.wires.me, frame.users
        if SERVER in (sender, me):
            links: int | Users = _number(sender if me == SERVER else me)  # of the relay
            tier = RELAYS_TO_SERVER if me == SERVER else SERVER_TO_RELAYS
        else:
            assert users is not None, f"{sender} and {me} have nothing to say to each other but of users"
            links, tier = users, RELAYS_TO_USERS if me in self._homes else USERS_TO_RELAYS
        return Message(
            frame.round, tier, frame.kind, sender, (me,), links, frame.payload, frame.overhead, users, dtype=frame.dtype
        )


def _number(relay: str) -> int:
    return int(relay.split()[1])
