"""A controller plays rounds whose nodes are in cells elsewhere, see `hmtl.distributed.cell`.

A cell that does not answer in time counts as absent until it does. One whose process has ended and is there again
builds beside the rounds, and then gets its state from the run.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from hmtl import errors
from hmtl.communication import InProcess, LinkLedger
from hmtl.communication.accounting.ledger import Sent
from hmtl.communication.flows.planner import Planner
from hmtl.communication.flows.recipe import Transport
from hmtl.communication.messages import SERVER, host_name, relay_name
from hmtl.communication.round import Schedule
from hmtl.communication.turns import Phase
from hmtl.data import Task
from hmtl.distributed.mail import Homes, shared_evenly
from hmtl.distributed.stand_ins import FarUsers, StandIns, bits_of
from hmtl.errors import ConfigError, EngineError, HmtlError, ProcessLost, StateLost, few
from hmtl.mtl import Aggregator, Algorithm, Users
from hmtl.training.engine import Build, Engine, Load, Shapes, Training, Values

log = logging.getLogger(__name__)
RETURN_CHECK_SECONDS = 0.1  # seconds between looks at who has come back
START = 600.0  # seconds for a cell to load its data and to build the learner
CLOCK_SECONDS = 1.0  # seconds after which a controller looks at its clock
SETS = ("nodes", "load_users", "restore_users")  # calls without which a cell has an old state
Calls = Mapping[str, tuple[str, Values]]
"""What cells are asked, by name: a call and its arguments."""


class Overdue(NamedTuple):
    """What a cell was asked and has not answered in time."""

    asked: Any  # what `receive` takes
    call: str
    round: int | None = None  # in which what the cell sends counts; None: it does not


class Controller(Engine):
    """An engine whose nodes are in cells elsewhere.

    Args:
        seconds: how long to wait for an answer before a cell, or its users, count as absent.
        patience: how long to wait for the last host or relay, or for all hosts before a run goes back [s].

    Attributes:
        hosts, relays: names of these nodes.
        homes: the users of each host.
        order: where each user comes among those of all hosts, one host after the other.
        users: the user side of the learner, once it is built.
        holders: by the name of nodes, the aggregators with the present state.
        agreed: by the name of nodes, the version of this state, see `hmtl.communication.attendance.Attempt`.
        facts: the facts of all users in each set-up.
        nonces: by the name of nodes, that of each host, see `hmtl.distributed.signed_keys`.
        rounds: of the state that was loaded last.
    """

    def __init__(self, seconds: float = 60.0, patience: float = 600.0) -> None:
        if not seconds > 0:
            raise ConfigError(f"engine.seconds={seconds} is not positive. Set it to the seconds to wait for a process.")
        self.seconds, self.patience = seconds, patience
        self.hosts: list[str] = []
        self.relays: list[str] = []
        self.homes: Homes = {}
        self.order = np.empty(0, np.int64)
        self.holders: dict[str, list[str]] = {}
        self.agreed: dict[str, int] = {}
        self.nonces: dict[str, dict[str, str]] = {}
        self.facts: list[Tensor] = []
        self.rounds = 0
        self._late: dict[str, Overdue] = {}  # what was asked of a cell that has not yet answered, by its name
        self._sent: list[Sent] = []  # see `sent_late`
        self._lost: dict[str, str] = {}  # why a cell answers no more, by its name
        self._back: set[str] = set()  # cells that answer again, and wait for the present state
        self._stale: set[str] = set()  # cells that missed a state from which the others continue
        self._figures: Any = None  # the aggregator of figures, once there are any
        self._continues = False  # whether nodes continue from a state
        self._tasks: Sequence[Task] = ()  # of all users, without rows
        self._built: Training | None = None

    @abstractmethod
    def start(self, load: Load, build: Build) -> None:
        """Start the cells of all `nodes`, or wait for them."""

    @abstractmethod
    def hosts_for(self, H: int) -> int:
        """Return the number of hosts beside H relays."""

    @abstractmethod
    def send(self, name: str, call: str, values: Values) -> Any:
        """Ask a cell, without waiting; return what `receive` takes."""

    @abstractmethod
    def receive(self, name: str, asked: Any, seconds: float) -> Values | None:
        """Return what `Cell.answer` returned, or None if it has not arrived; raise ProcessLost if it never will."""

    @abstractmethod
    def returned(self, lost: Collection[str]) -> Collection[str]:
        """Return those of the lost cells whose process is there again."""

    def introduce(self, names: Sequence[str]) -> None:
        """Tell cells that have built what is trained what else they have to know."""

    def homes_of(self, K: int) -> Homes:
        """Return the users of each host, in ascending order; by default, hosts share them evenly."""
        return shared_evenly(len(self.hosts), K)

    def training(self, load: Load, build: Build, H: int, K: int | None = None) -> Training:
        self.hosts, self.relays = [*map(host_name, range(self.hosts_for(H)))], [*map(relay_name, range(H))]
        self.nodes = [SERVER, *self.relays, *self.hosts]
        self.homes = self.homes_of(K) if K else {}  # so that too many hosts are refused before any starts
        self.start(load, build)
        loaded = self._all({host: ("load", {}) for host in self.hosts})
        tasks = [task for host in self.hosts for task in loaded[host]]
        self.homes = self.homes_of(len(tasks))
        self.order = np.argsort(np.concatenate(list(self.homes.values())))
        self._tasks = tuple(tasks[place] for place in self.order)  # Ray would pickle those of a list one by one
        built = build(self._tasks, self._links)
        self._all({name: ("build", {"tasks": self._tasks}) for name in self.nodes})
        self._report(built)
        self.users = FarUsers(built.algorithm, self)
        built.algorithm.users = cast(Users, self.users)
        self._built = built
        self.introduce(self.nodes)
        return built

    def _report(self, built: Training) -> None:
        """Take what a report needs of each user's data; if only sums may be known, the scaling that users share."""
        problem, told = built.algorithm.problem, self._all({host: ("report", {}) for host in self.hosts})
        if not built.only_sums:
            tasks = [task for host in self.hosts for task in told[host]]
            problem.everybody = [tasks[place] for place in self.order]
        elif scaling := told[self.hosts[0]]:
            problem.everybody = [
                replace(task, prepared=replace(task.prepared, scaling=scaling[0])) if task.prepared else task
                for task in problem.everybody
            ]

    def _links(self, ledger: LinkLedger) -> InProcess:
        links = InProcess(ledger)
        links.reliable = links.streams = False
        links.stand_ins = self._stand_ins
        return links

    def _stand_ins(
        self, name: str, transport: Transport, planner: Planner, side: Aggregator, schedule: Schedule
    ) -> StandIns:
        def node(name: str, **facts: Any) -> Any:
            return SimpleNamespace(name=name, planner=planner, combining=False, **facts)

        hosts = [node(each, transport=transport, unsent=False) for each in self.hosts]
        relays = [node(each, i=i, phase=Phase.ABSENT) for i, each in enumerate(self.relays)]
        none: set[int] = set()
        server = node(SERVER, attendance=planner.everybody, silent=none, empty=False, sizes=(0, 0), handover_bits=0)
        server.version, server.transport = 0, transport
        stand_ins = StandIns(hosts, relays, server, None, schedule, self.relays, None, name, self, side)
        if name.startswith("set-up"):
            self.make(name, side, {})
        return stand_ins

    def make(self, name: str, side: Any, memory: Values) -> None:
        """Make nodes in all cells, which continue from `memory`, see `StandIns.state_dict`."""
        continues = self._continues and not name.startswith(("set-up", "figures"))
        if name == "figures":
            self._figures = side
        values: Values = {"aggregator": side.state_dict() if continues else None}
        values |= {"name": name, "numbers": getattr(side, "numbers", 0)}
        calls: dict[str, tuple[str, Values]] = {}
        kept = [state["aggregation"] for state in memory.values() if "aggregation" in state]
        self.agreed[name] = agreed = int(memory.get(SERVER, {}).get(SERVER, {}).get("version", 0))
        newest: Values = next((each for each in kept if each["version"] == agreed), {})
        for node in self.nodes:
            own, is_host = memory.get(node, {}), node in self.homes
            if not is_host and newest and own.get("aggregation", {"version": -1})["version"] != agreed:
                version, none = torch.tensor(agreed), torch.tensor(0)  # as of the aggregator's state, which all get
                known = {"version": version, "adopted": version, "prepared": none}
                own = {node: own.get(node, {}) | known, "aggregation": newest}
            calls[node] = "nodes", {**values, "memory": own} | ({"aggregator": None} if is_host else {})
        answers = self.call(calls)
        self.nonces[name] = {host: answers[host] for host in self.hosts if answers.get(host)}

    def call(self, calls: Calls, seconds: float | None = None) -> dict[str, Any]:
        """Return the answers of cells, without those that are missing or do not answer in time.

        Raises:
            HmtlError: what a cell raised.
        """
        missing = self.missing()
        asked = {name: self.send(name, *call) for name, call in calls.items() if name not in missing}
        arrived = self._arrived(asked, self.seconds if seconds is None else seconds)
        for name in asked.keys() - arrived.keys():
            call, values = calls[name]
            counts = call == "play" and values["name"] != "figures"  # which are not among the bits of a run
            self._late[name] = Overdue(asked[name], call, values["round"] if counts else None)
            log.warning("%s: no answer in time", name)
        self._stale |= {name for name in self._late if name in calls and calls[name][0] in SETS}
        if faults := {name: arrived[name] for name in asked if "error" in arrived.get(name, ())}:
            raise _as_error(faults, len(asked))
        return {name: arrived[name]["answer"] for name in asked if "answer" in arrived.get(name, ())}

    def _arrived(self, asked: Mapping[str, Any], left: float) -> dict[str, Values]:
        """Return the answers of cells that arrive in time; before one counts as silent, all are asked once more."""
        arrived, waited = dict[str, Values](), dict(asked)
        while waited:
            first, begin = next(iter(waited)), time.monotonic()
            answer = self._received(first, waited[first], max(0.0, min(CLOCK_SECONDS, left)))
            left -= min(CLOCK_SECONDS, time.monotonic() - begin)  # this process may have been suspended for longer
            found = {first: answer}
            if answer is None:
                found = {name: self._received(name, what, 0.0) for name, what in waited.items()}
            arrived |= {name: each for name, each in found.items() if each is not None}
            waited = {name: what for name, what in waited.items() if name not in arrived}
            if answer is None and left <= 0:
                break
        return arrived

    def _received(self, name: str, asked: Any, seconds: float) -> Values | None:
        """As `receive`, but note that a cell is lost, and return why."""
        try:
            answer = self.receive(name, asked, seconds)
        except ProcessLost as lost:
            answer = {"lost": lost.what}
        if answer is not None and "lost" in answer:
            if name not in self._lost:
                log.warning("%s is lost: %s", name, answer["lost"])
            self._lost[name] = answer["lost"]
        return answer

    def ask_one(self, name: str, call: str) -> Any:
        """Return the answer of an aggregator that has the present state.

        Raises:
            StateLost: none of them answers.
        """
        for holder in self.holders.get(name, ()):
            if self.settle(name, [holder]) and (answers := self.call({holder: (call, {"name": name})})):
                return answers[holder]
        raise StateLost(
            f"no aggregator ({', '.join(self.holders.get(name, ()))}) sent the state that later rounds need."
        )

    def settle(self, name: str, nodes: Sequence[str]) -> list[str]:
        """Let these nodes settle what they have prepared, and return those that have the present state."""
        values = {"name": name, "agreed": self.agreed.get(name, 0)}
        return [node for node, current in self.call(dict.fromkeys(nodes, ("settle", values))).items() if current]

    def _all(self, calls: Calls) -> dict[str, Any]:
        """Return the answers of all these cells, before the first round.

        Raises:
            ProcessLost: one of them is missing.
        """
        answers = self.call(calls, START)
        if silent := [name for name in calls if name not in answers]:
            reason = self._lost.get(silent[0], f"it took more than {START / 60:g} minutes")
            raise ProcessLost(f"{silent[0]} did not get ready: {reason}.", "Start all processes again.")
        return answers

    def gather(self) -> None:
        name, side = self._learner
        if name in self.holders:
            side.load_state_dict(self.ask_one(name, "aggregator_state"))

    def gather_figure_state(self) -> None:
        """Fetch the state that figures need; keep the old one if no aggregator answers."""
        name, side = self._learner
        if name in self.holders and side.figure_state():
            with suppress(StateLost):
                side.load_figure_state(self.ask_one(name, "figure_state"))

    @property
    def _learner(self) -> tuple[str, Aggregator]:
        """The name of the learner's nodes, and its aggregator."""
        return self.built.communicator.name, self.built.algorithm.aggregator

    def figure_shapes(self, algorithm: Algorithm) -> Shapes:
        return self.users.figure_shapes()

    def keep(self, algorithm: Algorithm) -> None:
        self.users.keep()

    def models(self, algorithm: Algorithm, state: Mapping[str, Any]) -> Tensor | None:
        """As `Engine.models`; if only sums may be known, the model that all users share, or else hosts save theirs."""
        if not self.only_sums:
            return super().models(algorithm, state)
        model = algorithm.common if self.users.kept is None else self.users.kept
        if model is None or not algorithm.problem.everybody[0].preprocessing.is_shared:
            self.call({host: ("save_models", {}) for host in self.hosts})
            return None
        return model[:, None].expand(-1, algorithm.problem.K)

    @property
    def built(self) -> Training:
        """What is trained."""
        assert self._built
        return self._built

    @property
    def only_sums(self) -> bool:
        """Whether hosts keep figures and state of their users to themselves."""
        return self._built is not None and self._built.only_sums

    def state_dict(self) -> Values:
        return {"facts": self.facts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let all cells, those that came back among them, take the set-ups; the state of the learner follows."""
        self.facts, self.holders = list(state["facts"]), {}
        self.rounds, self._continues = state["history"]["rounds"], True
        for name, overdue in self._late.items():
            if overdue.round is not None and overdue.round >= self.rounds:  # this round is played again
                self._late[name] = overdue._replace(round=None)
        self.introduce(list(self._back))
        for name in self._back:
            self._lost.pop(name, None)
            log.warning("round %d: %s is back", self.rounds, name)
        self._back, self._stale = set(), self._stale - self._back
        for number, facts in enumerate(self.facts):
            answers = self.built.all_setups()[number][1].update(np.arange(len(facts)), facts)
            told: Values = {"number": number, "facts": facts, "answers": None}  # of all users, for aggregators alone
            calls = dict.fromkeys([SERVER, *([] if self.only_sums else self.relays)], ("set_up", told))
            for host, home in self.homes.items():
                calls[host] = "set_up", {"number": number, "facts": None, "answers": answers[home]}
            self.call(calls)
        if self._figures is not None:
            self.make("figures", self._figures, {})

    def waiting(self, stop: Callable[[], bool], every_host: bool = False) -> bool:
        """As `Engine.waiting`.

        Raises:
            EngineError: those that the run waits for did not come back in time.
        """
        deadline = time.monotonic() + self.patience
        self._look()
        hosts = [[host] for host in self.hosts] if every_host else [self.hosts]
        for names in ([SERVER], *hosts, self.relays):
            while set(names) <= set(self.missing()) - self._back and not stop():
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"{few(names)} did not come back within engine.patience={self.patience:g} s. To continue from "
                        "the last checkpoint, start the run again with resume=FOLDER."
                    )
                time.sleep(RETURN_CHECK_SECONDS)
                self._look()
        return bool(self._back) or any(set(names) <= set(self._lost) for names in self.holders.values())

    def _look(self) -> None:
        """Collect overdue answers, and let lost cells build whose process is there again."""
        for name in self.returned(self._lost.keys() - self._late.keys() - self._back):
            self._late[name] = Overdue(self.send(name, "build", {"tasks": self._tasks}), "build")
            self._stale.add(name)
        for name, overdue in list(self._late.items()):
            if (answer := self._received(name, overdue.asked, 0.0)) is None:
                continue
            del self._late[name]
            if overdue.round is not None and "answer" in answer:
                self._sent += [bits_of(sent, overdue.round) for sent in answer["answer"]["sent"]]
            elif overdue.call == "measure" and "answer" in answer:
                self.users.measured[name] = answer["answer"]
            if "error" in answer:
                if name in self._lost:
                    raise _as_error({name: answer}, 2)
                log.warning("%s: %s", name, answer["text"])
            if "lost" not in answer and name in self._stale:
                self._back.add(name)
            elif "lost" not in answer:
                log.warning("%s answers again", name)

    def sent_late(self, stop: Callable[[], bool]) -> list[Sent]:
        deadline = time.monotonic() + self.seconds
        while any(late.call != "build" for late in self._late.values()) and time.monotonic() < deadline and not stop():
            time.sleep(RETURN_CHECK_SECONDS)
            self._look()
        sent, self._sent = self._sent, []
        return sent

    def missing(self) -> Collection[str]:
        return {*self._late, *self._lost, *self._back}


def _as_error(faults: Mapping[str, Values], asked: int) -> HmtlError:
    """Return what cells raised as one error; it begins with their names, unless it is that of all."""
    first = next(iter(faults.values()))
    same = [name for name, fault in faults.items() if fault["text"] == first["text"]]
    text = first["text"] if len(same) == asked else f"{few(same)}: {first['text']}"
    kind = getattr(errors, first["error"], None)
    if not isinstance(kind, type) or not issubclass(kind, HmtlError) or kind is ProcessLost:
        kind = EngineError
    return kind(text)
