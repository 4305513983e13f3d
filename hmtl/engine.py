"""Where the nodes of a run live: all in this process, or each in a process of its own.

Every process of a run goes through the same rounds. What they tell each other besides the messages of their nodes,
measurements and whether to go on, are words: dictionaries of numbers and tensors. They are not part of the network that
is studied, and the ledger does not count them.
"""

import datetime
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from hmtl.communication import InProcess, LinkLedger, Links
from hmtl.communication.distributed import Distributed
from hmtl.communication.frames import WORD, Frame
from hmtl.communication.messages import SERVER, Users, host_name, nothing, relay_name
from hmtl.communication.wires import Wires
from hmtl.errors import ConfigError, EngineError
from hmtl.topology import Topology

Word = dict[str, Any]


class Engine:
    """All nodes in this process.

    Attributes:
        leads: whether this process keeps the run's results: it logs, saves and decides.
        users: those who live here; None: all.
    """

    leads = True
    users: Users | None = None

    def join(self, topology: Topology) -> Callable[[LinkLedger], Links]:
        """Take a place in the network; gives the links that lead from there."""
        return InProcess

    def gather(self, word: Word) -> list[Word]:
        """Everybody's words, this process's first, where it leads; nothing elsewhere."""
        return [word]

    def share(self, word: Word) -> Word:
        """The word of the process that leads."""
        return word

    def lost(self) -> dict[str, str]:
        """Who is not heard any more, and why."""
        return {}

    def close(self) -> None:
        """Leave."""


class TorchDistributed(Engine):
    """A process for each node, over torch.distributed: rank 0 is the server, then come the relays, then hosts of users.

    For networks that are trusted: gloo neither encrypts, nor makes sure who speaks.

    Args:
        seconds: how long to wait for the word of a process before its users, or it, count as absent.

    Raises:
        ConfigError: the process was not started by torchrun or `hmtl.launch`, or there are too few of them.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        if not seconds > 0:
            raise ConfigError(f"engine.seconds={seconds} is no time to wait: give seconds above 0.")
        if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise ConfigError(
                f"engine=torch_distributed, but {missing[0]} is not set: start all processes by "
                "python -m hmtl.launch processes=N, or by torchrun -m hmtl.train."
            )
        self.seconds = seconds
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.leads = self.rank == 0

    def join(self, topology: Topology) -> Callable[[LinkLedger], Links]:
        hosts = self.size - 1 - topology.H
        if hosts < 1:
            raise ConfigError(
                f"engine=torch_distributed has {self.size} processes, H={topology.H} relays need {topology.H + 2} or "
                "more: a server, the relays, and a host of users. Start more."
            )
        homes = np.array_split(np.arange(topology.K), hosts)
        names = [SERVER, *map(relay_name, range(topology.H)), *map(host_name, range(hosts))]
        if self.rank > topology.H:
            self.users = homes[self.rank - 1 - topology.H]
        elif self.users is None:
            self.users = np.empty(0, np.int64)
        store = self._store()
        # a wait that gloo gave up would break all connections: deadlines are kept elsewhere
        forever = datetime.timedelta(days=365)
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=forever)
        me = names[self.rank]
        ranks = {name: rank for rank, name in enumerate(names) if _speak(me, name)}
        self._others = names[1:]
        self.wires = Wires(me, ranks, self.seconds)
        return lambda ledger: Distributed(ledger, self.wires, topology, homes)

    def _store(self) -> dist.Store:
        wait = datetime.timedelta(seconds=max(60.0, self.seconds))
        try:
            store = dist.TCPStore(
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), self.size, self.leads, timeout=wait
            )
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"process {self.rank} does not reach {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
                f"({str(error).splitlines()[0][:80]}): is the first process there, and the port free?"
            ) from error
        return store

    def gather(self, word: Word) -> list[Word]:
        if not self.leads:
            self.wires.say(SERVER, _as_frame(word, self.wires.round))
            return []
        heard = self.wires.hear(WORD, self._others, patience=5)
        return [word, *(_as_word(frame) for frames in heard.values() for frame in frames)]

    def share(self, word: Word) -> Word:
        if self.leads:
            for name in self._others:
                self.wires.say(name, _as_frame(word, self.wires.round))
            return word
        heard = self.wires.hear(WORD, [SERVER], patience=6)
        if SERVER not in heard:
            why = self.wires.lost.get(SERVER, f"it said nothing for {6 * self.seconds:g} s")
            raise EngineError(f"{self.wires.me} lost the server ({why}): go on from the last checkpoint by resume=PATH.")
        return _as_word(heard[SERVER][0])

    def lost(self) -> dict[str, str]:
        return {name: "it is late" for name in self.wires.late} | self.wires.lost

    def close(self) -> None:
        self.wires.close()


def _speak(a: str, b: str) -> bool:
    """Whether two nodes have anything to say to each other; the server has with all, be it words alone."""
    return a != b and (SERVER in (a, b) or a.split()[0] != b.split()[0])


def _as_frame(word: Word, round: int) -> Frame:
    content = io.BytesIO()
    torch.save(word, content)
    payload = torch.frombuffer(bytearray(content.getbuffer()), dtype=torch.uint8)[None]
    return Frame(WORD, round, payload, nothing(1))


def _as_word(frame: Frame) -> Word:
    content = io.BytesIO(frame.payload.numpy().tobytes())
    return dict(torch.load(content, weights_only=True))  # numbers and tensors: nothing is executed
