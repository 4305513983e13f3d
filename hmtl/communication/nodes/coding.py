"""Nodes of a coded round: relays combine IVs, the server recombines, relays decode. K users, H relays."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hmtl.communication.encoding import put, take
from hmtl.communication.messages import BROADCAST, COMBINATIONS, Message, nothing
from hmtl.communication.nodes.aggregating import AggregatingRelay, ComparingServer
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.phases import Event, Phase
from hmtl.communication.planning.pieces import Segment, View
from hmtl.communication.planning.planner import Planner
from hmtl.gf256 import matmul


class CodingRelay(AggregatingRelay):
    """A relay that encodes what it heard. If it aggregates, it decodes what it missed and computes the models.

    Args: as in `AggregatingRelay`.
    """

    def __init__(self, i: int, planner: Planner, hosts: Sequence[str], aggregation: Aggregation) -> None:
        super().__init__(i, planner, hosts, aggregation)
        self._heard = nothing(0)  # the pieces that it heard of the segment that is being coded

    def encode(self, segment: Segment) -> list[Message]:
        """Send combinations of the pieces that the relay heard."""
        if self.phase is Phase.STUCK or self.i not in self.attendance.heard.active:
            return []
        self._cut(segment)
        return [self._to_server(COMBINATIONS, *segment.sides(matmul(self._view(segment).encoder, self._heard)))]

    def decode(self, segment: Segment, messages: Sequence[Message]) -> None:
        """Decode the pieces that the relay missed, from the server's combinations and the pieces that it heard."""
        if self.phase is Phase.STUCK or self.i not in self.planner.code(self.attendance).receivers(segment.number):
            return
        view = self._view(segment)
        if not messages and view.need:
            self._on(Event.MISS)
            return
        received = getattr(messages[0], segment.part)[: view.need] if messages else self._heard[:0]
        decoded = view.decode(received, self._heard)
        self._digest.add(view.check(self._heard, decoded, len(segment.blocks)))
        if self._keeps_ivs():
            places = self.aggregation.places(segment.users[view.missing])
            segment.put(decoded, self.aggregation.ivs[segment.part], places)

    def finish(self) -> None:
        """Complete the decoded IVs with those that the relay heard."""
        self._heard = nothing(0)
        if not self.aggregating:
            return
        at = torch.from_numpy(self._row[self.planner.code(self.attendance).not_coded])  # every aggregator heard these
        for ivs in self._ivs.values():
            self._digest.add_rows(take(ivs, at))
        if self._keeps_ivs():
            rows = torch.from_numpy(self._row[self.aggregation.users])
            at = torch.nonzero(rows >= 0).ravel()
            for part, ivs in self._ivs.items():
                put(self.aggregation.ivs[part], at, ivs, rows[at])

    def _cut(self, segment: Segment) -> None:
        """Cut what it heard of a segment into pieces."""
        users = segment.users[self._view(segment).heard]
        self._heard = segment.cut(self._ivs[segment.part], torch.from_numpy(self._row[users]))

    def _view(self, segment: Segment) -> View:
        return self.planner.code(self.attendance).view(segment.number, self.i)


class CodingServer(ComparingServer):
    """A server that recombines the relays' combinations, which it cannot decode, and compares their digests."""

    def recode(self, segment: Segment, messages: Sequence[Message]) -> list[Message]:
        """Send combinations of the relays' combinations, unless some of the latter are missing."""
        if self._lacks(self.attendance.heard.active, messages):
            return []
        received = torch.cat([getattr(message, segment.part) for message in messages])
        return self._to_receivers(segment, segment.recoded(received))

    def _to_receivers(self, segment: Segment, combinations: Tensor) -> list[Message]:
        """Return a broadcast of the server's combinations, or for each receiver a copy of those that it needs."""
        code = self.planner.code(self.attendance)
        receivers = code.receivers(segment.number)
        if self.planner.network.medium == "broadcast":
            return self._to(receivers, BROADCAST, *segment.sides(combinations))
        needed = [(i, combinations[: code.view(segment.number, i).need]) for i in receivers]
        return [copy for i, rows in needed for copy in self._to([i], BROADCAST, *segment.sides(rows))]
