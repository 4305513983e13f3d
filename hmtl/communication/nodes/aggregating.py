"""Nodes of a round in which relays aggregate, however the IVs or their sums reach them. K users, H relays.

Aggregators that missed a round are handed the state of another. All aggregators confirm by digests that they hold the
same models, which the server compares before any user gets one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.agreement import DIGEST_BYTES, Digest, deviating
from hmtl.communication.messages import (
    AGREED,
    DIGESTS,
    IN_VAIN,
    MODELS,
    RECEIPTS,
    STATE,
    Message,
    nothing,
    overhead_only,
)
from hmtl.communication.nodes.aggregation import Aggregation, PackedModels
from hmtl.communication.nodes.base import Relay, Server, relay_of
from hmtl.communication.nodes.phases import Event, Phase
from hmtl.communication.planning.planner import Planner
from hmtl.errors import CodingError


class AggregatingRelay(Relay):
    """A relay that computes the models if it aggregates.

    Args:
        i, planner, hosts: see `Relay`.
        aggregation: computes the models; relays of one process share it.

    Attributes:
        adopted: the version of the last state that it adopted; 0: none.
    """

    def __init__(self, i: int, planner: Planner, hosts: Sequence[str], aggregation: Aggregation) -> None:
        super().__init__(i, planner, hosts)
        self.aggregation = aggregation
        self.adopted = 0
        self._digest = Digest()
        self._models: PackedModels | None = None

    @property
    def aggregating(self) -> bool:
        """Whether the relay computes models in this attempt: it aggregates, and lacks no message."""
        return self.phase is Phase.ATTENDING and bool(self.attendance.aggregating[self.i])

    def attend(self, messages: Sequence[Message]) -> None:
        super().attend(messages)
        self._digest = Digest()

    def send_state(self) -> list[Message]:
        """Send the IVs of missed rounds, or this aggregator's state, if the server names this relay as the source."""
        if self.attendance.source != self.i:
            return []
        return [self._to_server(STATE, *overhead_only(self.aggregation.missed(self.attendance.missed, self.adopted)))]

    def adopt_state(self, messages: Sequence[Message]) -> None:
        """Repeat the rounds that this relay missed, or adopt another relay's state."""
        if self.attendance.behind[self.i] and not messages:
            self._on(Event.MISS)
        for message in messages:
            whole = self.aggregation.catch_up(message.overhead[0].numpy(), self.dtype)
            self.version = self.aggregation.version
            self.adopted = self.version if whole else self.adopted

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"adopted": torch.tensor(self.adopted)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.adopted = int(state["adopted"])

    def aggregate(self) -> None:
        """Compute the models."""
        if not self.aggregating:
            return
        digest = self._digest.value()
        if self._keeps_ivs():
            self.aggregation.update(digest, self.dtype)
        self._models = self.aggregation.models(digest)
        self._on(Event.AGGREGATE)

    def confirm(self) -> list[Message]:
        """Send digests to the server, and the models of users whom no aggregator hears."""
        if self.phase is not Phase.AGGREGATED:
            return []
        models, ivs = self._models, self._digest.value()
        digests = self._digests(ivs + (models.digest if models else bytes(DIGEST_BYTES)))
        return [digests, *(self._to_pass_on(models) if models else [])]

    def conclude(self, verdict: Sequence[Message], models: Sequence[Message]) -> None:
        super().conclude(verdict, models)
        if self.phase is Phase.AGREED:
            self.version += 1
        else:
            self._models = None
        if self.phase in (Phase.IN_VAIN, Phase.UNCONFIRMED):
            self.aggregation.roll_back()

    def deliver(self) -> list[Message]:
        """Send users the models that the server passed on, and those that the relay computed.

        The latter are sent only if all aggregators agree. In a round without aggregators, send receipts instead, which
        say that no IV counted.
        """
        nobody = not self.planner.server and not self.attendance.aggregating.any()
        if self.phase is not Phase.ABSENT and nobody:
            users = np.flatnonzero(self.attendance.routes.serving == self.i)
            not_counted = torch.zeros(len(users), 1, dtype=torch.uint8)
            return [self._to_users(RECEIPTS, nothing(len(users)), not_counted, users)]
        return self._deliver()

    def _deliver(self) -> list[Message]:
        """Send users the models that the server passed on, and those that the relay computed."""
        serving, via_server = self.attendance.routes
        messages = super().deliver()
        if self._models:
            users = np.flatnonzero((serving == self.i) & ~via_server)
            at = torch.from_numpy(users)
            messages.append(self._to_users(MODELS, self._models.payload, self._models.overhead, users, at))
        return messages

    def close(self) -> None:
        super().close()
        self._models = None
        self.aggregation.close()

    def _to_pass_on(self, models: PackedModels) -> list[Message]:
        """Return the models that this relay sends to the server for users whom no aggregator hears."""
        users = np.flatnonzero(self.attendance.routes.via_server)
        users = users[self._carriers(len(users)) == self.i]
        at = torch.from_numpy(users)
        return [self._to_server(MODELS, models.payload, models.overhead, users, at)] if len(users) else []

    def _carriers(self, models: int) -> NDArray[np.int64]:
        """Return the aggregator that sends each model to the server, for users whom no aggregator hears."""
        return self.planner.code(self.attendance).carriers(models)

    def _keeps_ivs(self) -> bool:
        """Return whether this relay keeps the IVs for all aggregators of its process."""
        return self.aggregation.open(self.round, self.name, self.attendance.users, *self.sizes)

    def _digests(self, content: bytes) -> Message:
        return self._to_server(DIGESTS, *overhead_only(np.frombuffer(content, np.uint8).copy()))


class ComparingServer(Server):
    """A server that hands over aggregators' states, and compares their digests."""

    def pass_state(self, messages: Sequence[Message]) -> list[Message]:
        """Pass an aggregator's state on to the relays that missed a round."""
        behind = np.flatnonzero(self.attendance.behind).tolist()
        self._lacks([self.attendance.source] if behind else [], messages)
        copies = [copy for m in messages for copy in self._to(behind, STATE, m.payload, m.overhead)]
        self.handover_bits += 8 * sum(message.overhead.numel() for message in (*messages, *copies))
        return copies

    def compare(self, digests: Sequence[Message], models: Sequence[Message]) -> list[Message]:
        """Release the models if all aggregators hold the same ones; pass on those for users whom no aggregator hears.

        Raises:
            CodingError: the aggregators hold different IVs or models.
        """
        received = self._check(digests)
        if self._lacks(self.attendance.aggregators, digests):
            return self._verdict(IN_VAIN, self.attendance.relays)
        if not received:
            return []
        self.version += 1
        return [*self._verdict(AGREED, list(received)), *(copy for m in models for copy in self._pass_on(m))]

    def _check(self, digests: Sequence[Message]) -> dict[int, bytes]:
        """Return the aggregators' digests by relay; raise CodingError if they differ."""
        received = {relay_of(message): message.overhead[0].numpy().tobytes() for message in digests}
        for comparable in self._comparable(received):
            if odd := deviating(comparable):
                same_ivs = not deviating({i: digest[:DIGEST_BYTES] for i, digest in comparable.items()})
                what = "computed other models" if same_ivs else "learned other IVs or sums"
                names = ", ".join(map(str, self.topology.names.of_relays(odd)))
                raise CodingError(
                    f"relay{'s' * (len(odd) > 1)} {names} {what} than the other aggregators in "
                    f"round {self.round}. The run stops before a wrong model spreads. Please report this with the "
                    "topology, the settings of the communicator and the seed."
                )
        return received

    def _pass_on(self, models: Message) -> Iterable[Message]:
        """Return an aggregator's models to the relays that serve their users."""
        return self._to_serving(models, models.of_users(), models.rows())

    def _comparable(self, received: Mapping[int, bytes]) -> Iterator[Mapping[int, bytes]]:
        """Yield groups of digests, by relay; the digests in a group have to be equal."""
        yield received
