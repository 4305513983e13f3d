"""What the process of one node exchanges with the others besides messages: data for reports, measurements, state.

The first process, which plays the server, leads: it collects what the others measured and sent, and, for a checkpoint,
the state of all processes.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.communication import Communicator, LinkLedger, Links, Outcome
from hmtl.communication.messages import SERVER, relay_name
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.host import UserSide
from hmtl.data import Task
from hmtl.distributed.control import RESUME, Control, as_frame
from hmtl.distributed.links import ProcessLinks
from hmtl.distributed.peers import BEFORE, Peers
from hmtl.distributed.placement import HostedUsers, Placement
from hmtl.errors import CheckpointError, EngineError, Finished, ProcessLost
from hmtl.mtl import Aggregator, Algorithm, Problem, Users
from hmtl.mtl.algorithms.base import NOBODY, Ids
from hmtl.topology import Moving, Topology
from hmtl.training.engine import Exchange, RoundResult, Values

PAUSE = 0.1  # seconds between looks at who has come back
MOMENT = 5.0  # seconds to wait for the stream of a process that came back
LEAST = 1 << 26  # bytes of a frame's body that are always allowed
FINISHED = "finished"  # the key with which the leading process says that there are no more rounds
NODE_STATE = "nodes"  # the key of nodes in the state of a communicator, and in every process's answer


class ProcessExchange(Exchange):
    """The exchange of this process with those that play the other nodes.

    Args:
        placement: which process plays which node, and holds which users.
        peers: the other processes.
        contacts: who hears whom.
        patience: how long the leading process waits for others to come back if too few are left [s].
        comes_back: whether the run had begun before this process was there.

    Attributes:
        begun: whether a process that arrives now comes back, as the leading process knows it.
        finished: whether the leading process has played all rounds.
    """

    whole = False

    def __init__(
        self,
        placement: Placement,
        peers: Peers,
        contacts: Topology | Moving,
        patience: float = 600.0,
        comes_back: bool = False,
    ) -> None:
        self.leads, self.begun, self.finished = placement.leads, False, False
        self._patience, self._comes_back = patience, comes_back
        self._placement, self._peers, self._contacts = placement, peers, contacts
        self._control = Control(peers, patience)
        self._cut = False  # whether two processes that take part lost each other, and could go on
        self.nodes = list(peers.connections)
        self._load_checkpoint: Callable[[], Mapping[str, Any]] = dict  # see `start`
        self._places: Callable[[str, Ids], Ids] = lambda _, users: users  # `Users.places`, see `start`
        self._holders: list[str] = []  # aggregators with the present state; empty before any relay has aggregated
        self._user_figures: dict[str, dict[str, Tensor]] = {}  # by host, as last received
        self._aggregator_facts: dict[str, Tensor] = {}  # as last sent
        self._setup_bits: Tensor | int = 0  # as last sent
        self._setups: list[Tensor] = []  # the facts of all users in each set-up
        self._saved_users: dict[str, Tensor] = {}  # their state in the last checkpoint, once a host is lost
        self._remedy = (
            "To continue from the last checkpoint, start the server of a site again, or any other run with "
            "resume=FOLDER."
        )

    def links(self, ledger: LinkLedger, figures: bool = False) -> Links:
        return ProcessLinks(ledger, self._peers, self._contacts, self._placement.homes, figures)

    def wrap_users(self, users: Users) -> UserSide:
        return HostedUsers(users, self._placement.users)

    def start(
        self,
        algorithm: Algorithm,
        communicator: Communicator,
        resumes: bool,
        load_checkpoint: Callable[[], Mapping[str, Any]],
    ) -> bool:
        self._load_checkpoint, self._places = load_checkpoint, algorithm.users.places
        self._peers.limit(largest_body(algorithm))
        if self._comes_back:
            self._control.send(SERVER, {"ready": True})
            return True
        self._gather_tasks(algorithm.problem, communicator)
        return bool(self.broadcast({"resumes": resumes})["resumes"])

    def _gather_tasks(self, problem: Problem, communicator: Communicator) -> None:
        """Collect what the report needs of each user's data."""
        targets = problem.loss.measure == "mean squared error"  # R² needs them
        received = self._gather(communicator, {"tasks": [for_report(task, targets) for task in problem.tasks]})
        if self.leads:
            hosts = self._of_all_hosts(received)
            tasks = [task for values in hosts for task in values["tasks"]]
            problem.everybody = [tasks[place] for place in self._placement.order]

    def gather_setup(self, users: Users, aggregator: Aggregator, communicator: Communicator) -> None:
        received = self._gather(communicator, {"facts": users.local_update(-1)[1]})
        if self.leads:
            facts = self._placement.by_user([values["facts"] for values in self._of_all_hosts(received)])
            aggregator.update(np.arange(len(facts)), facts)
            self._setups.append(facts)

    def gather_round(
        self, algorithm: Algorithm, communicator: Communicator, outcome: Outcome, user_seconds: float, evaluate: bool
    ) -> RoundResult | None:
        """Merge the results of a round at the leading process."""
        by_relays = not communicator.planner.server
        measures = evaluate and len(self._placement.users) > 0
        own = {
            "measured": algorithm.users.measure() if measures else {},
            "aggregator": self._changed_facts(algorithm.aggregator) if by_relays and self._placement.is_relay else {},
            "users": len(outcome.users),
            "user seconds": user_seconds,
        }
        received = self._gather(communicator, own)
        if not self.leads:
            if measures:
                self._send_blocks(algorithm.users)
            return None
        if by_relays:
            self._update_aggregator(algorithm.aggregator, outcome, received)
        # if nothing travels, only the hosts know who took part
        users = len(outcome.users) if algorithm.users.numbers else sum(values["users"] for values in received.values())
        seconds = max(values["user seconds"] for values in (own, *received.values()))
        if not evaluate:
            return RoundResult(users, seconds)
        measured = {name: values["measured"] for name, values in received.items() if values["measured"]}
        return RoundResult(users, seconds, *self._figures(algorithm, measured, communicator.ledger.rounds == 1))

    def _figures(
        self, algorithm: Algorithm, measured: dict[str, Values], first: bool
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return the figures and the measures of all users, given what hosts have sent; `first`: in round 0."""
        self._user_figures |= measured
        if not first and not set(self._placement.hosts) <= set(self._user_figures):
            return {}, {}
        by_host = self._of_all_hosts(self._user_figures)
        user_figures = {key: self._placement.by_user([each[key] for each in by_host]) for key in by_host[0]}
        return algorithm.figures(user_figures, self._receive_blocks(algorithm.users)), user_figures

    def broadcast(self, values: Values) -> Values:
        return self._control.broadcast(values)

    def share_out(self, draw: Callable[[], Ids]) -> Ids:
        if not self.leads:
            own: Ids = self._control.receive_from_leader()["sample"].numpy()
            return own
        drawn = draw()
        for name in self._placement.others:
            theirs = np.intersect1d(drawn, self._placement.users_of(name))
            self._control.send(name, {"sample": torch.from_numpy(theirs)})
        return NOBODY

    def waiting(self, stop: Callable[[], bool]) -> bool:
        """As `Exchange.waiting`.

        Raises:
            EngineError: all hosts or all relays are lost, and none of them came back in time.
        """
        if not self.leads:
            return False
        self.begun = True
        lost, deadline = self._peers.lost, time.monotonic() + self._patience
        for names in (self._placement.hosts, self._placement.relays):
            while set(names) <= set(lost) and not set(names) & set(self._ready) and not stop():
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"{', '.join(names)} are lost, and did not come back within engine.patience="
                        f"{self._patience:g} s. {self._remedy}"
                    )
                time.sleep(PAUSE)
        without_state = bool(self._holders) and set(self._holders) <= set(lost)
        return bool(self._ready) or self._cut or without_state

    @property
    def _ready(self) -> list[str]:
        """The processes that have come back, and wait for the state."""
        return [name for name, each in self._peers.connections.items() if each.ready]

    def gather_state(self, algorithm: Algorithm, communicator: Communicator) -> Values | None:
        """Return, in the leading process, the state of all processes; return None in the others.

        The leading process asks one process after another, so that it never receives more than one state at a time.

        Raises:
            EngineError: no aggregator with the present state answers.
        """
        communication = communicator.state_dict()
        if not self.leads:
            question = self._control.receive_from_leader()
            answer = self._own_state(algorithm, communication)
            if question["with aggregator"]:
                answer["aggregator"] = algorithm.aggregator.state_dict()
            self._control.send(SERVER, answer)
            return None
        holders = self._holders
        if not holders and not communicator.planner.server:  # no round has been aggregated: all relays hold the same
            holders = self._placement.relays
        aggregator: Values | None = None
        if not holders or not algorithm.users.numbers:
            aggregator = algorithm.aggregator.state_dict()
        nodes: Values = {SERVER: communication[NODE_STATE]}
        users: dict[str, Tensor] = {}
        outdated = False  # whether the state of some users is older
        for name in self._placement.others:
            asked = name in holders and aggregator is None
            self._control.send(name, {"with aggregator": asked})
            # not for long: relays that have answered wait for the next attendance already
            received = self._control.receive([name], key=NODE_STATE, patience=2)
            answer = received.get(name) or self._from_checkpoint(name)
            outdated = outdated or (name in self._placement.hosts and not received)
            nodes[name] = answer[NODE_STATE]
            self._put_rows(users, name, answer["users"])
            if asked and _version(nodes, name) == _version(nodes, SERVER):  # it did not miss the last verdict
                aggregator = answer.get("aggregator")
        if aggregator is None:
            raise EngineError(
                f"no aggregator ({', '.join(holders)}) sent the state that later rounds need. Restart from the last "
                "checkpoint with resume=PATH."
            )
        sides = {"users": users, "aggregator": aggregator}
        state = {"algorithm": sides, "communicator": communication | {NODE_STATE: nodes}, "setups": self._setups}
        return self.reconciled(state, algorithm) if outdated else state

    def _own_state(self, algorithm: Algorithm, communication: Values) -> Values:
        """Return the state of this process's node, and of its users."""
        users = algorithm.users.state_dict() | algorithm.users.derived() if len(self._placement.users) else {}
        return {NODE_STATE: communication[NODE_STATE], "users": users}

    def reconciled(self, state: Values, algorithm: Algorithm) -> Values:
        """See `Exchange.reconciled`. The nodes' own state is dropped: what they know of each other is outdated, too."""
        communication = state["communicator"] | {NODE_STATE: {name: {} for name in self._placement.names}}
        return state | {"algorithm": algorithm.reconciled(state["algorithm"]), "communicator": communication}

    def scatter_state(
        self, state: Mapping[str, Any] | None, algorithm: Algorithm, communicator: Communicator
    ) -> Mapping[str, Any]:
        """Return the part of a gathered state that this process needs: its users' rows, and its node's state.

        Raises:
            CheckpointError: the state comes from a run with another number of processes.
        """
        if state is None:
            part = self._control.follow_leader()
            check_goes_on(part)
            for name in part["present"]:
                self._take_back(name)
            return part
        nodes, placement = state["communicator"][NODE_STATE], self._placement
        if set(nodes) != set(placement.names):
            raise CheckpointError(
                f"the checkpoint is of {len(nodes)} processes, but this run has {len(placement.names)}. Start "
                f"{len(nodes)} processes."
            )
        self._setups, self._holders = list(state["setups"]), []
        algorithm.aggregator.load_figure_state(
            {key: state["algorithm"]["aggregator"][key] for key in algorithm.aggregator.figure_state()}
        )
        for name in self._ready:
            self._peers.take_back(name)
            self._control.welcome(name, state["history"]["rounds"])
        self._peers.take_up(self._peers.epoch + 1)
        self._cut = False
        present = [name for name in placement.others if name not in self._peers.lost]
        history = {"rounds": state["history"]["rounds"], "columns": {}}
        elsewhere: Values = {"present": present, "history": history, "user_figures": {}, "accountant": {}}
        for name in placement.others:
            self._control.send(name, self._part(state, name, algorithm, communicator) | elsewhere)
        return self._part(state, SERVER, algorithm, communicator)

    def _part(self, state: Mapping[str, Any], name: str, algorithm: Algorithm, communicator: Communicator) -> Values:
        """Return the part of a state that a node needs."""
        nodes, sides, placement = state["communicator"][NODE_STATE], state["algorithm"], self._placement
        users = {key: sides["users"][key] for key in algorithm.users.state_dict() if key in sides["users"]}
        part: Values = {"users": self._rows_of(users, name)}  # without what follows from these
        planner, node = communicator.planner, nodes[name]
        holds = name == SERVER and planner.server
        if planner.preferred and name in placement.relays:  # a relay that missed rounds is handed them in the next one
            latest = max(placement.relays, key=lambda relay: _version(nodes, relay))
            of_latest = nodes[SERVER if planner.server else latest]
            holds, node = True, node | {key: of_latest[key] for key in of_latest if key == Aggregation.name}
        if holds:
            part["aggregator"] = sides["aggregator"]
        own = state["communicator"] | {NODE_STATE: node}
        return {**state, "algorithm": part, "communicator": own}

    def finish(self) -> None:
        self.finished = True
        for each in self._peers.connections.values():
            if self.leads and each.newer:
                each.newer.send(as_frame({FINISHED: True}, BEFORE), epoch=self._peers.epoch + 1)

    def missing(self) -> Collection[str]:
        return self._peers.late | set(self._peers.lost)

    def close(self) -> None:
        self._peers.close()

    def _take_back(self, name: str) -> None:
        """Exchange frames again with a process that has come back, which may take a moment to reach this one."""
        deadline = time.monotonic() + MOMENT
        while name in self._peers.connections and not self._peers.take_back(name) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _gather(self, communicator: Communicator, values: Values) -> dict[str, Values]:
        """Return, in the leading process, the values of all others, and add up their bits and seconds."""
        ledger, seconds = communicator.ledger, communicator.stopwatch.seconds
        bits = ledger.latest()
        if not ledger.rounds:  # the counts of all set-ups so far
            bits, self._setup_bits = bits - self._setup_bits, bits
        received = self._control.gather({**values, "bits": bits, "seconds": dict(seconds)})
        absent = {*self._peers.lost, *self._peers.returned}
        self._cut = any(set(theirs["returned"]) - absent for theirs in received.values())
        for theirs in received.values():
            ledger.add_latest(theirs["bits"])
            seconds |= theirs["seconds"]
        return received

    def _changed_facts(self, aggregator: Aggregator) -> dict[str, Tensor]:
        """Return those tensors of the aggregator that figures need and that have changed since the last call."""
        facts, before = aggregator.figure_state(), self._aggregator_facts
        self._aggregator_facts = facts
        return {key: value for key, value in facts.items() if value is not before.get(key)}

    def _update_aggregator(self, aggregator: Aggregator, outcome: Outcome, received: Mapping[str, Values]) -> None:
        """Take what figures need from an aggregator that holds the present state."""
        self._holders = [relay_name(i) for i in outcome.aggregators] or self._holders
        answer = next((received[name] for name in self._holders if name in received), None)
        if answer:
            aggregator.load_figure_state(answer["aggregator"])

    def _send_blocks(self, users: Users) -> None:
        """Send the models of this host's users to the leading process, a few columns at a time."""
        start = 0
        for block in users.blocks():
            self._control.send(SERVER, {"block": block.clone(), "start": start})
            start += block.shape[1]

    def _receive_blocks(self, users: Users) -> Iterator[Tensor]:
        """Yield the models of all users, a few columns at a time; for a lost host, the last ones that were saved."""
        start, hosts = 0, self._placement.hosts
        for block in users.blocks():
            columns = slice(start, start + block.shape[1])
            received = self._control.receive(hosts, key="block")
            blocks = {name: values["block"] for name, values in received.items() if values["start"] == start}
            for name, home in zip(hosts, self._placement.homes, strict=True):
                if name not in blocks:
                    self._saved_users = self._saved_users or self._load_checkpoint()["algorithm"]["users"]
                    blocks[name] = users.predictors(self._saved_users)[home, columns]
            yield self._placement.by_user([blocks[name] for name in hosts])
            start = columns.stop

    def _of_all_hosts(self, received: Mapping[str, Values]) -> list[Values]:
        """Return the values of all hosts, or raise ProcessLost if one of them has never sent anything."""
        if missing := [name for name in self._placement.hosts if name not in received]:
            raise ProcessLost(f"{missing[0]} was lost before it sent any measurements.", RESUME)
        return [received[name] for name in self._placement.hosts]

    def _put_rows(self, users: dict[str, Tensor], name: str, state: Mapping[str, Tensor]) -> None:
        """Add the state of a host's users to that of all users; of numbers that all users share, keep the largest."""
        for key, rows in state.items():
            if not rows.ndim:
                users[key] = torch.maximum(rows, users.get(key, rows))
                continue
            if key not in users:
                users[key] = rows.new_empty(len(self._places(key, np.arange(self._placement.K))), *rows.shape[1:])
            users[key][self._places(key, self._placement.users_of(name))] = rows

    def _rows_of(self, state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
        """Return the state of a node's users, from that of all users."""
        users = self._placement.users_of(name)
        return {key: rows[self._places(key, users)] if rows.ndim else rows for key, rows in state.items()}

    def _from_checkpoint(self, name: str) -> Values:
        """Return from the last checkpoint the state of a process that does not answer."""
        try:
            checkpoint = self._load_checkpoint()
        except CheckpointError as error:
            reason = self._peers.lost.get(name, "it does not answer")
            raise EngineError(f"{name} is lost ({reason}) before the first checkpoint. Start the run again.") from error
        users = self._rows_of(checkpoint["algorithm"]["users"], name)
        return {"users": users, NODE_STATE: checkpoint["communicator"][NODE_STATE][name]}


def check_goes_on(values: Values) -> None:
    """Raise Finished if the leading process says that the run has."""
    if values.get(FINISHED):
        raise Finished("the run finished before this node could take part again.")


def largest_body(algorithm: Algorithm) -> int:
    """Return how many bytes the body of a frame may have: a generous bound from what all processes know.

    A frame carries at most what belongs to all K users: models and what travels or is kept with them, facts about each
    user's d features (second moments at most), and a number per pair of users.
    """
    K, d, size = algorithm.problem.K, algorithm.problem.d, algorithm.problem.size
    wide = {name: rows.shape[1:].numel() for name, rows in algorithm.users.state_dict().items() if rows.ndim > 1}
    kept = sum(8 * len(algorithm.users.places(name, np.arange(K))) * numbers for name, numbers in wide.items())
    bound: int = LEAST + 8 * kept + 8 * K * (8 * max(algorithm.users.numbers, size) + d * d + 8 * K)
    return bound


def for_report(task: Task, targets: bool) -> Task:
    """Return the part of a task that a report needs: shapes and scaling, and optionally the raw targets."""
    known = task.without_rows()
    raw = task.raw.without_rows(not targets)
    return replace(known, prepared=replace(task.prepared, raw=raw)) if task.prepared else raw


def _version(nodes: Values, name: str) -> int:
    """Return how many aggregated rounds a node knows of."""
    return int(nodes[name][name]["version"]) if name in nodes[name] else 0
