"""Relay and server where each relay computes its own users' models, and learns the IVs alone that these need.

K users, H relays.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.attendance import numbers_to_bytes
from hmtl.communication.digest import DIGEST_BYTES, Digest
from hmtl.communication.encoding import pack, put, unpack
from hmtl.communication.messages import AGREED, DIGESTS, MODELS, VERDICT, Message, note
from hmtl.communication.nodes.aggregator import AggregatorSide, Models
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.server import Server, relay_of
from hmtl.communication.planning.coder import Segment, together
from hmtl.communication.planning.partial import PartialPlanner
from hmtl.errors import CodingError


class PartialRelay(Relay):
    """Relay i: beside what it heard, it learns what it demands and did not hear.

    Args:
        i: its number.
        planner: of the network.
        aggregator: computes models from some IVs, see `AggregatorSide.part`.
        numbers: m.
        wire: how numbers travel; None: as they are.
        hosts, sure: see `Relay`.
    """

    planner: PartialPlanner

    def __init__(
        self,
        i: int,
        planner: PartialPlanner,
        aggregator: AggregatorSide,
        numbers: int,
        wire: torch.dtype | None,
        hosts: Sequence[str],
        sure: bool = False,
    ) -> None:
        super().__init__(i, planner, None, hosts, sure)
        self.aggregator, self.numbers, self.wire = aggregator, numbers, wire
        self.serves = np.flatnonzero(planner.serving == i)
        self.demands = np.flatnonzero(planner.demands[i])

    def attend(self, messages: Sequence[Message]) -> None:
        super().attend(messages)
        self._digests: dict[int, Digest] = {}  # by the first block of a code
        if self.there and self._aggregates:  # the IVs that it demands
            self._known = {
                part: torch.empty(len(self.demands), ivs.shape[1], dtype=torch.uint8) for part, ivs in self._ivs.items()
            }

    def _keep(self, segment: Segment, decoded: Tensor, check: Tensor) -> None:
        self._digests.setdefault(segment.number, Digest()).add(check)
        at = np.searchsorted(self.demands, segment.users[self._view(segment).missing])
        segment.put(decoded, self._known[segment.part], torch.from_numpy(at))

    def finish(self) -> None:
        """What the relay demands is known: what was not coded, it heard."""
        if self._aggregates and not self._stuck:
            row = self._row[self.demands]
            at, heard = torch.from_numpy(np.flatnonzero(row >= 0)), torch.from_numpy(row[row >= 0])
            for part, ivs in self._ivs.items():
                put(self._known[part], at, ivs, heard)

    def aggregate(self) -> None:
        """Compute the models of the users whom it serves."""
        if self._stuck or not self._aggregates:
            return
        wire = self.wire or self._dtype
        ivs = unpack(self._known["payload"], self._known["overhead"], wire, self._dtype)
        models = self.aggregator.part(self.serves, self.demands, ivs, self.version)
        if len(models) != len(self.serves):
            raise CodingError(
                f"The aggregator gave models of shape {tuple(models.shape)} for {len(self.serves)} users: its part has "
                "to return a row of numbers for each user asked for."
            )
        payload, extras = pack(models, self.numbers, wire)
        receipts = torch.from_numpy(numbers_to_bytes(np.full(len(models), self._round)).reshape(-1, 4))
        self._models = Models(payload, torch.cat([extras, receipts], dim=1))

    def confirm(self) -> list[Message]:
        """A digest of what it decoded by each code, for the server."""
        if self._stuck or not self._aggregates:
            return []
        digests = b"".join(self._digests[number].value() for number in sorted(self._digests))
        return [self._up(DIGESTS, *note(np.frombuffer(digests, np.uint8).copy()))]

    def deliver(self) -> list[Message]:
        """Once the server says that all agree, the models to the users whom the relay serves."""
        if not self._agreed or self._models is None:
            return []
        self.version += 1
        return [self._down(MODELS, self._models.payload, self._models.overhead, self.serves)]

    def close(self) -> None:
        super().close()
        self._known = {}


class PartialServer(Server):
    """It makes sure that everybody is there, and that the relays that decode a block hold the same."""

    planner: PartialPlanner

    def _announce(self) -> list[Message]:
        """Who is there: all.

        Raises:
            CodingError: somebody is not. What could stand in for its IV, not all know who need it.
        """
        attendance = super()._announce()
        unheard = np.setdiff1d(self.t.present, self.attendance.users)
        away = sorted(set(self.planner.home).difference(self.attendance.aggregators))
        if len(unheard) or away:
            who = f"relay {away[0]}" if away else f"user {unheard[0]}"
            raise CodingError(
                f"{who} took no part in round {self._round}, and where relays learn a part of all IVs there is no "
                "stand-in. Set communicator=coded."
            )
        return attendance

    def compare(self, digests: Sequence[Message], models: Sequence[Message]) -> list[Message]:
        """Let the models go to the users if the relays that decoded a block hold the same of it.

        Raises:
            CodingError: they do not.
        """
        home = self.attendance.aggregators
        if self._lacks(home, digests):
            return self._in_vain()
        left = {relay_of(message): message.overhead[0].numpy().tobytes() for message in digests}
        code = self.planner.code(self.attendance)
        for number, _ in together(code.plan):
            found = {}
            for i in code.receivers(number):
                found[i], left[i] = left[i][:DIGEST_BYTES], left[i][DIGEST_BYTES:]
            values = list(found.values())
            usual = max(values, key=values.count)
            if odd := [i for i, value in found.items() if value != usual]:
                raise CodingError(
                    f"relay {odd[0]} decoded other IVs than the other relays that need them in round {self._round}: "
                    "stopped before a wrong model spreads. Please report this with the topology, the needs and the "
                    "seed."
                )
        self.version += 1
        return list(self._to(np.array(home), VERDICT, *note(np.array([AGREED], np.uint8))))
