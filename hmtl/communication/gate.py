"""The gate: the one place that decides which messages a node takes. Behind it, code trusts them.

Nodes, transports, steps and deliveries describe the messages that they expect, see `Shape`. A message that differs
counts as one that was not sent.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hmtl.communication.codecs.formats import REQUEST
from hmtl.communication.flows.flow import Shape
from hmtl.communication.flows.planner import Planner
from hmtl.communication.flows.recipe import Transport, unknown_format
from hmtl.communication.messages import COMBINATIONS, IVS, MODELS, SERVER, SHARES, Message, relay_number
from hmtl.communication.turns import Turn
from hmtl.errors import CodingError
from hmtl.io.arrays import NOBODY, Ids, are_among

log = logging.getLogger(__name__)


class Expecting(Protocol):
    """A node that expects messages.

    Attributes:
        members: the users of a host; None: it is a relay or the server.
    """

    @property
    def name(self) -> str: ...

    @property
    def planner(self) -> Planner: ...

    @property
    def members(self) -> Ids | None: ...

    def expects(self, message: Message, turn: Turn, gate: "Gate") -> Shape | None:
        """Return the shape of such a message; None: the node expects none. Raise CodingError to say why."""


class StateOfAggregators(Protocol):
    """The aggregators' state, against which a state that another node hands over is checked."""

    def check(self, content: NDArray[np.uint8], content_format: str, agreed: int) -> None:
        """Raise CodingError if no other node handed over this content, which leads to the version `agreed`."""


@dataclass(frozen=True, eq=False)
class Gate:
    """Checks the messages of a learner.

    Attributes:
        transport: how its rows travel.
        homes: the users of each host.
        aggregation: of this process, in or beside its nodes.
    """

    transport: Transport
    homes: Mapping[str, Ids]
    aggregation: StateOfAggregators

    def admitted(self, node: Expecting, turn: Turn) -> list[list[Message]]:
        """Return the messages that a node takes, by kind, of those that it hears; log why it refuses others."""
        heard = []
        for kind, messages in zip(turn.kinds, turn.heard, strict=True):
            before: dict[tuple[object, ...], Ids] = {}  # rows of each sender
            taken = list[Message]()
            for message in messages:
                try:
                    if (rows := self._rows(node, turn, kind, message)) is None:
                        continue
                    sent = message.sender, message.format, message.first
                    known = np.sort(np.append(before.get(sent, NOBODY), rows))
                    if not np.diff(known).all():
                        raise CodingError("it has rows that arrived before")
                    before[sent] = known
                    taken.append(message)
                except CodingError as error:
                    log.warning(
                        "round %d: %s takes no %s of %s: %s", turn.round, node.name, kind, message.sender, error
                    )
            heard.append(taken)
        return heard

    def row(self, message: Message) -> Shape:
        """Return the shape of users' rows; raise CodingError if these have a format in which rows do not travel."""
        lengths = self.transport.lengths
        if message.format == REQUEST and len(lengths) > 1:
            return Shape(0, 1, True, format=REQUEST)
        if message.format not in lengths:
            raise CodingError(unknown_format(message.format))
        return Shape(lengths[message.format][0], 8 * self.transport.row_layout.further, True, format=message.format)

    def _rows(self, node: Expecting, turn: Turn, kind: str, message: Message) -> Ids | None:
        """Return numbers by which the rows of a message differ; None: it has no rows for this host.

        Raises:
            CodingError: the message is not what it should be.
        """
        if (message.kind, message.round) != (kind, turn.round):
            raise CodingError(f"it is {message.kind} of round {message.round}")
        if kind in (IVS, COMBINATIONS) and message.dtype != (dtype := self.transport.row_layout.dtype):
            raise CodingError(f"its numbers are {message.dtype}, not {dtype}")
        users = np.zeros(1, np.int64) if message.users is None else message.users
        if not self._may_speak(node, message):
            raise CodingError("its sender may not speak for the users whose rows it has")
        if node.members is not None and not len(users):  # rows for users of other hosts are left out on the way
            return None
        if (shape := node.expects(message, turn, self)) is None:
            raise CodingError("it expects no such message")
        if message.format != shape.format:
            raise CodingError(f"its format is {message.format}, not {shape.format}")
        rows = len(users) if shape.rows is None else shape.rows
        if (message.users is None) != (shape.users is None) or (len(message), *message.sizes) != (rows, *shape[:2]):
            sizes = " + ".join(map(str, message.sizes))
            raise CodingError(f"it has {len(message)} rows of {sizes} bytes, not {rows} of {shape[0]} + {shape[1]}")
        if isinstance(shape.users, np.ndarray) and not are_among(users, shape.users):
            raise CodingError("it has rows of other users")
        if shape.places:
            places = message.overhead[message.rows(), 0].numpy().astype(np.int64)
            if (places >= shape.places).any():
                raise CodingError("it has rows at places that users do not have")
            return users * shape.places + places
        return users

    def _may_speak(self, node: Expecting, message: Message) -> bool:
        """Return whether the sender may speak for the users whose rows a message has, to this node."""
        users, topology = message.users, node.planner.topology
        if message.sender in self.homes:
            return users is not None and are_among(users, self.homes[message.sender])
        if message.sender == SERVER or (node.members is None and users is None):
            return True
        heard = topology.G[relay_number(message.sender)] == 1
        if node.members is None and message.kind in (MODELS, SHARES):
            return True
        known = np.arange(topology.K) if node.members is None else node.members
        return users is not None and are_among(users, known) and bool(heard[users].all())
