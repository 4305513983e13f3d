"""The server as a node of the network. K users, H relays."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.accounting.ledger import SERVER_TO_RELAYS
from hmtl.communication.attendance import Report, decide
from hmtl.communication.messages import (
    AGREED,
    ATTENDANCE,
    BROADCAST,
    IN_VAIN,
    MODELS,
    SERVER,
    STATE,
    VERDICT,
    Message,
    Users,
    note,
    relay_name,
)
from hmtl.communication.nodes.aggregator import Aggregation, Models
from hmtl.communication.planning.coder import Segment
from hmtl.communication.planning.planner import Planner
from hmtl.errors import CodingError


class Server:
    """It knows what relays sent to it. Where relays aggregate, that is not enough to know a single IV.

    Args:
        planner: of the network.
        aggregation: where the server itself aggregates; None where relays do.
    """

    name = SERVER

    def __init__(self, planner: Planner, aggregation: Aggregation | None) -> None:
        self.aggregation = aggregation
        self.version = 0  # rounds that relays have aggregated
        self.empty = False
        self.silent: set[int] = set()  # relays of whom a message is missing in this attempt
        self.handed_over = 0  # bits of the state that relays were handed in this round
        self.follow(planner)

    def follow(self, planner: Planner) -> None:
        """Go on where the contacts are those of this planner."""
        self.planner, self.t = planner, planner.topology

    def attend(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """From the relays' reports: who is there, and who does what. All relays that are there learn it."""
        self._round, self.handed_over = round, 0
        self._reports = {
            i: Report.from_bytes(message.overhead[0].numpy(), self.t, i)
            for i, message in zip(map(relay_of, messages), messages, strict=True)
        }
        return self._announce()

    def attend_again(self) -> list[Message]:
        """As if the relays that fell silent had not reported."""
        for i in self.silent:
            del self._reports[i]
        return self._announce()

    def _announce(self) -> list[Message]:
        reports, self.silent = self._reports, set()
        content = decide(self.t, reports, self.version, self.planner.home).to_bytes(self.t)
        self.attendance = self.planner.attendance(content.tobytes())
        self.empty = not (reports if self.aggregation else self.attendance.aggregating.any())
        self.sizes = max(((report.payload, report.overhead) for report in reports.values()), default=(0, 0))
        return list(self._to(np.flatnonzero(self.attendance.there), ATTENDANCE, *note(content)))

    def pass_state(self, messages: Sequence[Message]) -> list[Message]:
        """On to the relays that need it."""
        behind = np.flatnonzero(self.attendance.behind)
        self._lacks([self.attendance.source] if len(behind) else [], messages)
        copies = [copy for m in messages for copy in self._to(behind, STATE, m.payload, m.overhead)]
        self.handed_over += 8 * sum(message.overhead.numel() for message in (*messages, *copies))
        return copies

    def recode(self, segment: Segment, messages: Sequence[Message]) -> list[Message]:
        """Combinations of the relays' combinations, unless some of these are missing."""
        if self._lacks(self.attendance.heard.active, messages):
            return []
        received = torch.cat([getattr(message, segment.part) for message in messages])
        combinations = segment.recoded(received)
        code = self.planner.code(self.attendance)
        to = code.receivers(segment.number)
        if self.planner.network.medium == "broadcast":
            return list(self._to(np.array(to), BROADCAST, *segment.sides(combinations)))
        each = ((np.array([i]), combinations[: code.view(segment.number, i).need]) for i in to)
        return [copy for i, rows in each for copy in self._to(i, BROADCAST, *segment.sides(rows))]

    def compare(self, digests: Sequence[Message], models: Sequence[Message]) -> list[Message]:
        """Let the aggregators' models go to the users if all of them hold the same, and pass on those for other relays.

        Raises:
            CodingError: they do not.
        """
        found = {relay_of(message): message.overhead[0].numpy().tobytes() for message in digests}
        values = list(found.values())
        usual = max(values, key=values.count, default=b"")
        if odd := [i for i, value in found.items() if value != usual]:
            what = "decoded other IVs" if any(found[i][:16] != usual[:16] for i in odd) else "computed other models"
            raise CodingError(
                f"{_names(odd)} {what} than the other aggregators in round {self._round}: stopped before a wrong model "
                "spreads. Please report this with the topology, the scheme and the seed."
            )
        if self._lacks(self.attendance.aggregators, digests):
            return self._in_vain()
        if not found:
            return []
        self.version += 1
        verdict = self._to(np.array(list(found)), VERDICT, *note(np.array([AGREED], np.uint8)))
        return [*verdict, *(copy for m in models for copy in self._to_serving(m, m.of_users(), m.rows()))]

    def gather(self, messages: Sequence[Message]) -> None:
        """Uncoded: take the IVs that the relays passed on, unless some of these are missing."""
        if self.aggregation is None or self.empty or self._lacks(self.attendance.relays, messages):
            return
        self.aggregation.open(self._round, self.name, self.attendance.users, *self.sizes)
        self.aggregation.gather(messages)
        self._dtype = messages[0].dtype

    def aggregate(self) -> None:
        """Uncoded: compute the models of all IVs."""
        if self.aggregation is not None and not self.empty and not self.silent:
            self.aggregation.update(b"", self._dtype)

    def hand_back(self) -> list[Message]:
        """Uncoded: each user's model to a relay that hears the user."""
        if self.silent:
            return self._in_vain()
        models = self.aggregation.models(b"") if self.aggregation is not None else None
        if models is None:
            return []
        everybody = torch.arange(self.t.K)
        return list(self._to_serving(models, everybody.numpy(), everybody))

    def close(self) -> None:
        """Let go of the round's models."""
        if self.aggregation is not None:
            self.aggregation.close()

    def state_dict(self) -> dict[str, Tensor]:
        return {"version": torch.tensor(self.version)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.version = int(state["version"])

    def _lacks(self, relays: Sequence[int], messages: Sequence[Message]) -> bool:
        """Whether a message of one of these relays, or one earlier in this attempt, is missing."""
        if not self.silent:  # else others lack something, too
            self.silent = set(relays).difference(map(relay_of, messages))
        return bool(self.silent)

    def _in_vain(self) -> list[Message]:
        """Word to all that this attempt came to nothing."""
        return list(self._to(np.array(self.attendance.relays), VERDICT, *note(np.array([IN_VAIN], np.uint8))))

    def _to(self, relays: Users, kind: str, payload: Tensor, overhead: Tensor) -> Iterator[Message]:
        """The same to some relays: once where the medium is a broadcast, else a copy for each."""
        names = tuple(relay_name(i) for i in relays.tolist())
        copies: list[tuple[tuple[str, ...], int]] = [(names, self.t.H)] if names else []
        if self.planner.network.medium == "unicast":
            copies = [((name,), i) for name, i in zip(names, relays.tolist(), strict=True)]
        for receivers, link in copies:
            yield Message(self._round, SERVER_TO_RELAYS, kind, SERVER, receivers, link, payload, overhead)

    def _to_serving(self, models: Message | Models, of: Users, rows: Tensor) -> Iterator[Message]:
        """Models of some users, which are these rows, to the relays that serve them, each to one."""
        serving, by_way = self.planner.routes(self.attendance)
        for i in np.unique(serving[of][by_way[of]]).tolist():
            chosen = np.flatnonzero(by_way[of] & (serving[of] == i))
            users, at = of[chosen], rows[torch.from_numpy(chosen)]
            yield Message(
                self._round,
                SERVER_TO_RELAYS,
                MODELS,
                SERVER,
                (relay_name(i),),
                i,
                models.payload,
                models.overhead,
                users,
                at,
            )


def relay_of(message: Message) -> int:
    """The relay whose link to the server the message took."""
    assert isinstance(message.links, int)
    return message.links


def _names(relays: Sequence[int]) -> str:
    return f"relay{'s' * (len(relays) > 1)} {', '.join(map(str, relays))}"
