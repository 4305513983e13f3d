"""What travels in an attempt at a round, as data that every node derives from the attendance.

Every message with rows carries a linear map of rows. In a *step*, relays send the server maps of the rows that they
heard, the server sends relays maps of what arrived, and nodes that learn something compute it from what they heard and
received. The steps of a `Flow` lead to the models; its *delivery* takes these to the users. Nodes execute steps and
know nothing more of them.

`flows.ivs` has the steps of rounds of IVs, over GF(2^8), and `flows.sums` those of sums, of integers modulo 2^w.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding.plan import PLAN_DIGEST_BYTES
from hmtl.communication.agreement import Digest
from hmtl.communication.codecs.formats import BYTES
from hmtl.communication.messages import Content, Message
from hmtl.io.arrays import Ids

OF_SERVER = -1  # number of the server among the nodes that learn something
OTHER_PLAN = "its plan differs from that of others; install the same versions of hmtl and scipy at all nodes"


class Keeper(Protocol):
    """Where one node keeps the rows that all aggregators of its process learn.

    Attributes:
        users: whose rows are kept.
    """

    users: Ids

    def keep(self, users: Ids, ivs: dict[str, Tensor]) -> None:
        """Take the rows of a round, or their sum."""

    def room(self, sizes: tuple[int, int]) -> dict[str, Tensor]:
        """Return the memory for the rows, whose payload and overhead have these sizes in bytes."""

    def places(self, users: Ids) -> Tensor:
        """Return where the rows of these users are."""


class Copy(NamedTuple):
    """A message of the server: the relays that receive it, the link on which it is counted, and the content."""

    relays: tuple[int, ...]
    link: int
    content: Content


class Shape(NamedTuple):
    """The form of a message that a node expects.

    Attributes:
        payload, overhead: bytes of a row.
        users: whose rows they may be; True: anybody for whom the sender may speak; None: rows of no user.
        rows: how many there are; None: one for each user, or one of no user.
        places: how many rows a user may have, if the first byte of each is its place among them; 0: one, without it.
        format: of the rows, see `Message`.
    """

    payload: int
    overhead: int
    users: Ids | bool | None = None
    rows: int | None = None
    places: int = 0
    format: str = BYTES


class Heard(Protocol):
    """What a node keeps of the rows that it hears."""

    @property
    def lacking(self) -> Ids:
        """The users of whom numbers are missing."""

    def take(self, messages: Sequence[Message]) -> None:
        """Hear these messages."""


HeardT = TypeVar("HeardT", bound=Heard)
"""What the steps of a flow take for heard."""


class Step(Protocol[HeardT]):
    """A step of a round.

    Attributes:
        kinds: the kinds of the messages from relays, and of those from the server.
        senders: the relays that send the server something.
        receivers: the relays that cannot go on without what the server sends.
        learners: the nodes that learn something, relays or OF_SERVER.
    """

    kinds: tuple[str, str]

    @property
    def senders(self) -> Sequence[int]: ...

    @property
    def receivers(self) -> Sequence[int]: ...

    @property
    def learners(self) -> Sequence[int]: ...

    def up(self, i: int, heard: HeardT) -> Content:
        """Return what relay i sends the server."""

    def shape(self, i: int, up: bool) -> Shape:
        """Return the shape of what relay i sends the server, or gets from it, if it is a sender or receiver."""

    def down(self, heard: HeardT, received: Sequence[Message]) -> Iterator[Copy]:
        """Yield what the server sends, from the rows that it heard, or from what relays sent."""

    def learn(
        self, node: int, heard: HeardT, received: Sequence[Message], digest: Digest, keeper: Keeper | None
    ) -> HeardT | None:
        """Let a node learn rows: it adds them to its digest and, if it keeps the rows of its process, to the keeper.

        Return what counts as heard by this node from now on, if that changes.
        """


class Delivery(Protocol):
    """How models reach the users: from aggregators to the server, from the server to relays, from relays to users.

    Attributes:
        served: the share of what each user receives that each relay sends it [H, K].
    """

    @property
    def served(self) -> NDArray[np.float64]: ...

    def up(self, i: int, models: Content) -> Content | None:
        """Return the models that aggregator i sends the server for users whom no aggregator hears."""

    def passed(self, i: int, up: bool, message: Message, nbytes: int) -> Shape:
        """Return the shape of models that relay i sends the server, or gets from it; raise CodingError if it does not.

        Args:
            i: number of the relay.
            up: whether it sends them.
            message: with these models.
            nbytes: bytes of the payload of one of them.
        """

    def down(self, models: Content) -> Iterator[Copy]:
        """Yield what the server sends of models that it computed, or that an aggregator sent."""

    def last_hop(
        self, i: int, models: Content | None, passed: Sequence[Message]
    ) -> Iterator[tuple[int | Ids, Content]]:
        """Yield messages of relay i to users, with the links on which they are counted.

        `models` are those that the relay computed, `passed` what the server sent.
        """


@dataclass(frozen=True)
class Flow(Generic[HeardT]):
    """What travels in an attempt.

    Attributes:
        hearing: makes the empty store for the rows that a relay hears.
        collect: the steps after which the aggregators hold what they compute the models from.
        delivery: how the models reach the users.
        digest: of the plan that the steps follow; nodes with another version of a solver may come to another plan.
    """

    hearing: Callable[[int], HeardT]
    collect: tuple[Step[HeardT], ...]
    delivery: Delivery
    digest: bytes = bytes(PLAN_DIGEST_BYTES)

    def __str__(self) -> str:
        """Return a line for each step, or for several alike: who sends, who receives, who learns."""
        steps = [
            (type(step).__name__, _names(step.senders), _names(step.receivers), _names(step.learners))
            for step in self.collect
        ]
        lines = [("step", "relays send", "relays receive", "learn")]
        for (name, up, down, learn), alike in groupby(steps):
            times = len([*alike])
            lines.append((f"{name} × {times}" if times > 1 else name, up, down, learn))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def _names(nodes: Sequence[int]) -> str:
    return " ".join("server" if i == OF_SERVER else str(i) for i in nodes)
