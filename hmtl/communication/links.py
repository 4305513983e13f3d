"""Links, which carry messages between nodes and count their bits."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from hmtl.communication.accounting.ledger import LinkLedger
from hmtl.communication.messages import Message, host_name
from hmtl.io.arrays import Ids
from hmtl.io.described import Described


class Links(Described, ABC):
    """The links between nodes, over which each message reaches its receivers or is lost.

    Args:
        ledger: records the bits of each posted message, whether it arrives or not.

    Attributes:
        reliable: whether every posted message arrives.
        streams: whether rows follow in blocks once it is known who takes part, if links are reliable.
        stand_ins: makes stand-ins for nodes that other processes play, see `Communicator`; None: all are here.
    """

    reliable = streams = False
    stand_ins: Callable[..., Any] | None = None

    def __init__(self, ledger: LinkLedger) -> None:
        self.ledger = ledger

    def plays(self, node: str) -> bool:
        """Return whether this process plays a node; by default, it plays all nodes."""
        return True

    def homes(self, K: int) -> dict[str, Ids]:
        """Return the users of each host; by default, one host has all users."""
        return {host_name(0): np.arange(K)}

    def post(self, message: Message) -> None:
        """Send a message, and count its bits on the link of each of its rows; announced rows are counted later."""
        if message.announces:
            self.send(message)
            return
        links = [message.links] * len(message) if isinstance(message.links, int) else message.links
        payload, overhead = message.sizes
        self.ledger.add(message.tier, message.kind, links, 8 * payload, 8 * overhead)
        self.send(message)

    @abstractmethod
    def begin(self, round: int) -> None:
        """Begin a round, and discard messages that nobody collected in the previous one."""

    @abstractmethod
    def send(self, message: Message) -> None:
        """Send a message to its receivers."""

    @abstractmethod
    def collect(self, node: str, kind: str) -> list[Message]:
        """Take the messages of one kind that arrived for a node. One that arrives later is lost.

        Args:
            node: the receiver.
            kind: one of the kinds in `messages`.

        Returns:
            The messages in any order.
        """


class InProcess(Links):
    """Links within one process: messages arrive at once."""

    reliable = streams = True

    def __init__(self, ledger: LinkLedger) -> None:
        super().__init__(ledger)
        self._boxes: dict[tuple[str, str], list[Message]] = defaultdict(list)

    def begin(self, round: int) -> None:
        self._boxes.clear()

    def send(self, message: Message) -> None:
        for receiver in message.receivers:
            self._boxes[receiver, message.kind].append(message)

    def collect(self, node: str, kind: str) -> list[Message]:
        return self._boxes.pop((node, kind), [])
