"""Nodes of a round of partial demands: relays learn what their users' models need.

K users, H relays.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.agreement import DIGEST_BYTES, Digest, deviating
from hmtl.communication.attendance import numbers_to_bytes
from hmtl.communication.encoding import pack, put, unpack
from hmtl.communication.messages import DIGESTS, MODELS, Message, overhead_only
from hmtl.communication.nodes.aggregation import AggregatorSide, PackedModels
from hmtl.communication.nodes.coding import CodingServer, DecodingRelay
from hmtl.communication.nodes.phases import Event, Phase
from hmtl.communication.nodes.server import relay_of
from hmtl.communication.planning.partial import PartialPlanner
from hmtl.communication.planning.pieces import Segment, together
from hmtl.errors import CodingError


class PartialRelay(DecodingRelay):
    """A relay that decodes the IVs that it demands, and computes its users' models.

    Args:
        i, hosts, reliable: see `Relay`.
        planner: plans of the network.
        aggregator: computes models from some IVs, see `AggregatorSide.part`.
        numbers: m, numbers of an IV.
        wire: the type in which numbers travel; None: their own.
    """

    planner: PartialPlanner

    def __init__(
        self,
        i: int,
        planner: PartialPlanner,
        hosts: Sequence[str],
        aggregator: AggregatorSide,
        numbers: int,
        wire: torch.dtype | None,
        reliable: bool = False,
    ) -> None:
        super().__init__(i, planner, hosts, reliable)
        self.aggregator, self.numbers, self.wire = aggregator, numbers, wire
        self.serves = np.flatnonzero(planner.serving == i)
        self.demands = np.flatnonzero(planner.demands[i])
        self._digests: dict[int, Digest] = {}  # by the first block of a code
        self._known: dict[str, Tensor] = {}  # payload and overhead of the IVs that it demands

    def attend(self, messages: Sequence[Message]) -> None:
        super().attend(messages)
        self._digests = {}
        if self.aggregating:
            self._known = {
                part: torch.empty(len(self.demands), ivs.shape[1], dtype=torch.uint8) for part, ivs in self._ivs.items()
            }

    def _keep(self, segment: Segment, decoded: Tensor, check: Tensor) -> None:
        self._digests.setdefault(segment.number, Digest()).add(check)
        at = np.searchsorted(self.demands, segment.users[self._view(segment).missing])
        segment.put(decoded, self._known[segment.part], torch.from_numpy(at))

    def finish(self) -> None:
        """Complete the decoded IVs with those that the relay heard."""
        if self.aggregating:
            row = self._row[self.demands]
            at, heard = torch.from_numpy(np.flatnonzero(row >= 0)), torch.from_numpy(row[row >= 0])
            for part, ivs in self._ivs.items():
                put(self._known[part], at, ivs, heard)
        if self.reliable:
            self._ivs = {}

    def aggregate(self) -> None:
        """Compute the models of the users whom the relay serves."""
        if not self.aggregating:
            return
        wire = self.wire or self.dtype
        ivs = unpack(self._known["payload"], self._known["overhead"], wire, self.dtype)
        models = self.aggregator.part(self.serves, self.demands, ivs, self.version)
        if len(models) != len(self.serves):
            raise CodingError(
                f"The aggregator returned models of shape {tuple(models.shape)} for {len(self.serves)} users. Let its "
                "`part` return one row for each user."
            )
        payload, extras = pack(models, self.numbers, wire)
        receipts = torch.from_numpy(numbers_to_bytes(np.full(len(models), self.round)).reshape(-1, 4))
        self._models = PackedModels(payload, torch.cat([extras, receipts], dim=1))
        self._on(Event.AGGREGATE)

    def confirm(self) -> list[Message]:
        """Send a digest of what the relay decoded by each code."""
        if self.phase is not Phase.AGGREGATED:
            return []
        digests = b"".join(self._digests[number].value() for number in sorted(self._digests))
        return [self._to_server(DIGESTS, *overhead_only(np.frombuffer(digests, np.uint8).copy()))]

    def deliver(self) -> list[Message]:
        """Send the models to the users whom the relay serves, if all relays agree."""
        if self._models is None:
            return []
        return [self._to_users(MODELS, self._models.payload, self._models.overhead, self.serves)]

    def close(self) -> None:
        super().close()
        self._known = {}


class PartialServer(CodingServer):
    """A server that requires everybody to take part, and compares digests by block."""

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
            who = f"relay {away[0]}" if away else f"user {unheard[0]}"
            raise CodingError(
                f"{who} took no part in round {self.round}, but communicator=partial needs every user and relay in "
                "every round. Set communicator=coded."
            )
        return messages

    def compare(self, digests: Sequence[Message], models: Sequence[Message]) -> list[Message]:
        """Release the models if the relays that decoded a block hold the same IVs.

        Raises:
            CodingError: they hold different IVs.
        """
        aggregators = self.attendance.aggregators
        if self._lacks(aggregators, digests):
            return self._in_vain()
        unread = {relay_of(message): message.overhead[0].numpy().tobytes() for message in digests}
        code = self.planner.code(self.attendance)
        for number, _ in together(code.plan):
            received = {}
            for i in code.receivers(number):
                received[i], unread[i] = unread[i][:DIGEST_BYTES], unread[i][DIGEST_BYTES:]
            if odd := deviating(received):
                raise CodingError(
                    f"relay {odd[0]} decoded other IVs than the other relays that need them in round {self.round}. The "
                    "run stops before a wrong model spreads. Please report this with the topology, the needs and the "
                    "seed."
                )
        self.version += 1
        return self._agreed(aggregators)
