"""How rows travel: a recipe is what communicators differ in; a transport is a recipe for the rows of one learner.

K users.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from hmtl.coding import Aggregators, AggregatorSet, Loads
from hmtl.communication.accounting.network import Network
from hmtl.communication.attendance import Attendance
from hmtl.communication.codecs.plain import AggregatorCoder, UserCoder
from hmtl.communication.codecs.wires import Wire
from hmtl.communication.flows.flow import Flow, Shape
from hmtl.communication.flows.planner import Planner
from hmtl.communication.messages import Message
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.sides import AggregatorSide, PlayedAggregator, PlayedUsers, RowMeaning, UserSide
from hmtl.io.arrays import Ids
from hmtl.io.row_layout import RowLayout
from hmtl.topology import Moving, Topology

RECEIPT = 32  # bits, beside each user's own model, that say in which round the user's IV counted last


def unknown_format(row_format: str) -> str:
    """Return why rows of a format are refused, if no rows travel in it."""
    return f"its format is {row_format}. Start all nodes with the same communicator.wire"


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """How rows travel, whatever the learner: data that is equal at all nodes.

    Attributes:
        aggregators: who computes the models, see `hmtl.coding.resolve`.
        wire: the format in which numbers travel, see `hmtl.communication.codecs.wires`; None: their own type.
        secure: settings of secure sums; None: relays and server see what users send.
        tiers: the tiers whose loads depend on the recipe; on the others, there is a row for each user.
        adds: whether users send terms, which relays add as they hear them, so that they need not come all at once.
    """

    aggregators: Aggregators = field(default="auto", hash=False)
    wire: Wire = field(default=None, hash=False)
    secure: Secure | None = None

    tiers: ClassVar[tuple[str, ...]]
    adds: ClassVar[bool]

    @abstractmethod
    def nodes(self, contacts: Topology | Moving, network: Network) -> AggregatorSet:
        """Return the nodes that aggregate if they can, in all rounds.

        If users move, they are chosen once, for the first contacts.
        """

    @abstractmethod
    def planner(self, topology: Topology, network: Network, nodes: AggregatorSet) -> Planner:
        """Return the plans of a topology on which these nodes aggregate if they can."""

    @abstractmethod
    def transport(self, layout: RowLayout, K: int, meaning: RowMeaning | None = None) -> "Transport":
        """Return how a learner's rows travel.

        Args:
            layout: of the rows.
            K: number of users.
            meaning: what the rows mean if sums of them suffice; None: they travel as they are.
        """

    @abstractmethod
    def joined(
        self, users: UserSide, aggregator: AggregatorSide, planner: Planner
    ) -> tuple[PlayedUsers, PlayedAggregator, "Transport"]:
        """Return both sides as they are played, and how their rows travel.

        Rows become terms at the users if terms travel, and otherwise at the aggregator.

        Raises:
            CodingError: terms travel, but sums are not all that the aggregator needs.
            ConfigError: rows travel one by one, but noise protects users only in sums.
        """

    @abstractmethod
    def bounds(self, planner: Planner) -> Loads:
        """Return lower bounds of the loads for any scheme."""


@dataclass(frozen=True, eq=False)
class Transport(ABC):
    """How the rows of a learner travel.

    Attributes:
        recipe: how rows travel, whatever the learner.
        row_layout: of the rows that travel.
        K: number of users.
    """

    recipe: Recipe
    row_layout: RowLayout
    K: int

    @property
    @abstractmethod
    def lengths(self) -> Mapping[str, tuple[int, int]]:
        """For each format in which users' rows may travel, the bytes of a row, and of what is learned of rows.

        Formats are in `formats.FORMATS`.
        """

    @property
    @abstractmethod
    def tier_bits(self) -> dict[str, int]:
        """The bits of a row of each tier."""

    @abstractmethod
    def model(self, row: Tensor, row_format: str) -> int:
        """Return the bytes of the payload of a model with this overhead, uint8 [1, bytes], and in this format.

        Raises:
            CodingError: no model has such an overhead, or such a format.
        """

    def delivered(self, planner: Planner, message: Message) -> Shape:
        """Return the shape of models that a relay sends users; raise CodingError if it sends none such."""
        nbytes = self.model(message.overhead[:1], message.format)
        return Shape(nbytes, message.overhead.shape[1], True, format=message.format)

    @abstractmethod
    def user_coder(self, members: Ids) -> UserCoder:
        """Return the coder of a host with these members."""

    @abstractmethod
    def aggregator_coder(self) -> AggregatorCoder:
        """Return the coder of an aggregator."""

    @abstractmethod
    def flow(self, planner: Planner, attendance: Attendance, sizes: tuple[int, int]) -> Flow[Any]:
        """Return the flow of a round with this attendance; `sizes` are the bytes of payload and overhead of a row."""

    @abstractmethod
    def arrived(
        self, planner: Planner, members: Ids, messages: Sequence[Message]
    ) -> tuple[Ids, Tensor, Tensor, str] | None:
        """Return those of a host's users whose models arrived, and payload, overhead and format of these models.

        There is one row for each of these users, or one row for all of them. None: there are no such users.
        """

    @abstractmethod
    def loads(self, planner: Planner) -> Loads:
        """Return the loads of a round in which everybody takes part, by formula."""

    @abstractmethod
    def describe(self, planner: Planner) -> dict[str, Any]:
        """Return what `summary.json` reports about these rows on a topology, with a `note` on their format."""

    def uncoded(self, sent: dict[str, Any], attendance: Attendance) -> dict[str, Any]:
        """Return the bits of a round by tier if users sent and received uncoded rows instead.

        Args:
            sent: the bits of the round by tier.
            attendance: of the round.
        """
        return sent


@lru_cache(8)  # flows are large
def flow_of(transport: Transport, planner: Planner, attendance: Attendance, sizes: tuple[int, int]) -> Flow[Any]:
    """Return the flow of a round; it is made once for all nodes of a process."""
    return transport.flow(planner, attendance, sizes)
