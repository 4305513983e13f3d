"""Nodes of a round in which relays learn the sums: relays aggregate, and the server learns no sum of all terms.

Each aggregator adds the terms of users whom all aggregators heard. The terms of the others reach the server in shares,
as in `hmtl.communication.nodes.adding`; it sends their sum to the aggregators.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from hmtl.communication.messages import BROADCAST, MODELS, Message, nothing
from hmtl.communication.nodes.adding import AddingRelay, add_rows, add_shares, formats_of_terms
from hmtl.communication.nodes.aggregating import AggregatingRelay, ComparingServer
from hmtl.communication.nodes.aggregation import Aggregation, PackedModels
from hmtl.communication.nodes.phases import Event
from hmtl.communication.planning.planner import Planner
from hmtl.communication.row_formats import Formats


class SummingRelay(AddingRelay, AggregatingRelay):
    """A relay that adds up rows of its users. If it aggregates, it learns the sums and sends them to its users.

    Args: as in `AggregatingRelay`, and
        formats: the formats of rows.
    """

    def __init__(
        self, i: int, planner: Planner, hosts: Sequence[str], aggregation: Aggregation, formats: Formats
    ) -> None:
        AggregatingRelay.__init__(self, i, planner, hosts, aggregation)
        self.formats, self.note = formats, nothing(1)

    def forward(self) -> list[Message]:
        return super().forward() if self.attendance.aggregators else []

    def complete(self, messages: Sequence[Message]) -> None:
        """Add the terms of users whom all aggregators heard to the server's row, which has those of all others."""
        if not self.aggregating:
            return
        users, apart = self.attendance.users, np.array(self.attendance.apart.present, dtype=np.int64)
        if len(apart) and not messages:
            self._on(Event.MISS)
            return
        terms, sums = formats_of_terms(self.formats, self.sizes[0] if len(users) else 0)
        at = torch.from_numpy(self._row[np.setdiff1d(users, apart)])
        total = terms.added(self._ivs["payload"], at)
        further = [add_rows(self._ivs["overhead"], at), *(message.overhead for message in messages)]
        for message in messages:
            total += sums.unpack(message.payload)
        payload, overhead = sums.pack(total), torch.cat([add_rows(torch.cat(further)), self.note], dim=1)
        self._digest.add_rows(payload)
        self._digest.add_rows(overhead)
        if self._keeps_ivs():
            self.aggregation.keep(self.round, self.name, users, {"payload": payload, "overhead": overhead})

    def deliver(self) -> list[Message]:
        return AggregatingRelay.deliver(self)

    def _deliver(self) -> list[Message]:
        """Send users the row that the relay computed, or that the server passed on."""
        rows = [self._models] if self._models else self._passed
        return [message for row in rows for message in self._spread(row.payload, row.overhead)]

    def _to_pass_on(self, models: PackedModels) -> list[Message]:
        needed = set(self.attendance.holders) > set(self.attendance.aggregators)
        carries = needed and self.i == self.planner.carrier(self.attendance)
        return [self._to_server(MODELS, models.payload, models.overhead)] if carries else []

    def _keeps_ivs(self) -> bool:
        return self.aggregation.open(self.round, self.name, self.attendance.users, 0, 0)


class SummingServer(ComparingServer):
    """A server that adds the terms of users whom not all aggregators heard, and compares the aggregators' digests.

    Args: as in `Server`, and
        formats: the formats of rows.
    """

    def __init__(self, planner: Planner, formats: Formats) -> None:
        super().__init__(planner)
        self.formats = formats

    def plan(self) -> None:
        self.planner.plan_sums(self.attendance, self.formats.L)

    def add(self, messages: Sequence[Message]) -> list[Message]:
        """Send the aggregators the sum that the relays sent in shares, unless there is none or some are missing."""
        code = self.planner.sum_code(self.attendance.apart, self.formats.L)
        if self.empty or self._lacks(code.relays, messages) or not code.relays:
            return []
        return self._to(self.attendance.aggregators, BROADCAST, *add_shares(code, self.formats, self.sizes, messages))

    def _pass_on(self, models: Message) -> Iterable[Message]:
        others = [i for i in self.attendance.holders if not self.attendance.aggregating[i]]
        return self._to(others, MODELS, models.payload, models.overhead)
