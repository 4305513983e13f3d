"""Stand-ins for nodes and users elsewhere, so that rounds and the trainer run unchanged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.accounting.ledger import Sent
from hmtl.communication.communicators.base import SETUP_ROUND
from hmtl.communication.flows.planner import Planner
from hmtl.communication.messages import SERVER
from hmtl.communication.round import Nodes, Stopwatch
from hmtl.communication.turns import Phase, Turn
from hmtl.distributed.cell import FACTS, Handle
from hmtl.errors import StateLost, few
from hmtl.io.arrays import NOBODY, Ids
from hmtl.mtl import Algorithm
from hmtl.training.engine import Values


@dataclass(frozen=True, eq=False)
class Envelope:
    """What the controller knows of a message, see `hmtl.communication.messages.Message`; `handles` lead to it."""

    kind: str
    tier: str
    sender: str
    receivers: tuple[str, ...]
    links: NDArray[np.int64]  # of each row
    sizes: tuple[int, int]
    handles: Mapping[str, Handle]
    announces = False

    def __len__(self) -> int:
        return len(self.links)


@dataclass(frozen=True)
class StandIns(Nodes):
    """Stand-ins for the nodes of all cells; they hold the facts that each cell reported last.

    Args:
        name: of these nodes, see `Cell.nodes`.
        controller: asks the cells.
        side: the controller's copy of the aggregator.
    """

    name: str = ""
    controller: Any = None
    side: Any = None
    _round: list[int] = field(default_factory=lambda: [SETUP_ROUND])
    _notes: dict[str, Values] = field(default_factory=dict)  # what hosts signed in this round
    _waiting: dict[str, list[Values]] = field(default_factory=dict)  # turns that go along with a node's next ones

    def play(self, turns: Sequence[Turn], watch: Stopwatch) -> Iterator[Sequence[Any]]:
        for turn in turns:
            self._waiting.setdefault(turn.node, []).append(self._values(turn))
        if turns and not turns[0].tells:  # these turns can go along with the next ones
            yield from ([] for _ in turns)
            return
        context = {"name": self.name, "round": self._round[0], "evaluates": self.controller.users.evaluates}
        calls = {turn.node: {"turns": self._waiting.pop(turn.node), **context} for turn in turns}
        answers = self.controller.call({name: ("play", values) for name, values in calls.items()})
        for turn in turns:
            answer, member = answers.get(turn.node), self.members[turn.node]
            if answer is None:
                self._miss(member)
                yield []
                continue
            for clock, seconds in answer["seconds"].items():
                watch.seconds[clock] = watch.seconds.get(clock, 0.0) + seconds
            self._learn(member, answer["facts"])
            self.controller.users.seconds = max(self.controller.users.seconds, answer["local"])
            if note := answer["facts"].get("note"):
                self._notes[turn.node] = note
            yield [_envelope(turn.node, sent) for sent in answer["sent"]]
        if turns and turns[0].action == "deliver":
            self._note_holders()

    def _values(self, turn: Turn) -> Values:
        """Return a turn as `Cell.play` takes it."""
        users, sample = self.controller.users, None
        if turn.action == "update":
            self._round[:] = turn.numbers[:1]
            self._notes.clear()
            users.seconds = 0.0
            if users.sample is not None:
                sample = torch.from_numpy(np.intersect1d(users.sample, self.controller.homes[turn.node]))
        heard: Any = turn.heard  # envelopes
        passed = {"advertise": self.controller.nonces.get(self.name, {}), "share": self._notes}
        return {
            "action": turn.action,
            "numbers": list(turn.numbers),
            "kinds": list(turn.kinds),
            "heard": [[(each.sender, each.handles[turn.node]) for each in kind] for kind in heard],
            "task": turn.task,
            "sample": sample,
            "notes": passed.get(turn.action, {}),
        }

    def _miss(self, member: Any) -> None:
        if member.name == SERVER:
            raise StateLost("the server does not answer.")
        member.phase, member.combining = Phase.ABSENT, False
        self._waiting.pop(member.name, None)

    def _learn(self, member: Any, facts: Values) -> None:
        for fact in FACTS[member.name.split()[0]]:
            setattr(member, fact, facts[fact])
        if "phase" in facts:
            member.phase = Phase(facts["phase"])
        if "attendance" in facts:
            member.attendance = member.planner.attendance(facts["attendance"].numpy().tobytes())
            member.sizes, member.silent = tuple(facts["sizes"]), set(facts["silent"])

    def _note_holders(self) -> None:
        """Note who has the present state of the aggregator."""
        assert self.server
        before, self.controller.agreed[self.name] = self.controller.agreed.get(self.name), self.server.version
        if before != self.server.version:
            aggregators = [self.controller.relays[i] for i in self.server.attendance.aggregators]
            self.controller.holders[self.name] = [*[SERVER] * self.server.planner.server, *aggregators]

    def follow(self, planner: Planner) -> None:
        for member in (*self.hosts, *self.relays, self.server):
            assert member
            member.planner = planner

    def close(self) -> None:
        """End the round; after a set-up and a round of figures, take what the aggregators learned."""
        self._waiting.clear()
        if self.name.startswith(("set-up", "figures")) and self.name in self.controller.holders:
            learned = self.controller.ask_one(self.name, "learned")
            self.side.take(learned)
            if self.name != "figures":
                self.controller.facts.append(learned)

    def state_dict(self) -> dict[str, Any]:
        """Return what each node, by its name, and its aggregation remember from round to round.

        Raises:
            StateLost: a host is missing.
        """
        names = [*self.controller.hosts, *self.controller.relays, SERVER]
        self.controller.settle(self.name, self.controller.relays)
        states: dict[str, Any] = self.controller.call({name: ("node_state", {"name": self.name}) for name in names})
        _check_all(states, self.controller.hosts)
        return states

    def load_state_dict(self, memory: dict[str, Any]) -> None:
        """Make the nodes in all cells, which continue from `memory`."""
        self.controller.make(self.name, self.side, memory)


def _check_all(answers: Mapping[str, Any], hosts: Sequence[str]) -> None:
    """Raise StateLost if a host did not answer."""
    if missing := [host for host in hosts if host not in answers]:
        raise StateLost(f"{few(missing)}: no answer, so the state of these users is unknown.")


def _envelope(sender: str, sent: Values) -> Envelope:
    links, sizes, handles = sent["links"].numpy(), tuple(sent["sizes"]), sent["handles"]
    return Envelope(sent["kind"], sent["tier"], sender, tuple(handles), links, sizes, handles)


def bits_of(sent: Values, round: int) -> Sent:
    """Return the bits of a message that a cell sent in a round, see `Cell.play`."""
    payload, overhead = sent["sizes"]
    return Sent(sent["tier"], sent["kind"], sent["links"].numpy(), 8 * payload, 8 * overhead, round)


class FarUsers:
    """The user side of a learner whose users are at hosts elsewhere; `inner` answers what needs no host.

    If only sums may be known, hosts keep their users' state on their own disks, and their users' figures to themselves.

    Args:
        algorithm: has the same user side, without users.
        controller: asks hosts.

    Attributes:
        kept: the best model so far, if only sums may be known.
        measured: the measures of each host's users, as last seen.
        seconds: see `Users`.
    """

    def __init__(self, algorithm: Algorithm, controller: Any) -> None:
        self.algorithm, self.inner, self.controller = algorithm, algorithm.users, controller
        self.seconds = 0.0
        self.kept: Tensor | None = None
        self._saved: dict[str, dict[str, Tensor]] = {}  # the state of each host's users, as last seen
        self.measured: dict[str, dict[str, Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        """Return what needs no host from the user side that is here."""
        return getattr(self.__dict__["inner"], name)

    def _ask(self, call: str, **values: Any) -> dict[str, Any]:
        hosts = self.controller.hosts
        answers: dict[str, Any] = self.controller.call(dict.fromkeys(hosts, (call, values)))
        return answers

    def _rows(self, by_host: Mapping[str, Any], name: str) -> Tensor:
        """Return a row for each user from those of hosts."""
        return torch.cat([by_host[host][name] for host in self.controller.hosts])[self.controller.order]

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        """Let users train who need nobody else."""
        answers = self._ask("local", round=round).values()
        self.seconds = max((seconds for _, seconds in answers), default=0.0)
        return np.sort(np.concatenate([NOBODY, *(users.numpy() for users, _ in answers)])), torch.empty(0, 0)

    def commit(self, users: Ids) -> None:
        """Leave it to hosts, which have applied the updates."""

    def measure(self) -> dict[str, Tensor]:
        """Return the measures of all users; of those whose host is absent, the last ones. Aggregators are asked too.

        As long as a host has never measured, its users' measures are NaN, and nothing else is returned.

        Raises:
            StateLost: no host has.
        """
        self.measured |= self._ask("measure")
        self.controller.gather_figure_state()
        if not self.measured:
            raise StateLost("no host sent any measurements.")
        first, by_host = next(iter(self.measured.values())), dict(self.measured)
        for host in (homes := self.controller.homes).keys() - by_host.keys():
            first = {name: rows for name, rows in first.items() if self.algorithm.problem.is_measure(name)}
            by_host[host] = {name: rows.new_full((len(homes[host]),), torch.nan) for name, rows in first.items()}
        return {name: self._rows(by_host, name) for name in first}

    def blocks(self) -> Iterator[Tensor]:
        start = 0
        for block in self.inner.blocks():
            columns = slice(start, start + block.shape[1])
            by_host = {host: {"": rows} for host, rows in self._ask("block").items()}
            for host in self.controller.hosts:
                if host not in by_host:
                    by_host[host] = {"": self.inner.predictors(self._saved[host])[:, columns]}
            yield self._rows(by_host, "")
            start = columns.stop

    def keep(self) -> None:
        """Let hosts keep their users' present models."""
        self._ask("keep")
        if self.controller.only_sums:
            self.controller.gather()
            self.kept = self.algorithm.common

    def figure_shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of a user's terms of figures.

        Raises:
            StateLost: no host says them.
        """
        shapes: dict[str, list[int]] = next(iter(self._ask("figure_shapes").values()), {})
        if not shapes:
            raise StateLost("no host says which figures there are.")
        return {name: torch.Size(shape) for name, shape in shapes.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all users; if only sums may be known, let hosts save it.

        Raises:
            StateLost: a host is missing.
        """
        if self.controller.only_sums:
            saved = self._ask("save_users", rounds=self.controller.built.communicator.ledger.rounds)
            _check_all(saved, self.controller.hosts)
            return {} if self.kept is None else {"kept": self.kept}
        answers = self._ask("users_state")
        _check_all(answers, self.controller.hosts)
        self._saved = answers
        state: dict[str, Tensor] = {}
        everybody, homes = np.arange(len(self.controller.order)), self.controller.homes
        for key, first in self._saved[self.controller.hosts[0]].items():
            by_host = {host: self._saved[host][key] for host in homes}
            if not first.ndim:
                state[key] = torch.stack([*by_host.values()]).amax()
            elif all(rows.stride(0) == 0 and torch.equal(rows[0], first[0]) for rows in by_host.values()):
                state[key] = first[:1].expand(len(self.inner.places(key, everybody)), *first.shape[1:])
            else:
                state[key] = first.new_empty(len(self.inner.places(key, everybody)), *first.shape[1:])
                for host, rows in by_host.items():
                    state[key][self.inner.places(key, homes[host])] = rows
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if self.controller.only_sums:
            self.kept = state_dict.get("kept")
            self._ask("restore_users", rounds=self.controller.rounds)
            return
        calls = {}
        for host, home in self.controller.homes.items():
            own = {key: _part(rows, self.inner.places(key, home)) for key, rows in state_dict.items()}
            self._saved[host] = own
            calls[host] = "load_users", {"state": own}
        self.controller.call(calls)


def _part(rows: Tensor, places: Ids) -> Tensor:
    """Return the rows at these places, without a copy of each if all are one; a single number as it is."""
    if rows.ndim and rows.stride(0):
        return rows[places]
    return rows[: len(places)] if rows.ndim else rows
