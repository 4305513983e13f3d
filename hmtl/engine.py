"""Where the nodes of a run live: all in this process, or each in a process of its own.

Every process of a run goes through the same rounds, and plays its own node. The first one, which plays the server, also
keeps the results: after each round it is told the others' state and what they sent, so as to measure, log and save.
These words are no part of the network that is studied, and the ledger does not count them.
"""

import datetime
import io
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hmtl.communication import Communicator, InProcess, LinkLedger, Links, Network, Outcome
from hmtl.communication.distributed import Distributed
from hmtl.communication.frames import WORD, Frame
from hmtl.communication.group import Caster, Listener, Multicast
from hmtl.communication.messages import SERVER, host_name, nothing, relay_name
from hmtl.communication.wires import Wires
from hmtl.errors import CheckpointError, ConfigError, EngineError
from hmtl.mtl import Algorithm
from hmtl.topology import Moving, Topology

log = logging.getLogger(__name__)
Word = dict[str, Any]


class Engine:
    """All nodes in this process.

    Attributes:
        leads: whether this process keeps the results.
    """

    leads = True

    def join(self, contacts: Topology | Moving, network: Network) -> Callable[[LinkLedger], Links]:
        """Take a place in the network; gives the links that lead from there."""
        return InProcess

    def mirror(self, algorithm: Algorithm, communicator: Communicator, outcome: Outcome | None = None) -> None:
        """Where results are kept, bring both to the state that they would have if all nodes lived there."""

    def agree(self, word: Word) -> Word:
        """The word of the process that leads, for all."""
        return word

    def keep(self, state: Word) -> Word:
        """A communicator's state, with that of the nodes of all processes; and its inverse is `mine`."""
        return state

    def mine(self, state: Word) -> Word:
        """A communicator's state as this process needs it."""
        return state

    def close(self) -> None:
        """Leave."""


class TorchDistributed(Engine):
    """A process for each node, over torch.distributed: rank 0 is the server, then come the relays, then hosts of users.

    For networks that are trusted: gloo neither encrypts, nor makes sure who speaks.

    Args:
        seconds: how long to wait for the word of a process before its users, or it, count as absent.
        multicast: where the server says once what several relays are to hear; None: a copy for each, by TCP.

    Raises:
        ConfigError: the process was not started by torchrun or `hmtl.launch`.
    """

    def __init__(self, seconds: float = 60.0, multicast: Multicast | None = None) -> None:
        if not seconds > 0:
            raise ConfigError(f"engine.seconds={seconds} is no time to wait: give seconds above 0.")
        if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise ConfigError(
                f"engine=torch_distributed, but {missing[0]} is not set: start all processes by "
                "python -m hmtl.launch processes=N, or by torchrun -m hmtl.train."
            )
        self.seconds, self.multicast = seconds, multicast
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.leads = self.rank == 0
        self._nodes: dict[str, Word] = {}  # state of each process's nodes, by its name, as it was told last
        self._users: dict[str, dict[str, Tensor]] = {}  # and of the users' side of each host
        self._holders: list[str] = []  # of the aggregators' present state
        self._lost: dict[str, str] = {}  # of whom the log has told

    def join(self, contacts: Topology | Moving, network: Network) -> Callable[[LinkLedger], Links]:
        """Meet the other processes.

        Raises:
            ConfigError: there are too few of them, or the network is no broadcast and multicast is asked for.
            EngineError: the first of them is not reached, or multicast is not possible here.
        """
        K, H = contacts.K, contacts.H
        hosts = self.size - 1 - H
        if not 1 <= hosts <= K:
            raise ConfigError(
                f"engine=torch_distributed has {self.size} processes; with H={H} and K={K} there are {H + 2} to "
                f"{H + 1 + K}: a server, the relays, and hosts of at least a user each."
            )
        if self.multicast and network.medium != "broadcast":
            raise ConfigError(
                f"engine=multicast has one transmission for all relays, network.medium={network.medium} one for each: "
                "set network.medium=broadcast, or engine=torch_distributed."
            )
        self._homes = np.array_split(np.arange(K), hosts)
        names = [SERVER, *map(relay_name, range(H)), *map(host_name, range(hosts))]
        self.me, self._others = names[self.rank], names[1:]
        # a wait that gloo gave up would break all connections: deadlines are kept elsewhere
        forever = datetime.timedelta(days=365)
        store = self._store()
        if self.leads:
            store.set("run", secrets.token_bytes(8))
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=forever)
        ranks = {name: rank for rank, name in enumerate(names) if _speak(self.me, name)}
        self.group = self._group(int.from_bytes(store.get("run"), "little"), network)
        self.wires = Wires(self.me, ranks, self.seconds, self.group)
        return lambda ledger: Distributed(ledger, self.wires, contacts, self._homes)

    def _group(self, run: int, network: Network) -> Caster | Listener | None:
        """This process's end of the multicast group, if it has one."""
        server = os.environ["MASTER_ADDR"]
        if self.multicast and self.leads:
            return Caster(self.multicast, server, run, network.W2)
        return Listener(self.multicast, server, run, self.rank) if self.multicast and "relay" in self.me else None

    def _store(self) -> Any:
        """Where the processes meet."""
        wait = datetime.timedelta(seconds=max(60.0, self.seconds))
        try:
            # which knows of a store that torchrun has opened, and is public though torch does not export it
            store, *_ = next(dist.rendezvous("env://", timeout=wait))  # type: ignore[attr-defined]
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"process {self.rank} does not reach the first process at {os.environ['MASTER_ADDR']}:"
                f"{os.environ['MASTER_PORT']} ({str(error).splitlines()[0][:80]}): is it there, and the port free?"
            ) from error
        return store

    def mirror(self, algorithm: Algorithm, communicator: Communicator, outcome: Outcome | None = None) -> None:
        """Tell the first process the state of this one's node; there, take over the others'."""
        word = {
            "me": self.me,
            "nodes": communicator.state_dict()["nodes"],
            "sent": communicator.ledger.latest(),
            "seconds": dict(communicator.stopwatch.seconds),
            "users": algorithm.users.state_dict() if self.me.startswith("host") else {},
            "aggregator": algorithm.aggregator.state_dict() if self.me.startswith("relay") else {},
            "lost": dict(self.wires.lost),
            "news": self.wires.news.copy(),
        }
        self.wires.news.clear()
        self._nodes[self.me] = word["nodes"]
        if not self.leads:
            self.wires.say(SERVER, _as_frame(word, self.wires.round))
            return
        heard = self.wires.hear(WORD, self._others, patience=5)
        words = [_as_word(frame) for frames in heard.values() for frame in frames]
        self._tell([word, *words])
        for other in words:
            self._nodes[other["me"]] = other["nodes"]
            communicator.ledger.add_latest(other["sent"])
            communicator.stopwatch.seconds |= other["seconds"]
        self._users |= {other["me"]: other["users"] for other in words if other["users"]}
        algorithm.users.load_state_dict(self._merged(algorithm.users.state_dict()))
        if outcome is not None and outcome.aggregators:
            self._holders = [relay_name(i) for i in outcome.aggregators]
            told = next((other["aggregator"] for other in words if other["me"] in self._holders), None)
            if told is not None:
                algorithm.aggregator.load_state_dict(told)
        elif self._holders and set(self._holders) <= set(self.wires.lost):
            raise EngineError(
                f"all aggregators are lost ({', '.join(self._holders)}), and with them what later rounds build on: go "
                "on from the last checkpoint by resume=PATH."
            )

    def _tell(self, words: Sequence[Word]) -> None:
        """Log what processes have to tell of each other."""
        lost = {name: why for word in words for name, why in word["lost"].items() if name not in self._lost}
        self._lost |= lost
        late = [sentence for word in words for sentence in word["news"]]
        for sentence in dict.fromkeys([*(f"{name} is lost: {why}" for name, why in lost.items()), *late]):
            log.warning("round %d: %s", self.wires.round, sentence)

    def _merged(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """States of the users' side, each with the rows of its own users, as one."""
        K = sum(map(len, self._homes))
        homes = [(home, self._users[host_name(n)]) for n, home in enumerate(self._homes) if host_name(n) in self._users]
        merged = {}
        for name, old in whole.items():
            parts = [state[name].to(old.device) for _, state in homes]
            if not parts or old.ndim == 0:
                merged[name] = (parts or [old])[0]
            elif len(parts[0]) == len(old) == K:
                merged[name] = old.clone()
                for (home, _), part in zip(homes, parts, strict=True):
                    merged[name][home] = part[home]
            else:  # rows of some users, in the order of their hosts
                merged[name] = torch.cat(parts)
        return merged

    def agree(self, word: Word) -> Word:
        """The word of the first process.

        Raises:
            EngineError: it is not heard.
        """
        if self.leads:
            for name in self._others:
                self.wires.say(name, _as_frame(word, self.wires.round))
            return word
        heard = self.wires.hear(WORD, [SERVER], patience=6)
        if SERVER not in heard:
            why = self.wires.lost.get(SERVER, f"it said nothing for {6 * self.seconds:g} s")
            raise EngineError(f"{self.me} lost the server ({why}): go on from the last checkpoint by resume=PATH.")
        return _as_word(heard[SERVER][0])

    def keep(self, state: Word) -> Word:
        return state | {"nodes": dict(self._nodes)}

    def mine(self, state: Word) -> Word:
        there, here = set(state["nodes"]), {SERVER, *self._others}
        if there != here:
            raise CheckpointError(
                f"the checkpoint comes from a run of {len(there)} processes, here are {len(here)}: start as many."
            )
        return state | {"nodes": state["nodes"][self.me]}

    def close(self) -> None:
        self.wires.close()
        if self.group:
            self.group.close()


def _speak(a: str, b: str) -> bool:
    """Whether two nodes have anything to say to each other; the server has with all, be it words alone."""
    return a != b and (SERVER in (a, b) or a.split()[0] != b.split()[0])


def _as_frame(word: Word, round: int) -> Frame:
    content = io.BytesIO()
    torch.save(word, content)
    return Frame(WORD, round, torch.frombuffer(content.getbuffer(), dtype=torch.uint8)[None], nothing(1))


def _as_word(frame: Frame) -> Word:
    content = io.BytesIO(frame.payload.numpy().tobytes())
    return dict(torch.load(content, weights_only=True))  # numbers and tensors: nothing is executed
