"""The nodes of a run in threads of one process, connected by queues instead of gRPC."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Thread, local
from typing import Any

from hmtl.communication import Network
from hmtl.data import Task
from hmtl.distributed.connections import Connection, Stream
from hmtl.distributed.exchange import ProcessExchange
from hmtl.distributed.frames import MAY_SEND, role
from hmtl.distributed.multicast.group import Caster, Listener
from hmtl.distributed.peers import Peers
from hmtl.distributed.placement import Placement
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

    def connect(self, own: str, names: Sequence[str]) -> dict[str, Connection]:
        """Return a node's connections, with a stream to each neighbour."""
        connections = {}
        for rank, name in enumerate(names):
            if (role(name), role(own)) in MAY_SEND:
                connections[name] = connection = Connection(name, rank, MAY_SEND[role(name), role(own)])
                connection.attach(stream := Stream(connection))
                Thread(target=self.lines[own, name].carry, args=(stream,), daemon=True).start()
                Thread(target=stream.take, args=(iter(self.lines[name, own]),), daemon=True).start()
        return connections

    def end(self, own: str) -> None:
        """End a node, as if its process had been killed."""
        for (sender, receiver), line in list(self.lines.items()):
            if own in (sender, receiver):
                line.end()


def play(
    placements: list[Placement],
    node: Callable[[Placement, Peers], Any],
    seconds: float = 30.0,
    group: Callable[[int], Caster | Listener | None] = lambda rank: None,
) -> dict[str, Any]:
    """Return what `node` returned for each placement, by name; without the nodes that raised `Killed`."""
    lines, results, errors = Lines(), {}, []
    for placement in placements:
        for name in placement.names:
            lines.lines[placement.name, name]  # born before threads use them

    def run(placement: Placement) -> None:
        connections = lines.connect(placement.name, placement.names)
        peers = Peers(placement.name, connections, seconds, group(placement.rank))
        try:
            results[placement.name] = node(placement, peers)
        except Killed:
            lines.end(placement.name)
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
