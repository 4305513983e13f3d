"""The nodes of a run in threads of one process, connected by queues instead of gloo."""

from collections import defaultdict
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread, local
from typing import Any

import torch

from hmtl.communication import Network
from hmtl.data import Task
from hmtl.distributed.connections import Connection, Transport
from hmtl.distributed.exchange import ProcessExchange
from hmtl.distributed.multicast.group import Caster, Listener
from hmtl.distributed.peers import Peers
from hmtl.distributed.placement import Placement
from hmtl.topology import Moving, Topology
from hmtl.training.engine import Engine, Exchange, Load

LONGEST = 100.0  # seconds that a thread may take


class Killed(Exception):
    """Ends a node as if its process had been killed."""


class Queues:
    """All bytes on their way, by sender and receiver; None means that the sender has ended."""

    def __init__(self) -> None:
        self.boxes: dict[tuple[int, int], SimpleQueue[torch.Tensor | None]] = defaultdict(SimpleQueue)

    def of(self, rank: int) -> "QueueTransport":
        return QueueTransport(self, rank)


class QueueTransport(Transport):
    """One node's end of the queues.

    Attributes:
        spoil: called with the receiver's rank and the bytes that are sent, which it may change.
    """

    def __init__(self, queues: Queues, own: int) -> None:
        self.queues, self.own = queues, own
        self.spoil: Callable[[int, torch.Tensor], None] = lambda rank, content: None

    def send(self, content: torch.Tensor, rank: int) -> None:
        content = content.clone()
        self.spoil(rank, content)
        self.queues.boxes[self.own, rank].put(content)

    def receive(self, content: torch.Tensor, rank: int) -> None:
        received = self.queues.boxes[rank, self.own].get()
        if received is None:
            raise RuntimeError("closed")
        content.copy_(received)

    def end(self, size: int) -> None:
        for rank in range(size):
            self.queues.boxes[self.own, rank].put(None)
            self.queues.boxes[rank, self.own].put(None)


def play(
    placements: list[Placement],
    node: Callable[[Placement, Peers, QueueTransport], Any],
    seconds: float = 30.0,
    group: Callable[[int], Caster | Listener | None] = lambda rank: None,
) -> dict[str, Any]:
    """Return what `node` returned for each placement, by name; without the nodes that raised `Killed`."""
    queues, results, errors = Queues(), {}, []

    def run(placement: Placement) -> None:
        transport, end = queues.of(placement.rank), group(placement.rank)
        listener = end if isinstance(end, Listener) else None
        own, ranks = placement.rank, placement.neighbors
        connections = {name: Connection(own, rank, listener, transport) for name, rank in ranks.items()}
        peers = Peers(placement.name, connections, seconds, end)
        try:
            results[placement.name] = node(placement, peers, transport)
        except Killed:
            transport.end(len(placement.names))
        except BaseException as error:
            errors.append(error)
            transport.end(len(placement.names))

    threads = [Thread(target=run, args=(placement,), daemon=True) for placement in placements]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), f"only {sorted(results)} came to an end"
    for placement in placements:
        queues.of(placement.rank).end(len(placements))
    return results


class ThreadEngine(Engine):
    """The engine of a node that plays in a thread."""

    def __init__(self, placement: Placement, peers: Peers) -> None:
        self.placement, self.peers = placement, peers

    def load_tasks(self, load: Load, K: int | None, H: int) -> tuple[Task, ...]:
        own = self.placement.users
        return tuple(task if k in own else task.without_rows() for k, task in enumerate(load(None)))

    def connect(self, contacts: Topology | Moving, network: Network) -> Exchange:
        return ProcessExchange(self.placement, self.peers, contacts)


_engine = local()


def set_engine(placement: Placement, peers: Peers) -> None:
    """Make `current_engine` return the engine of this node in this thread."""
    _engine.current = ThreadEngine(placement, peers)


def current_engine() -> Engine:
    engine: Engine = _engine.current
    return engine
