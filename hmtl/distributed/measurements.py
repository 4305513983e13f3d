"""What the leading process collects from the others after each round: measurements, bits and seconds."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hmtl.communication import Communicator, LinkLedger, Outcome
from hmtl.communication.messages import SERVER, relay_name
from hmtl.distributed.control import Control
from hmtl.distributed.placement import Placement
from hmtl.distributed.remote_tasks import report_data, with_report_data
from hmtl.errors import EngineError
from hmtl.mtl import Aggregator, Algorithm, Users
from hmtl.training.engine import RoundResult, Values


class Measurements:
    """One process's part in collecting measurements, and at the leading process all of them.

    Args:
        placement: who lives where.
        control: how values travel.
        load_users: returns the users' state in the last checkpoint.

    Attributes:
        holders: names of the aggregators that hold the present state; empty before any relay has aggregated.
    """

    def __init__(self, placement: Placement, control: Control, load_users: Callable[[], dict[str, Tensor]]) -> None:
        self.placement, self.control, self._load_users = placement, control, load_users
        self.holders: list[str] = []
        self._user_figures: dict[str, dict[str, Tensor]] = {}  # by host, as last received
        self._aggregator_facts: dict[str, Tensor] = {}  # as last sent
        self._setup_bits: Tensor | None = None  # as last sent
        self._saved_users: dict[str, Tensor] = {}  # their state in the last checkpoint, once a host is lost

    def gather_report_data(self, algorithm: Algorithm, communicator: Communicator) -> None:
        """Complete the tasks at the leading process by what the report needs of them."""
        problem = algorithm.problem
        targets = problem.loss.measure == "mean squared error"
        own = report_data(problem.tasks, targets) if problem.tasks else {}
        received = self._gather(communicator, {"report data": own})
        if self.control.leads:
            parts = [received[name]["report data"] for name in self._all_hosts(received)]
            merged = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            problem.everybody = list(with_report_data(problem.everybody, merged))

    def gather_setup(self, users: Users, aggregator: Aggregator, communicator: Communicator) -> None:
        """Hand the users' contributions to a set-up to the aggregator of the leading process."""
        received = self._gather(communicator, {"facts": users.local_update(-1)[1]})
        if self.control.leads:
            facts = torch.cat([received[name]["facts"] for name in self._all_hosts(received)])
            aggregator.update(np.arange(len(facts)), facts)

    def gather_round(
        self, algorithm: Algorithm, communicator: Communicator, own: RoundResult, outcome: Outcome, evaluate: bool
    ) -> RoundResult | None:
        """Merge the results of a round at the leading process.

        Args:
            own: of this process, without figures.

        Raises:
            EngineError: all aggregators that hold the present state are lost.
        """
        measures = evaluate and len(self.placement.users) > 0
        received = self._gather(
            communicator,
            {
                "user figures": algorithm.users.measure() if measures else {},
                "aggregator": self._changed_facts(algorithm.aggregator) if self.placement.is_relay else {},
                "users": own.users,
                "user seconds": own.user_seconds,
            },
        )
        if not self.control.leads:
            if measures:
                self._send_blocks(algorithm.users)
            return None
        self._update_aggregator(algorithm.aggregator, outcome, received)
        for name, values in received.items():
            if values["user figures"]:
                self._user_figures[name] = values["user figures"]
        travels = algorithm.users.numbers > 0  # otherwise no node but the hosts knows who took part
        users = own.users if travels else sum(values["users"] for values in received.values())
        user_seconds = max(own.user_seconds, *(values["user seconds"] for values in received.values()), 0.0)
        if not evaluate:
            return RoundResult(users, user_seconds)
        parts = [self._user_figures[name] for name in self._all_hosts(self._user_figures)]
        user_figures = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        figures = algorithm.figures(user_figures, self._receive_blocks(algorithm.users))
        return RoundResult(users, user_seconds, figures, user_figures)

    def _gather(self, communicator: Communicator, values: Values) -> dict[str, Values]:
        """Return the values of all other processes at the leading one, and add up bits and seconds there."""
        own = {"bits": self._new_bits(communicator.ledger), "seconds": dict(communicator.stopwatch.seconds)}
        received = self.control.gather(values | own)
        for theirs in received.values():
            communicator.ledger.add_latest(theirs["bits"])
            communicator.stopwatch.seconds |= theirs["seconds"]
        return received

    def _new_bits(self, ledger: LinkLedger) -> Tensor:
        """Return the counts of this round, or of the set-up since the last call."""
        counts = ledger.latest()
        if ledger.rounds:
            return counts
        new = counts if self._setup_bits is None else counts - self._setup_bits
        self._setup_bits = counts
        return new

    def _changed_facts(self, aggregator: Aggregator) -> dict[str, Tensor]:
        """Return the tensors that figures need of the aggregator and that are new since the last call."""
        facts, before = aggregator.figure_state(), self._aggregator_facts
        self._aggregator_facts = facts
        return {key: value for key, value in facts.items() if value is not before.get(key)}

    def _update_aggregator(self, aggregator: Aggregator, outcome: Outcome, received: Mapping[str, Values]) -> None:
        """Take over what figures need of the aggregator from one that holds the present state."""
        self.holders = [relay_name(i) for i in outcome.aggregators] or self.holders
        heard = next((received[name] for name in self.holders if name in received), None)
        if heard:
            aggregator.load_figure_state(heard["aggregator"])
        if self.holders and set(self.holders) <= set(self.control.peers.lost):
            raise EngineError(
                f"all aggregators are lost ({', '.join(self.holders)}), and later rounds need their state. Restart "
                "from the last checkpoint with resume=PATH."
            )

    def _send_blocks(self, users: Users) -> None:
        """Send the models of this host's users to the leading process, some columns at a time."""
        start = 0
        for block in users.blocks():
            self.control.send(SERVER, {"block": block.clone(), "start": start})
            start += block.shape[1]

    def _receive_blocks(self, users: Users) -> Iterator[Tensor]:
        """Yield the models of all users, some columns at a time; those of a lost host as last saved."""
        start = 0
        for block in users.blocks():
            columns = slice(start, start + block.shape[1])
            received = self.control.receive(self.placement.hosts, key="block")
            blocks = {name: values["block"] for name, values in received.items() if values["start"] == start}
            for name, home in zip(self.placement.hosts, self.placement.homes, strict=True):
                if name not in blocks:
                    self._saved_users = self._saved_users or self._load_users()
                    blocks[name] = users.predictors(self._saved_users)[home, columns]
            yield torch.cat([blocks[name] for name in self.placement.hosts])
            start = columns.stop

    def _all_hosts(self, received: Mapping[str, object]) -> Sequence[str]:
        """Return the names of all hosts, or raise EngineError if one of them has never sent anything."""
        if missing := [name for name in self.placement.hosts if name not in received]:
            raise EngineError(f"{missing[0]} was lost before it sent any measurements. Start or resume the run again.")
        return self.placement.hosts
