"""A communicator for learners whose numbers travel in sections, each in its own way."""

from collections.abc import Collection, Sequence
from dataclasses import astuple
from typing import Any, Protocol, cast

import numpy as np

from hmtl.communication.accounting.ledger import TIERS
from hmtl.communication.communicators.base import Communicator, Planning
from hmtl.communication.flows.ivs import UNCODED
from hmtl.communication.round import Nodes, Outcome, Stopwatch
from hmtl.communication.sides import AggregatorSide, UserSide


class Sections(Protocol):
    """A side of a learner that consists of sides for sections of numbers."""

    sections: Sequence[Any]


class BySection(Communicator):
    """A communicator that plays a round for each section of a learner's numbers, each with a communicator of its own.

    The sections have the same absent relays. Each has a report, an attendance and receipts of its own: the update of
    one section counts whether or not that of the other does. The ledger has the bits of all.

    Args:
        parts: the communicators of the sections, over the same contacts and network; the last one describes who
            aggregates.
    """

    def __init__(self, *parts: Communicator) -> None:
        last = parts[-1]
        super().__init__(last.contacts, last.network, UNCODED, last.make_links)
        self.parts, self.planner = parts, last.planner
        for n, part in enumerate(parts):
            part.name = f"section {n}"

    def attach(self, users: UserSide, aggregator: AggregatorSide) -> None:
        for part, section_users, section_aggregator in self._sections(users, aggregator):
            part.attach(section_users, section_aggregator)

    def setup_nodes(self, users: UserSide, aggregator: AggregatorSide, number: int) -> Nodes:
        return self.parts[-1].setup_nodes(users, aggregator, number)

    def setup(self, users: UserSide, aggregator: AggregatorSide, number: int = 0) -> None:
        """Exchange the set-up of all sections by the last communicator."""
        part = self.parts[-1]
        before = part.ledger.latest()
        part.setup(users, aggregator, number)
        self.ledger.add_latest(part.ledger.latest() - before)
        self.setup_seconds = part.setup_seconds

    def round(
        self, number: int, users: UserSide, aggregator: AggregatorSide, absent_relays: Collection[int] = ()
    ) -> Outcome:
        self.follow(number)
        self.ledger.begin_round()
        self.stopwatch, outcomes = Stopwatch(), []
        for part, section_users, section_aggregator in self._sections(users, aggregator):
            outcomes.append(part.round(number, section_users, section_aggregator, absent_relays))
            self.ledger.add_latest(part.ledger.latest())
            for task, seconds in part.stopwatch.seconds.items():
                self.stopwatch.seconds[task] = self.stopwatch.seconds.get(task, 0.0) + seconds
        self.planning = Planning(*map(sum, zip(*(astuple(part.planning) for part in self.parts), strict=True)))
        self.V_bits = sum(part.V_bits for part in self.parts)
        counted = outcomes[0].users
        for outcome in outcomes[1:]:
            counted = np.intersect1d(counted, outcome.users)
        last = outcomes[-1]
        return Outcome(counted, last.relays, last.aggregators, any(outcome.empty for outcome in outcomes))

    def seconds(self, round: int | str = -1) -> float:
        return sum(part.seconds(round) for part in self.parts) if self.network.links else super().seconds(round)

    def uncoded_seconds(self) -> float:
        return sum(part.uncoded_seconds() for part in self.parts)

    def describe(self) -> dict[str, Any]:
        """Return what `summary.json` reports about communication; an IV is that of all sections together."""
        each = [part.describe() for part in self.parts]
        weights = [part.V_bits / (self.V_bits or 1) for part in self.parts]
        described = each[-1] | {
            "communicator": " + ".join(part["communicator"] for part in each),
            "V_bits": self.V_bits,
        }
        for name in ("loads", "loads_theory", "bounds"):  # a tier without an entry carries a row for each user
            loads = [{tier: part[name].get(tier, self.topology.K) for tier in TIERS} for part in each]
            described[name] = {
                tier: sum(weight * load[tier] for weight, load in zip(weights, loads, strict=True)) for tier in TIERS
            }
        if "secure" in described:
            added = [part["secure"]["overhead"] for part in each]
            described["secure"]["overhead"] = {tier: sum(bits[tier] for bits in added) for tier in TIERS}
        described.pop("note", None)
        return described

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)

    def _sections(self, users: UserSide, aggregator: AggregatorSide) -> "zip[tuple[Communicator, Any, Any]]":
        """Return the communicator, the user side and the aggregator side of each section."""
        sides = (cast(Sections, side).sections for side in (users, aggregator))
        return zip(self.parts, *sides, strict=True)
