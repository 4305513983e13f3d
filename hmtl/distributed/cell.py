"""A cell: the process of one node, which answers the calls of a controller elsewhere.

The controller plays rounds and keeps the ledger; a cell has the node, with what it knows: a host its users' rows and
models, an aggregator its state. Messages go from cell to cell; the controller sees only how long they are.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hmtl.communication import Communicator, InProcess, LinkLedger
from hmtl.communication.communicators.base import SETUP_ROUND
from hmtl.communication.messages import Message
from hmtl.communication.nodes.host import Host
from hmtl.communication.nodes.relay import Node
from hmtl.communication.nodes.server import Server
from hmtl.communication.round import Nodes, Stopwatch
from hmtl.communication.turns import Phase, Turn
from hmtl.data import Task
from hmtl.data.preprocessing import Scaling
from hmtl.distributed.frames import MAY_SEND, Frame, role
from hmtl.distributed.hosted_users import HostedUsers
from hmtl.distributed.mail import Homes, cut, opened
from hmtl.errors import CodingError, EngineError, HmtlError
from hmtl.inference.models import models_of
from hmtl.io.arrays import Ids
from hmtl.mtl import Aggregator
from hmtl.training.checkpoint import load_checkpoint, save_checkpoint
from hmtl.training.engine import Build, Load, Training, Values, handed_out, keep_models
from hmtl.training.sums_of_figures import figure_sides

if TYPE_CHECKING:
    from hmtl.distributed.signed_keys import SignedKeys  # engines without signatures do without cryptography

log = logging.getLogger(__name__)
Handle = Any
"""What leads to a message: numbers, or a reference of a library."""
FACTS = {
    "host": (),
    "relay": ("phase", "combining"),
    "server": ("silent", "empty", "version", "sizes", "handover_bits", "combining"),
}
"""What the controller has to know of a node, by role."""
BEGIN = ("update", "report", "attend", "advertise", "introduce")
"""Turns whose first number is that of the round, if they have any."""


class OwnLinks(InProcess):
    """The links of one node among those of other processes: they say who it is, and carry nothing."""

    reliable = streams = False

    def __init__(self, ledger: LinkLedger, name: str, homes: Homes) -> None:
        super().__init__(ledger)
        self._name, self._homes = name, homes

    def plays(self, node: str) -> bool:
        return node == self._name

    def homes(self, K: int) -> dict[str, Ids]:
        return dict(self._homes)


class Cell:
    """The process of one node.

    Args:
        name: of the node.
        homes: returns the users of each host, given K.
        load, build: see `hmtl.training.engine.Engine`.
        hand: makes a frame available to receivers, and returns what leads to it.
        fetch: returns the frame to which this leads, or None if it is lost.
        sign: makes what signs the keys of this host's users, see `SignedKeys`; None: keys are not signed.
    """

    CALLS = (
        "load",
        "build",
        "set_up",
        "nodes",
        "play",
        "measure",
        "block",
        "keep",
        "local",
        "users_state",
        "load_users",
        "save_users",
        "restore_users",
        "save_models",
        "node_state",
        "settle",
        "aggregator_state",
        "figure_state",
        "figure_shapes",
        "learned",
        "report",
    )
    """The methods that a controller may call."""
    WITHHELD = ("measure", "block", "users_state", "load_users")
    """Those that a host does not answer if only sums over users may be known."""

    def __init__(
        self,
        name: str,
        homes: Callable[[int], Homes],
        load: Load,
        build: Build,
        hand: Callable[[Sequence[str], Frame], Handle],
        fetch: Callable[[str, Handle], Frame | None],
        sign: "Callable[[Homes, str], SignedKeys] | None" = None,
    ) -> None:
        self.name, self._homes_of, self._load, self._build = name, homes, load, build
        self._hand, self._fetch, self._sign = hand, fetch, sign
        self._training: Training | None = None
        self._kept: Values = {}  # the state of nodes on this host's disk
        self._own: tuple[Task, ...] = ()
        self._homes: Homes = {}
        self._players: dict[str, tuple[Communicator, Nodes, Aggregator]] = {}  # by the name of nodes
        self._notaries: dict[str, SignedKeys] = {}  # of hosts, likewise
        self._rounds: dict[str, int] = {}
        self._blocks: Iterator[Tensor] = iter(())

    def answer(self, call: str, values: Mapping[str, Any]) -> Values:
        """Return what a call returns, or what went wrong; or that this process knows nothing, as it has just begun."""
        if self._training is None and call not in ("load", "build"):
            return {"lost": "its process was started again"}
        try:
            if call not in self.CALLS:
                raise CodingError(f"the controller asked for {call[:20]!r}, which no cell answers.")
            if call in self.WITHHELD and self.training.only_sums:
                raise CodingError(f"the controller asked for {call}, which hosts keep to themselves with metrics=sums.")
            return {"answer": getattr(self, call)(**values)}
        except HmtlError as error:
            if isinstance(error, CodingError):
                log.warning("%s refused: %s", self.name, error)
            return {"error": type(error).__name__, "text": str(error)}
        except Exception as error:
            log.exception("%s failed at %s", self.name, call)
            return {"error": "EngineError", "text": f"{type(error).__name__}: {error}. The log of this node says more."}

    @property
    def training(self) -> Training:
        """What is trained, once it is built."""
        assert self._training
        return self._training

    @property
    def _keeps(self) -> bool:
        """Whether this is a host that keeps what it knows of its users to itself."""
        return self.training.only_sums and self.name in self._homes

    def load(self) -> tuple[Task, ...]:
        """Load the rows of this host's users, and return their tasks without rows."""
        self._own = self._load(lambda K: set(self._homes_of(K)[self.name].tolist()))
        return tuple(self._own[k].without_rows() for k in self._homes_of(len(self._own))[self.name])

    def build(self, tasks: Sequence[Task]) -> None:
        """Build what is trained, given the tasks of all users without rows."""
        self._homes = self._homes_of(len(tasks))
        if self.name in self._homes and not self._own:  # it came back, see `Controller.returned`
            self.load()
        own = set(self._homes.get(self.name, np.empty(0)).tolist())
        known = [self._own[k] if k in own else task for k, task in enumerate(tasks)]
        self._own = ()  # what is trained copies the rows
        self._training = self._build(known, lambda ledger: OwnLinks(ledger, self.name, self._homes))
        self._players.clear()

    def set_up(self, number: int, facts: Tensor | None, answers: Tensor | None) -> None:
        """Take what was exchanged in a set-up before this process was there.

        Args:
            number: of the set-up.
            facts: of all users, for aggregators.
            answers: for a host's users.
        """
        users, side = self.training.all_setups()[number]
        if facts is not None:
            side.update(np.arange(len(facts)), facts)
        if answers is not None:
            users.receive(np.arange(len(answers)), answers)

    def nodes(self, name: str, aggregator: Values | None, memory: Values, numbers: int) -> str:
        """Make this cell's node for a set-up, for the learner, or for figures.

        Return its nonce, see `SignedKeys`; "": it signs nothing.

        Args:
            name: of the nodes.
            aggregator: the state with which the aggregator continues; None: it begins.
            memory: the state of the node, as `node_state` returned it; {}: it begins.
            numbers: how many numbers a user's terms of figures have.
        """
        self._rounds.pop(name, None)
        self._notaries.pop(name, None)
        learner, mine = self.training.algorithm, self.training.communicator
        own = self._homes.get(self.name, np.empty(0, np.int64))
        if name.startswith("set-up"):
            users, side = self.training.all_setups()[number := int(name.split()[1])]
            communicator = mine
            made = communicator.setup_nodes(HostedUsers(users, own), side, number)
        else:
            communicator, users, side = mine, learner.users, learner.aggregator
            if name == "figures":
                communicator, users, side = figure_sides(learner, mine, numbers)
            if aggregator is not None:
                side.load_state_dict(aggregator)
            communicator.forget(self._kept.get(name, {}) if self._keeps else memory)
            communicator.attach(HostedUsers(users, own), side)
            assert communicator.nodes
            made = communicator.nodes
        self._players[name] = communicator, made, side
        hosts: Sequence[Any] = made.hosts
        for host in hosts:
            if self._sign and host.transport.recipe.secure:
                host.notary = self._notaries[name] = self._sign(self._homes, name)
        return self._notaries[name].nonce if name in self._notaries else ""

    def play(self, name: str, round: int, evaluates: bool, turns: Sequence[Values]) -> Values:
        """Give the node one turn after another, and return what it sends, what changed, and the CPU seconds.

        Args:
            name: of the nodes.
            round: of the round.
            evaluates: see `hmtl.mtl.Users`.
            turns: see `hmtl.communication.turns.Turn`; `heard` has, for each kind of messages, their senders and what
                leads to them, `sample` is as in `hmtl.mtl.Users`, and `notes` as in `SignedKeys`.
        """
        communicator, nodes, _ = self._players[name]
        if round < self._rounds.get(name, round):
            raise CodingError(f"round {round} is over, and this node plays it once only.")
        if self._rounds.get(name) != round:
            if round != SETUP_ROUND:
                communicator.follow(round)
            nodes.close()  # the controller may have given up on it in the last round
            self._rounds[name] = round
        users, watch, sent = self.training.algorithm.users, Stopwatch(), list[Values]()
        users.evaluates = evaluates
        notary = self._notaries.get(name)
        node: Any = next(iter((*nodes.hosts, *nodes.relays, nodes.server)))
        for turn in turns:
            if turn["action"] in BEGIN and turn["numbers"][:1] not in ([], [round]):
                raise CodingError(f"round {turn['numbers'][0]} is another than the present one, {round}.")
            if turn["sample"] is not None:
                users.sample = turn["sample"].numpy()
            if notary:
                notary.notes, notary.note = turn.get("notes", {}), {}
            heard = [
                [opened(self.name, sender, frame) for sender, handle in kind if (frame := self._fetch(sender, handle))]
                for kind in turn["heard"]
            ]
            numbers, kinds = tuple(turn["numbers"]), turn["kinds"]
            played = Turn(node.name, turn["action"], round, numbers, kinds, heard, task=turn["task"])
            (answers,) = nodes.play([played], watch)
            sent += [self._handed(message, communicator) for message in answers]
        note = {"note": notary.note} if notary else {}
        times = {"seconds": watch.seconds, "local": users.seconds}
        return {"sent": sent, "facts": self._facts(node) | note, **times}

    def _handed(self, message: Message, communicator: Communicator) -> Values:
        """Hand a message over, and return how long it is, and what leads to it."""
        topology, to, handles = communicator.topology, message.receivers, dict[str, Handle]()
        if wrong := [each for each in to if message.kind not in MAY_SEND[role(self.name), role(each)]]:
            raise CodingError(f"a {role(self.name)} does not send {message.kind} to {wrong[0]}.")
        for receivers in [to] if message.users is None else [(each,) for each in to]:
            handle = self._hand(receivers, cut(message, receivers[0], topology, self._homes))
            handles |= dict.fromkeys(receivers, handle)
        links = torch.from_numpy(np.broadcast_to(message.links, len(message)).copy())
        header = {"kind": message.kind, "tier": message.tier, "links": links}
        return {**header, "handles": handles, "sizes": [*map(int, message.sizes)]}

    def _facts(self, node: Node | Host) -> Values:
        facts: Values = {fact: getattr(node, fact) for fact in FACTS[node.name.split()[0]]}
        if isinstance(node, Server):
            facts["silent"], facts["sizes"] = sorted(map(int, node.silent)), [*map(int, node.sizes)]
            facts["empty"], facts["handover_bits"] = bool(node.empty), int(node.handover_bits)
            facts["attendance"] = torch.from_numpy(node.attendance.to_bytes())
        if isinstance(facts.get("phase"), Phase):
            facts["phase"] = facts["phase"].value
        return facts

    def report(self) -> tuple[Task, ...] | tuple[Scaling, ...]:
        """Return what a report needs of each user's data; if only sums may be known, the scaling that all share."""
        problem = self.training.algorithm.problem
        if self.training.only_sums:
            return tuple(task.scaling for task in problem.tasks[:1] if task.preprocessing.is_shared)
        targets = problem.loss.measure == "mean squared error"  # R² needs them
        return tuple(for_report(task, targets) for task in problem.tasks)

    def measure(self) -> dict[str, Tensor]:
        """Return the measures of this host's users."""
        self._blocks = self.training.algorithm.users.blocks()
        return self.training.algorithm.users.measure()

    def block(self) -> Tensor:
        """Return the next columns of the models of this host's users."""
        return next(self._blocks).clone()

    def keep(self) -> None:
        """Keep the users' present models."""
        keep_models(self.training.algorithm.users)

    def local(self, round: int) -> tuple[Tensor, float]:
        """Let users train who need nobody else; return who did, and the CPU time of the slowest [s]."""
        users = self.training.algorithm.users
        active, _ = users.local_update(round)
        users.commit(active)
        return torch.from_numpy(self._homes[self.name][active]), users.seconds

    def users_state(self) -> dict[str, Tensor]:
        """Return the state of this host's users."""
        return self.training.algorithm.users.state_dict()

    def load_users(self, state: Mapping[str, Tensor]) -> None:
        """Let this host's users continue from a state."""
        self.training.algorithm.users.load_state_dict(state)

    def save_users(self, rounds: int) -> None:
        """Save the state of this host's users on its own disk, that of the last time beside it."""
        nodes = {name: each.state_dict() for name, (_, each, _) in self._players.items()}
        state = {"rounds": rounds, "users": self.training.algorithm.users.state_dict(), "nodes": nodes}
        if self._file.exists():
            self._file.replace(self._file.with_suffix(".before"))
        save_checkpoint(self._file, "host", {}, state)

    def restore_users(self, rounds: int) -> None:
        """Let this host's users continue from the state after `rounds` rounds on its own disk, and remove later ones.

        Raises:
            EngineError: there is no such state.
            CheckpointError: it is damaged.
        """
        for file in (self._file, self._file.with_suffix(".before")):
            if file.exists() and (saved := load_checkpoint(file, "host"))["rounds"] == rounds:
                file.replace(self._file)  # so that the next state does not take its place
                self._kept = saved["nodes"]
                self.training.algorithm.users.load_state_dict(saved["users"])
                return
        raise EngineError(
            f"{self._file} lacks the state of the users of {self.name} after {rounds} rounds. Restore it, or begin "
            "another run."
        )

    def save_models(self) -> None:
        """Save the models of this host's users, which nobody else has."""
        algorithm = self.training.algorithm
        models = handed_out(algorithm.users, algorithm.users.state_dict()).T
        file = self.training.folder / f"models-{self.name.replace(' ', '-')}.npz"
        models_of(algorithm, models, algorithm.problem.tasks).save(file)

    @property
    def _file(self) -> Path:
        return self.training.folder / f"state-{self.name.replace(' ', '-')}.pt"

    def node_state(self, name: str) -> Values:
        """Return what the node remembers from round to round; nothing, if a host keeps it to itself."""
        return {} if self._keeps else self._players[name][1].state_dict()

    def settle(self, name: str, agreed: int) -> bool:
        """Settle an update that is prepared, as the next attendance would; return whether the state is the present one.

        Args:
            name: of the nodes.
            agreed: the version of the present state.
        """
        _, nodes, _ = self._players[name]
        for relay in nodes.relays:
            relay.settle(agreed)
        return nodes.aggregation is not None and nodes.aggregation.version == agreed

    def aggregator_state(self, name: str) -> dict[str, Tensor]:
        """Return the state of the aggregator."""
        return self._players[name][2].state_dict()

    def figure_state(self, name: str) -> dict[str, Tensor]:
        """Return the part of the aggregator's state that figures need."""
        return self._players[name][2].figure_state()

    def learned(self, name: str) -> Any:
        """Return what the aggregator learned in a set-up, or of figures."""
        side: Any = self._players[name][2]
        return side.learned

    def figure_shapes(self) -> dict[str, list[int]]:
        """Return the shapes of a user's terms of figures."""
        terms = self.training.algorithm.terms_of_figures()
        return {name: [*each.shape[1:]] for name, each in terms.items()}


def for_report(task: Task, targets: bool) -> Task:
    """Return the part of a task that a report needs: shapes and scaling, and optionally the raw targets."""
    known = task.without_rows()
    raw = task.raw.without_rows(not targets)
    return replace(known, prepared=replace(task.prepared, raw=raw)) if task.prepared else raw
