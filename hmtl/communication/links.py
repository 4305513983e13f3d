"""Links carry messages between nodes, and count them: `post` is the only place where bits are counted."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from hmtl.communication.accounting.ledger import LinkLedger
from hmtl.communication.messages import Message, Users, host_name


class Links(ABC):
    """What is posted comes to its receivers, or does not; nodes learn of nothing else.

    Args:
        ledger: told of each message that is posted, whether it arrives or not.

    Attributes:
        sure: whether all that is posted arrives.
    """

    sure = False

    def __init__(self, ledger: LinkLedger) -> None:
        self.ledger = ledger

    def plays(self, node: str) -> bool:
        """Whether a node is played at this end; by default, all are."""
        return True

    def homes(self, K: int) -> dict[str, Users]:
        """Of each host, whose users it has; by default, one has them all."""
        return {host_name(0): np.arange(K)}

    def post(self, message: Message) -> None:
        """Send a message, and count its bits, on the link of each of its rows."""
        links = [message.links] * len(message) if isinstance(message.links, int) else message.links
        self.ledger.add(message.tier, links, 8 * message.payload.shape[1], 8 * message.overhead.shape[1])
        self.send(message)

    @abstractmethod
    def begin(self, round: int) -> None:
        """A new round: what was posted before and not collected, because its receiver was absent, is lost."""

    @abstractmethod
    def send(self, message: Message) -> None:
        """Bring a message on its way to its receivers."""

    def end(self, kind: str, receivers: Sequence[str]) -> None:  # noqa: B027, where all is there at once
        """The sender has said all that it has to say of a kind to these, for the time being; they wait for no more."""

    @abstractmethod
    def collect(self, node: str, kind: str, expected: Sequence[str]) -> tuple[list[Message], tuple[str, ...]]:
        """Take the messages of one kind that came for a node.

        Args:
            node: the receiver.
            kind: see `messages`.
            expected: names of the nodes of whom messages may come.

        Returns:
            The messages that arrived, in the order of their senders in `expected`, and the senders of whom none did.
        """


class InProcess(Links):
    """Messages between nodes of one process: handed over as they are, and there at once."""

    sure = True

    def __init__(self, ledger: LinkLedger) -> None:
        super().__init__(ledger)
        self._boxes: dict[tuple[str, str], list[Message]] = defaultdict(list)

    def begin(self, round: int) -> None:
        self._boxes.clear()

    def send(self, message: Message) -> None:
        for receiver in message.receivers:
            self._boxes[receiver, message.kind].append(message)

    def collect(self, node: str, kind: str, expected: Sequence[str]) -> tuple[list[Message], tuple[str, ...]]:
        arrived = sorted(self._boxes.pop((node, kind), []), key=lambda message: expected.index(message.sender))
        senders = {message.sender for message in arrived}
        return arrived, tuple(name for name in expected if name not in senders)
