"""A run over processes, each with a node of its own.

All go through the same rounds, and each holds what its node needs: a host of users their rows and models, an aggregator
its state. The first one, which plays the server, also keeps the results: after each round it is told what the others
sent and measured, and for a checkpoint and at the end their state. These words are no part of the network that is
studied, and the ledger does not count them.
"""

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.communication import Communicator, LinkLedger, Links, Network, Outcome
from hmtl.communication.messages import SERVER, host_name, relay_name
from hmtl.data import Task
from hmtl.distributed.connections import Wires
from hmtl.distributed.control import Word, Words
from hmtl.distributed.links import Distributed
from hmtl.distributed.multicast.group import Caster, Listener, Multicast
from hmtl.distributed.outline import from_outline, outline, results, with_results
from hmtl.distributed.rendezvous import Rendezvous, packed, unpacked
from hmtl.distributed.residents import Residents
from hmtl.errors import CheckpointError, ConfigError, EngineError
from hmtl.mtl import Aggregator, Algorithm, Users
from hmtl.topology import Moving, Topology
from hmtl.training.engine import Engine, Load

log = logging.getLogger(__name__)


class TorchDistributed(Engine):
    """A process for each node, over torch.distributed: rank 0 is the server, then come the relays, then hosts of users.

    For networks that are trusted: gloo neither encrypts, nor makes sure who speaks.

    Args:
        seconds: how long to wait for the word of a process before its users, or it, count as absent.
        multicast: where the server says once what several relays are to hear; None: a copy for each, by TCP.

    Raises:
        ConfigError: the process was not started by torchrun or `hmtl.launch`.
    """

    whole = False

    def __init__(self, seconds: float = 60.0, multicast: Multicast | None = None) -> None:
        if not seconds > 0:
            raise ConfigError(f"engine.seconds={seconds} is no time to wait: give seconds above 0.")
        self.seconds, self.multicast, self._place = seconds, multicast, Rendezvous(seconds)
        self.rank, self.size = self._place.rank, self._place.size
        self.leads = self.rank == 0
        self._measured: dict[str, dict[str, Tensor]] = {}  # by each host, as it was told last
        self._gone: dict[str, Tensor] = {}  # what was saved last, of users who are gone
        self._told: dict[str, Tensor] = {}  # of the aggregator's side
        self._holders: list[str] = []  # of the aggregators' present state

    def tasks(self, load: Load, K: int | None, H: int) -> tuple[Task, ...]:
        """Hosts load the data, and keep the rows of their own users; the others learn from one how many there are.

        Raises:
            ConfigError: there are too few processes, or too many.
            HmtlError: a host cannot load.
        """
        hosts, first = self._place.hosts(H, K), H + 1
        tasks: tuple[Task, ...] = ()
        with self.together():
            if self.rank >= first:
                tasks = load(lambda K: set(np.array_split(np.arange(K), hosts)[self.rank - first].tolist()))
                self._place.hosts(H, len(tasks))
                if self.rank == first:
                    self._place.store.set("outline", bytes(packed(outline(tasks))))
        if not tasks:
            tasks = from_outline(unpacked(self._place.store.get("outline")))
        self._homes = np.array_split(np.arange(len(tasks)), hosts)
        self._mine = self._homes[self.rank - first] if self.rank >= first else np.empty(0, np.int64)
        here = set(self._mine.tolist())
        return tuple(task if k in here else task.elsewhere() for k, task in enumerate(tasks))

    def together(self) -> AbstractContextManager[None]:
        return self._place.together()

    def join(self, contacts: Topology | Moving, network: Network) -> Callable[[LinkLedger], Links]:
        """Meet the other processes.

        Raises:
            ConfigError: the network is no broadcast and multicast is asked for.
            EngineError: a process has gone, or multicast is not possible here.
        """
        if self.multicast and network.medium != "broadcast":
            raise ConfigError(
                f"engine=multicast has one transmission for all relays, network.medium={network.medium} one for each: "
                "set network.medium=broadcast, or engine=torch_distributed."
            )
        names = [SERVER, *map(relay_name, range(contacts.H)), *map(host_name, range(len(self._homes)))]
        self.me, self._others = names[self.rank], names[1:]
        self._hosts = [name for name in names if name.startswith("host")]
        if self.leads:
            log.warning("%d processes; nothing is encrypted or signed: for trusted networks only", self.size)
        store = self._place.store
        if self.leads:
            store.set("run", secrets.token_bytes(8))
        self._place.connect()
        ranks = {name: rank for rank, name in enumerate(names) if _speak(self.me, name)}
        self.group = self._group(int.from_bytes(store.get("run"), "little"), network)
        self.wires = Wires(self.me, ranks, self.seconds, self.group)
        self.words = Words(self.wires, self._others)
        return lambda ledger: Distributed(ledger, self.wires, contacts, self._homes)

    def _group(self, run: int, network: Network) -> Caster | Listener | None:
        """This process's end of the multicast group, if it has one."""
        server = os.environ["MASTER_ADDR"]
        if self.multicast and self.leads:
            return Caster(self.multicast, server, run, network.W2)
        return Listener(self.multicast, server, run, self.rank) if self.multicast and "relay" in self.me else None

    def side(self, users: Users) -> Users:
        return Residents(users, self._mine)

    def introduce(self, algorithm: Algorithm, communicator: Communicator, before: Callable[[], Word]) -> None:
        self._before, problem = before, algorithm.problem
        told = results(problem.tasks, targets=problem.loss.measure == "mean squared error") if problem.tasks else {}
        words = self.words.tell(communicator, {"results": told})
        if self.leads:
            parts = [words[name]["results"] for name in self._all(words, self._hosts)]
            of_all = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            problem.everybody = tuple(with_results(problem.everybody, of_all))

    def learn(self, users: Users, aggregator: Aggregator, communicator: Communicator) -> None:
        words = self.words.tell(communicator, {"facts": users.local_update(-1)[1]})
        if self.leads:
            facts = torch.cat([words[name]["facts"] for name in self._all(words, self._hosts)])
            aggregator.update(np.arange(len(facts)), facts)

    def measured(
        self, algorithm: Algorithm, communicator: Communicator, outcome: Outcome, user_seconds: float, evaluate: bool
    ) -> Word | None:
        """Hosts tell the figures of their users, aggregators what else there is to know, and the first one merges."""
        told = algorithm.aggregator.tell()
        news = {name: value for name, value in told.items() if value is not self._told.get(name)}
        self._told = told
        words = self.words.tell(
            communicator,
            {
                "measured": algorithm.users.measure() if evaluate and len(self._mine) else {},
                "aggregator": news if self.me.startswith("relay") else {},
                "users": len(outcome.users),
                "user_seconds": user_seconds,
            },
        )
        if not self.leads:
            start = 0
            for block in algorithm.users.blocks() if evaluate and len(self._mine) else ():
                self.words.say(SERVER, ({"block": block.clone(), "start": start}))
                start += block.shape[1]
            return None
        self._holders = [relay_name(i) for i in outcome.aggregators] or self._holders
        for word in [words[name] for name in self._holders if name in words][:1]:
            algorithm.aggregator.know(word["aggregator"])
        if self._holders and set(self._holders) <= set(self.wires.lost):
            raise EngineError(
                f"all aggregators are lost ({', '.join(self._holders)}), and with them what later rounds build on: go "
                "on from the last checkpoint by resume=PATH."
            )
        self._measured |= {name: word["measured"] for name, word in words.items() if word["measured"]}
        measured = {}
        if evaluate:
            of_hosts = [self._measured[name] for name in self._all(self._measured, self._hosts)]
            measured = {name: torch.cat([each[name] for each in of_hosts]) for name in of_hosts[0]}
        travels = algorithm.users.numbers > 0
        return {
            "figures": algorithm.figures(measured, self._blocks(algorithm)) if evaluate else {},
            "measured": measured,
            "users": len(outcome.users) if travels else sum(word["users"] for word in words.values()),
            "user_seconds": max(word["user_seconds"] for word in words.values()),
        }

    def _blocks(self, algorithm: Algorithm) -> Iterator[Tensor]:
        """Models of all users, some columns at a time; of those who are gone, as they were saved last."""
        start = 0
        for block in algorithm.users.blocks():
            words, columns = self.words.hear(self._hosts, "block"), slice(start, start + block.shape[1])
            for name, home in zip(self._hosts, self._homes, strict=True):
                if name not in words or words[name]["start"] != start:
                    self._gone = self._gone or self._before()["algorithm"]["users"]
                    words[name] = {"block": algorithm.users.predictors(self._gone)[home, columns]}
            yield torch.cat([words[name]["block"] for name in self._hosts])
            start = columns.stop

    def _all(self, words: Mapping[str, object], names: list[str]) -> list[str]:
        """These names, of which all are known; else an EngineError."""
        if lacking := [name for name in names if name not in words]:
            raise EngineError(f"{lacking[0]} was lost before it told anything of its users: start, or resume, again.")
        return names

    def agree(self, word: Word) -> Word:
        return self.words.agree(word)

    def state(self, algorithm: Algorithm, communicator: Communicator) -> Word | None:
        """The first one asks one process after the other, so that never more than one state is on its way."""
        whole = communicator.state_dict()
        if not self.leads:
            while (asked := self.agree({}))["tell"]:
                users = algorithm.users.state_dict() if len(self._mine) else {}
                own = algorithm.aggregator.state_dict() if asked["aggregator"] else None
                word = {"users": users, "aggregator": own, "nodes": whole["nodes"]}
                self.words.say(SERVER, (word))
            return None
        relays = [name for name in self._others if "relay" in name] if communicator.planner.home else []
        holders = self._holders or relays
        here = not holders or not algorithm.users.numbers
        aggregator: Word | None = algorithm.aggregator.state_dict() if here else None
        nodes: Word = {SERVER: whole["nodes"]}
        merged: dict[str, Tensor] = {}
        for name in self._others:
            self.words.say(name, ({"tell": True, "aggregator": name in holders and aggregator is None}))
            home = self._homes[self._hosts.index(name)] if name in self._hosts else self._mine
            word = self.words.hear([name], "nodes").get(name, {})
            if not word:  # it is gone: as it was told last
                old = self._before()
                users = {key: rows[home] if rows.ndim else rows for key, rows in old["algorithm"]["users"].items()}
                word = {"users": users, "nodes": old["communicator"]["nodes"][name], "aggregator": None}
            nodes[name] = word["nodes"]
            if aggregator is None and name in holders and word["aggregator"] is not None:
                present = self._version(nodes, name) == self._version(nodes, SERVER)
                aggregator = word["aggregator"] if present else None  # who missed the last verdict has an older one
            for key, rows in word["users"].items():
                if not rows.ndim:
                    merged[key] = torch.maximum(rows, merged.get(key, rows))
                    continue
                if key not in merged:
                    merged[key] = rows.new_empty(sum(map(len, self._homes)), *rows.shape[1:])
                merged[key][home] = rows
        for name in self._others:
            self.words.say(name, ({"tell": False}))
        if aggregator is None:
            raise EngineError(
                f"no aggregator ({', '.join(holders)}) told what later rounds build on: go on from the last checkpoint "
                "by resume=PATH."
            )
        return {"algorithm": {"users": merged, "aggregator": aggregator}, "communicator": whole | {"nodes": nodes}}

    @staticmethod
    def _version(nodes: Word, name: str) -> int:
        """How many rounds of aggregation a node knows of."""
        return int(nodes[name][name]["version"]) if name in nodes[name] else 0

    def mine(self, state: Word, algorithm: Algorithm, communicator: Communicator) -> Word:
        """The rows of the users here; and the aggregator's state where it has to be known.

        Raises:
            CheckpointError: it is of another number of processes.
        """
        nodes, sides = state["communicator"]["nodes"], state["algorithm"]
        there, here = set(nodes), {SERVER, *self._others}
        if there != here:
            raise CheckpointError(
                f"the checkpoint comes from a run of {len(there)} processes, here are {len(here)}: start as many."
            )
        users = {name: rows[self._mine] if rows.ndim else rows for name, rows in sides["users"].items()}
        algorithm.aggregator.know({name: sides["aggregator"][name] for name in algorithm.aggregator.tell()})
        aggregator: Word = {"aggregator": sides["aggregator"]}
        if communicator.planner.home:  # who is behind is handed the state in a round
            relays = [name for name in nodes if "relay" in name and nodes[name]]
            versions = {name: int(nodes[name][name]["version"]) for name in relays}
            holds = self.me in versions and versions[self.me] == max(versions.values())
        else:
            holds = self.leads
        return {
            "algorithm": {"users": users, **(aggregator if holds else {})},
            "communicator": state["communicator"] | {"nodes": nodes[self.me]},
        }

    def models(self, algorithm: Algorithm, state: Mapping[str, Any] | None) -> Tensor:
        assert state is not None, "this process keeps no results"
        return algorithm.users.predictors(state["algorithm"]["users"]).T

    def close(self) -> None:
        self.wires.close()
        if self.group:
            self.group.close()


def _speak(a: str, b: str) -> bool:
    """Whether two nodes have anything to say to each other; the server has with all, be it words alone."""
    return a != b and (SERVER in (a, b) or a.split()[0] != b.split()[0])
