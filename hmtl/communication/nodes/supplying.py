"""Nodes of a round in which the server aggregates beside relays. K users, H relays.

Relays forward IVs to the server, which learns them all. It supplies the aggregators among the relays with combinations
of the IVs that they missed, and the others with the models of their users.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hmtl.communication.agreement import Digest
from hmtl.communication.encoding import take
from hmtl.communication.messages import AGREED, IN_VAIN, STATE, Message, overhead_only
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.coding import CodingRelay, CodingServer
from hmtl.communication.nodes.forwarding import ForwardingRelay, ForwardingServer
from hmtl.communication.planning.pieces import Segment
from hmtl.communication.planning.planner import Planner

OF_SERVER = -1  # number of the server among those that confirm


class SuppliedRelay(CodingRelay, ForwardingRelay):
    """A relay that forwards IVs. If it aggregates, it decodes what it missed and computes the models.

    Args: as in `AggregatingRelay`.
    """

    def decode(self, segment: Segment, messages: Sequence[Message]) -> None:
        if self.aggregating:
            self._cut(segment)
        super().decode(segment, messages)

    def _carriers(self, models: int) -> NDArray[np.int64]:
        """Return no relay, because the server computes these models itself."""
        return np.full(models, OF_SERVER)


class AggregatingServer(ForwardingServer, CodingServer):
    """A server that aggregates the IVs that relays forward, and supplies aggregators with those that they missed.

    Args: as in `ForwardingServer`.
    """

    def __init__(self, planner: Planner, aggregation: Aggregation) -> None:
        super().__init__(planner, aggregation)
        self._digest = Digest()

    def send_state(self) -> list[Message]:
        """Send the IVs of missed rounds, or the state, to the aggregators that missed a round."""
        self._digest = Digest()
        behind = np.flatnonzero(self.attendance.behind).tolist()
        if not behind:
            return []
        content = self.aggregation.missed(self.attendance.missed)
        copies = self._to(behind, STATE, *overhead_only(content))
        self.handover_bits += 8 * len(copies) * content.nbytes
        return copies

    def supply(self, segment: Segment) -> list[Message]:
        """Send combinations of the IVs, unless some of these are missing."""
        if self.silent:
            return []
        pieces = segment.cut(self.aggregation.ivs[segment.part], self.aggregation.places(segment.users))
        self._digest.add(segment.check(pieces))
        return self._to_receivers(segment, segment.recoded(pieces))

    def aggregate(self) -> None:
        """Compute the models of all IVs."""
        if self.empty or self.silent:
            return
        if self.attendance.aggregators:  # which confirm that they hold the same IVs
            at = self.aggregation.places(self.planner.code(self.attendance).not_coded)
            for ivs in self.aggregation.ivs.values():
                self._digest.add_rows(take(ivs, at))
        self.aggregation.update(self._digest.value(), self._dtype)

    def compare(self, digests: Sequence[Message], models: Sequence[Message]) -> list[Message]:
        """Release the models if all aggregators hold those of the server; send the others' users theirs.

        Raises:
            CodingError: a relay holds different IVs or models.
        """
        self._check(digests)
        if self._lacks(self.attendance.aggregators, digests):
            self.aggregation.roll_back()
            return self._verdict(IN_VAIN, self.attendance.relays)
        computed = self.aggregation.models(self._digest.value())
        if self.empty or computed is None:
            return []
        self.version += 1
        return [*self._verdict(AGREED, self.attendance.aggregators), *self._model_messages(computed)]

    def _comparable(self, received: Mapping[int, bytes]) -> Iterator[Mapping[int, bytes]]:
        """Yield the digests of the server and of one relay."""
        if models := self.aggregation.models(self._digest.value()):
            for i, digest in received.items():
                yield {OF_SERVER: self._digest.value() + models.digest, i: digest}
