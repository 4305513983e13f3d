"""Nodes of a round of partial demands: relays learn what their users' models need. K users, H relays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.agreement import DIGEST_BYTES, Digest
from hmtl.communication.attendance import numbers_to_bytes
from hmtl.communication.coders import AggregatorCoder
from hmtl.communication.messages import MODELS, Message, Users
from hmtl.communication.nodes.aggregation import Aggregation, AggregatorSide
from hmtl.communication.nodes.coding import CodingRelay, CodingServer
from hmtl.communication.nodes.phases import Phase
from hmtl.communication.planning.pieces import Segment, together
from hmtl.communication.planning.planner import PartialPlanner
from hmtl.errors import CodingError

MakeCoder = Callable[[Users, Users], AggregatorCoder]


class PartialAggregation(Aggregation):
    """The aggregation of one relay, which computes the models of the users whom it `serves` from the IVs it `demands`.

    The relay may learn further IVs, which are coded together with those that it demands.
    """

    def __init__(
        self, K: int, aggregator: AggregatorSide, coder: AggregatorCoder, serves: Users, demands: Users
    ) -> None:
        super().__init__(K, aggregator, coder)
        self.serves, self.demands = serves, demands

    def update(self, digest: bytes, dtype: torch.dtype, rounds: int = 0) -> None:
        """Drop the IVs that the relay does not demand, and compute the models; see `Aggregation.update`."""
        if len(self.users) > len(self.demands):
            at = self.places(self.demands)
            self.users, self.ivs = self.demands, {part: ivs[at] for part, ivs in self.ivs.items()}
        super().update(digest, dtype, rounds)

    def _compute(self, ivs: Tensor, rounds: int) -> Tensor:
        return self.aggregator.part(self.serves, self.users, ivs, rounds)

    def _receipts(self) -> Tensor:
        return torch.from_numpy(numbers_to_bytes(np.full(len(self.serves), self._round)).reshape(-1, 4))


class PartialRelay(CodingRelay):
    """A relay that decodes the IVs that it demands, and computes its users' models.

    Args:
        i, planner, hosts: see `Relay`.
        aggregator: computes the models.
        coder: makes the coder of the relay, given the users whom it hears of and those whom it serves.
    """

    planner: PartialPlanner

    def __init__(
        self,
        i: int,
        planner: PartialPlanner,
        hosts: Sequence[str],
        aggregator: AggregatorSide,
        coder: MakeCoder,
    ) -> None:
        self.serves, self.demands = np.flatnonzero(planner.serving == i), np.flatnonzero(planner.demands[i])
        own_coder = coder(self.demands, self.serves)
        aggregation = PartialAggregation(planner.topology.K, aggregator, own_coder, self.serves, self.demands)
        super().__init__(i, planner, hosts, aggregation)
        self._by_block: dict[int, Digest] = {}  # a digest for each code, by the number of its first block

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"aggregation": self.aggregation.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.aggregation.load_state_dict(state["aggregation"])

    def attend(self, messages: Sequence[Message]) -> None:
        super().attend(messages)
        self._by_block = {}

    def confirm(self) -> list[Message]:
        """Send one digest for each code, of what the relay decoded by it."""
        if self.phase is not Phase.AGGREGATED:
            return []
        return [self._digests(b"".join(self._by_block[number].value() for number in sorted(self._by_block)))]

    def deliver(self) -> list[Message]:
        """Send the models to the users whom the relay serves, if all relays agree."""
        if self._models is None:
            return []
        return [self._to_users(MODELS, self._models.payload, self._models.overhead, self.serves)]

    def _digest_of(self, segment: Segment) -> Digest:
        return self._by_block.setdefault(segment.number, Digest())

    def _add_uncoded(self) -> None:
        """Add nothing: relays demand different IVs."""

    def _keeps_ivs(self) -> bool:
        users = np.union1d(self.demands, self.planner.code(self.attendance).learned(self.i))
        return self.aggregation.open(self.round, self.name, users, *self.sizes)


class PartialServer(CodingServer):
    """A server that requires everybody to take part, and compares digests code by code."""

    planner: PartialPlanner

    def _announce(self) -> list[Message]:
        """Announce that everybody takes part.

        Raises:
            CodingError: somebody does not. No other IV can stand in for a missing one.
        """
        messages = super()._announce()
        unheard = np.setdiff1d(self.topology.present, self.attendance.users)
        away = sorted(set(self.planner.preferred).difference(self.attendance.aggregators))
        if len(unheard) or away:
            names = self.topology.names
            who = f"relay {names.relay(away[0])}" if away else f"user {names.user(unheard[0])}"
            raise CodingError(
                f"{who} took no part in round {self.round}, but communicator=partial needs every user and relay in "
                "every round. Set communicator=coded."
            )
        return messages

    def _comparable(self, received: Mapping[int, bytes]) -> Iterator[Mapping[int, bytes]]:
        """Yield the digests of each code, by relay that decoded it."""
        unread, code = dict(received), self.planner.code(self.attendance)
        for number, _ in together(code.plan):
            deciding = [i for i in code.receivers(number) if i in unread]
            yield {i: unread[i][:DIGEST_BYTES] for i in deciding}
            unread |= {i: unread[i][DIGEST_BYTES:] for i in deciding}
