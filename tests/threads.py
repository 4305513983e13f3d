"""The nodes of a run in threads of one process, connected by queues instead of gRPC."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Lock, Thread, local
from typing import Any

from hmtl.communication import Network
from hmtl.data import Task
from hmtl.distributed.connections import Connection, Stream
from hmtl.distributed.exchange import ProcessExchange
from hmtl.distributed.frames import MAY_SEND, role
from hmtl.distributed.multicast.group import Caster, Listener
from hmtl.distributed.peers import Peers
from hmtl.distributed.placement import Placement
from hmtl.distributed.sums_only import SumsOnlyExchange
from hmtl.topology import Moving, Topology
from hmtl.training.engine import Engine, Exchange, Load

LONGEST = 100.0  # seconds that a thread may take


class Killed(Exception):
    """Ends a node as if its process had been killed."""


class Line:
    """The messages from one node to another.

    Attributes:
        cut: whether what is sent is lost, as the sender has ended.
    """

    def __init__(self) -> None:
        self.messages: SimpleQueue[bytes | None] = SimpleQueue()
        self.cut = False

    def carry(self, stream: Stream) -> None:
        """Take all messages of a stream."""
        for message in stream.outgoing():
            if not self.cut:
                self.messages.put(message)
        self.messages.put(None)

    def end(self) -> None:
        self.cut = True
        self.messages.put(None)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.messages.get, None)


class Lines:
    """All messages on their way, by sender and receiver."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], Line] = defaultdict(Line)
        self.connections: dict[str, dict[str, Connection]] = defaultdict(dict)  # by node and neighbour
        self._lock = Lock()

    def connect(self, own: str, names: Sequence[str]) -> dict[str, Connection]:
        """Return a node's connections, with a stream to each neighbour."""
        self.connections[own] = {
            name: Connection(name, rank, MAY_SEND[role(name), role(own)])
            for rank, name in enumerate(names)
            if (role(name), role(own)) in MAY_SEND
        }
        for name in self.connections[own]:
            self._open(own, name)
        return self.connections[own]

    def come_back(self, own: str, names: Sequence[str]) -> dict[str, Connection]:
        """Return the connections of a node that has ended, with a new stream to each neighbour that is there."""
        with self._lock:  # otherwise two that come back at once take each other for absent
            present = [name for name in names if self.connections[own].get(name) and not self.lines[name, name].cut]
            for name in present:
                self.lines[own, name], self.lines[name, own] = Line(), Line()
            self.lines[own, own].cut = False
            connections = self.connect(own, names)
            for name in present:
                self._open(name, own)
        return connections

    def _open(self, own: str, name: str) -> None:
        connection = self.connections[own][name]
        stream = Stream(connection)
        Thread(target=self.lines[own, name].carry, args=(stream,), daemon=True).start()
        Thread(target=stream.take, args=(iter(self.lines[name, own]),), daemon=True).start()
        connection.attach(stream)

    def end(self, own: str) -> None:
        """End a node, as if its process had been killed."""
        with self._lock:
            for (sender, receiver), line in list(self.lines.items()):
                if own in (sender, receiver):
                    line.end()


def play(
    placements: list[Placement],
    node: Callable[[Placement, Peers], Any],
    seconds: float = 30.0,
    group: Callable[[int], Caster | Listener | None] = lambda rank: None,
    returns: bool = False,
    patience: float = 20.0,
) -> dict[str, Any]:
    """Return what `node` returned for each placement, by name; without the nodes that raised `Killed`.

    If `returns`, these come back after a moment.
    """
    lines, results, errors = Lines(), {}, []
    for placement in placements:
        for name in placement.names:
            lines.lines[placement.name, name]  # born before threads use them

    def run(placement: Placement, connect: Any = lines.connect) -> None:
        connections = connect(placement.name, placement.names)
        peers = Peers(placement.name, connections, seconds, group(placement.rank))
        _engine.patience, _engine.comes_back = patience, connect == lines.come_back
        try:
            results[placement.name] = node(placement, peers)
        except Killed:
            lines.end(placement.name)
            if returns:
                time.sleep(0.1)
                run(placement, lines.come_back)
        except BaseException as error:
            errors.append(error)
            lines.end(placement.name)

    threads = [Thread(target=run, args=(placement,), daemon=True) for placement in placements]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), f"only {sorted(results)} came to an end"
    for placement in placements:
        lines.end(placement.name)
    return results


class ThreadEngine(Engine):
    """The engine of a node that plays in a thread."""

    def __init__(self, placement: Placement, peers: Peers) -> None:
        self.placement, self.peers, self.leads = placement, peers, placement.leads

    def load_tasks(self, load: Load, K: int | None, H: int) -> tuple[Task, ...]:
        own = self.placement.users
        with _loading:  # Python's parser of array headers is not safe in threads
            tasks = load(None)
        return tuple(task if k in own else task.without_rows() for k, task in enumerate(tasks))

    def connect(self, contacts: Topology | Moving, network: Network, only_sums: bool = False) -> Exchange:
        exchange = SumsOnlyExchange if only_sums else ProcessExchange
        return exchange(self.placement, self.peers, contacts, _engine.patience, _engine.comes_back)


_engine, _loading = local(), Lock()


def set_engine(placement: Placement, peers: Peers) -> None:
    """Make `current_engine` return the engine of this node in this thread."""
    _engine.current = ThreadEngine(placement, peers)


def current_engine() -> Engine:
    engine: Engine = _engine.current
    return engine
