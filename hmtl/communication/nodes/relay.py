"""A relay as a node of the network. K users, H relays."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, RELAYS_TO_USERS
from hmtl.communication.attendance import Report, bytes_to_numbers, numbers_to_bytes
from hmtl.communication.digest import Digest
from hmtl.communication.encoding import put
from hmtl.communication.messages import (
    AGREED,
    COMBINATIONS,
    DIGESTS,
    IN_VAIN,
    IVS,
    MODELS,
    RECEIPTS,
    REPORT,
    SERVER,
    STATE,
    Message,
    Users,
    note,
    nothing,
    relay_name,
)
from hmtl.communication.nodes.aggregator import Aggregation, Models
from hmtl.communication.planning.coder import Segment, View
from hmtl.communication.planning.planner import Planner
from hmtl.gf256 import matmul


class Relay:
    """Relay i: it knows what it heard, what the server sent to it, and what it made of these.

    Args:
        i: its number.
        planner: of the network.
        aggregation: where it aggregates; None where the server does.
        hosts: names of the hosts of the users.
        sure: whether no message can be lost, so that a round never has to be done again.
    """

    def __init__(
        self, i: int, planner: Planner, aggregation: Aggregation | None, hosts: Sequence[str], sure: bool = False
    ) -> None:
        self.i, self.name = i, relay_name(i)
        self.aggregation, self.hosts, self.sure = aggregation, tuple(hosts), sure
        self.version = 0  # rounds that it has aggregated
        self.there = self.again = self._stuck = False
        self._passed: Sequence[Message] = ()
        self._models: Models | None = None
        self.follow(planner)

    def follow(self, planner: Planner) -> None:
        """Go on where the contacts are those of this planner."""
        self.planner, self.t = planner, planner.topology
        self._hears = self.t.G[self.i].astype(bool)

    def hear(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """Take what the own users sent, and tell the server who they are."""
        self.there, self.again = bool(messages), False
        if not messages:
            return []  # of a round in which nobody even says how long IVs are
        self._round, self._dtype = round, messages[0].dtype
        places = [np.flatnonzero(self._hears[message.of_users()]) for message in messages]
        if len(messages) == 1:  # many users at once, and those not heard are left where they are
            self._ivs = {"payload": messages[0].payload, "overhead": messages[0].overhead}
            rows = places[0]
        else:
            self._ivs = {
                part: _gathered([getattr(message, part) for message in messages], places)
                for part in ("payload", "overhead")
            }
            rows = np.arange(sum(map(len, places)))
        users = np.concatenate([message.of_users()[at] for message, at in zip(messages, places, strict=True)])
        self._row = np.full(self.t.K, -1)
        self._row[users] = rows
        self.sizes = self._ivs["payload"].shape[1], self._ivs["overhead"].shape[1]  # bytes of an IV, and beside it
        return [self._up(REPORT, *note(Report(users, self.version, *self.sizes).to_bytes(self.t, self.i)))]

    def attend(self, messages: Sequence[Message]) -> None:
        """Learn who is there, and who does what; without that, the relay is out of the round."""
        self.there, self.again, self._stuck = bool(messages), False, False
        if not messages:
            return
        self.attendance = self.planner.attendance(messages[0].overhead.numpy().tobytes())
        self._aggregates = bool(self.attendance.aggregating[self.i])
        self._digest = Digest()

    def tell_state(self) -> list[Message]:
        """What an aggregator needs to go on, if the server asked for it."""
        if self.attendance.source != self.i or self.aggregation is None:
            return []
        content = np.concatenate([numbers_to_bytes([self.version]), self.aggregation.state_bytes()])
        return [self._up(STATE, *note(content))]

    def take_state(self, messages: Sequence[Message]) -> None:
        """Go on from another relay's state, if that was asked for; without it, the relay is stuck."""
        self._stuck = bool(self.attendance.behind[self.i]) and not messages
        for message in messages:
            assert self.aggregation is not None
            content = message.overhead[0].numpy()
            self.version = int(bytes_to_numbers(content[:4])[0])
            self.aggregation.adopt(content[4:])

    def encode(self, segment: Segment) -> list[Message]:
        """Combinations of the pieces that the relay heard."""
        if self._stuck or self.i not in self.attendance.heard.active:
            return []
        view = self._view(segment)
        users = segment.users[view.heard]
        self._heard = segment.cut(self._ivs[segment.part], torch.from_numpy(self._row[users]))
        return [self._up(COMBINATIONS, *segment.sides(matmul(view.encoder, self._heard)))]

    def decode(self, segment: Segment, messages: Sequence[Message]) -> None:
        """The pieces that the relay missed, from the server's combinations and its own pieces.

        Without enough of these the relay is stuck: it waits for what the server says of this attempt.
        """
        if self._stuck or self.i not in self.planner.code(self.attendance).receivers(segment.number):
            return
        view = self._view(segment)
        if not messages and view.need:
            self._stuck = True
            return
        sent = getattr(messages[0], segment.part)[: view.need] if messages else self._heard[:0]
        decoded = view.decode(sent, self._heard)
        self._keep(segment, decoded, view.check(self._heard, decoded, len(segment.blocks)))

    def _keep(self, segment: Segment, decoded: Tensor, check: Tensor) -> None:
        """Take what was decoded, and its fingerprint."""
        self._digest.add(check)
        if seat := self._seat():
            missing = segment.users[self._view(segment).missing]
            segment.put(decoded, seat.ivs[segment.part], seat.place(missing))

    def finish(self) -> None:
        """All IVs are known: those that were not coded, every aggregator heard."""
        if self._stuck or not self._aggregates:
            return
        others = torch.from_numpy(self._row[self.planner.code(self.attendance).not_coded])
        for ivs in self._ivs.values():
            self._digest.add_rows(ivs[others])
        if seat := self._seat():
            mine = np.flatnonzero(self._row >= 0)
            at, rows = seat.place(mine), torch.from_numpy(self._row[mine])
            for part, ivs in self._ivs.items():
                put(seat.ivs[part], at, ivs, rows)

    def let_go(self) -> None:
        """Of what was heard, which may be large, keep no more than may be needed again."""
        if self.sure:
            self._ivs, self._heard = {}, nothing(0)

    def aggregate(self) -> None:
        """Compute the models."""
        if self._stuck or not self._aggregates:
            return
        if seat := self._seat():
            seat.update(self._digest.value(), self._dtype)
        assert self.aggregation is not None
        self._models = self.aggregation.models(self._digest.value())

    def confirm(self) -> list[Message]:
        """Digests of IVs and models for the server, and the models of the users whom no aggregator hears."""
        if self._stuck or not self._aggregates:
            return []
        ivs, models = self._digest.value(), self._models
        made = models.digest if models else bytes(len(ivs))
        messages = [self._up(DIGESTS, *note(np.frombuffer(ivs + made, np.uint8).copy()))]
        _, by_way = self.planner.routes(self.attendance)
        users = np.flatnonzero(by_way)
        users = users[self.planner.code(self.attendance).carriers(len(users)) == self.i]
        if models and len(users):
            messages.append(self._up(MODELS, models.payload, models.overhead, users, torch.from_numpy(users)))
        return messages

    def forward(self) -> list[Message]:
        """Uncoded: the IVs that it is this relay's turn to pass on."""
        users = np.flatnonzero(self.planner.forwarders(self.attendance.heard) == self.i)
        at = torch.from_numpy(self._row[users])
        return [self._up(IVS, self._ivs["payload"], self._ivs["overhead"], users, at)]

    def conclude(self, verdict: Sequence[Message], passed: Sequence[Message]) -> None:
        """The server's word of this attempt: that all agree, or that it was in vain; and models that it passes on."""
        words = [bool(message.overhead[0, 0]) for message in verdict]
        self._agreed, self.again, self._passed = words == [AGREED], words == [IN_VAIN], passed
        computed, self._models = self._models is not None, self._models if self._agreed else None
        if self.aggregation is not None and (self.again or (computed and not self._agreed)):
            self.aggregation.take_back()

    def deliver(self) -> list[Message]:
        """Models to the users: those that the server passed on and, once it says that all agree, the relay's own.

        In a round without aggregators, word that nothing counted.
        """
        serving, by_way = self.planner.routes(self.attendance)
        if self.aggregation is not None and not self.attendance.aggregating.any():
            users = np.flatnonzero(serving == self.i)
            no = torch.zeros(len(users), 1, dtype=torch.uint8)
            return [self._down(RECEIPTS, nothing(len(users)), no, users)]
        messages = [self._down(MODELS, m.payload, m.overhead, m.of_users(), m.rows()) for m in self._passed]
        if self._agreed and self._models:
            self.version += 1
            users, models = np.flatnonzero((serving == self.i) & ~by_way), self._models
            messages.append(self._down(MODELS, models.payload, models.overhead, users, torch.from_numpy(users)))
        return messages

    def close(self) -> None:
        """Let go of the round's messages, which may be large."""
        self._ivs, self._models, self._heard, self._passed = {}, None, nothing(0), ()
        if self.aggregation is not None:
            self.aggregation.close()

    def state_dict(self) -> dict[str, Tensor]:
        return {"version": torch.tensor(self.version)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.version = int(state["version"])

    def _view(self, segment: Segment) -> View:
        return self.planner.code(self.attendance).view(segment.number, self.i)

    def _seat(self) -> Aggregation | None:
        """The place of the IVs, if it is this relay that keeps them for all aggregators of the process."""
        assert self.aggregation is not None
        users = self.attendance.users
        return self.aggregation if self.aggregation.open(self._round, self.name, users, *self.sizes) else None

    def _up(
        self, kind: str, payload: Tensor, overhead: Tensor, users: Users | None = None, at: Tensor | None = None
    ) -> Message:
        return Message(
            self._round, RELAYS_TO_SERVER, kind, self.name, (SERVER,), self.i, payload, overhead, users, at, self._dtype
        )

    def _down(
        self,
        kind: str,
        payload: Tensor,
        overhead: Tensor,
        users: Users,
        at: Tensor | None = None,
        links: int | None = None,
    ) -> Message:
        on, dtype = users if links is None else links, self._dtype
        return Message(
            self._round, RELAYS_TO_USERS, kind, self.name, self.hosts, on, payload, overhead, users, at, dtype
        )


def _gathered(sources: Sequence[Tensor], places: Sequence[NDArray[np.int64]]) -> Tensor:
    """These rows of each source, one below the other, and no other copy of them meanwhile."""
    made, end = sources[0].new_empty(sum(map(len, places)), sources[0].shape[1]), 0
    for source, at in zip(sources, places, strict=True):
        start, end = end, end + len(at)
        torch.index_select(source, 0, torch.from_numpy(at), out=made[start:end])
    return made
