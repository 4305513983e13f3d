"""A run in several processes, each of which plays one node.

All processes go through the same rounds, and each holds what its node needs: a host holds its users' rows and models,
an aggregator its state. The first process, which plays the server, leads: it collects what the others measured and
sent, saves checkpoints and decides when to stop. These values travel alongside the messages of the network under
study, and the ledger does not count them.
"""

import logging
from contextlib import AbstractContextManager

from hmtl.communication import Network
from hmtl.data import Task
from hmtl.distributed.connections import Connection, connect
from hmtl.distributed.control import from_bytes, to_bytes
from hmtl.distributed.exchange import ProcessExchange
from hmtl.distributed.multicast.group import Caster, Listener, Multicast
from hmtl.distributed.peers import Peers
from hmtl.distributed.placement import Placement, check_size
from hmtl.distributed.rendezvous import Rendezvous
from hmtl.errors import ConfigError
from hmtl.topology import Moving, Topology
from hmtl.training.engine import Engine, Exchange, Load

log = logging.getLogger(__name__)


class TorchDistributed(Engine):
    """One process per node over torch.distributed: rank 0 is the server, then come the relays, then hosts of users.

    Use it on trusted networks only: gloo neither encrypts nor authenticates.

    Args:
        seconds: how long to wait for a process to answer before it, or its users, count as absent.
        multicast: the group in which the server sends only once what several relays receive; None: each relay gets a
            copy by TCP.

    Raises:
        ConfigError: the process was started by neither torchrun nor `hmtl.launch`.
    """

    def __init__(self, seconds: float = 60.0, multicast: Multicast | None = None) -> None:
        if not seconds > 0:
            raise ConfigError(f"engine.seconds={seconds} is not positive. Set it to the seconds to wait for a process.")
        self.seconds, self.multicast = seconds, multicast
        self._rendezvous = Rendezvous(seconds)
        self._placement: Placement | None = None  # known once the number of users is known

    def load_tasks(self, load: Load, K: int | None, H: int) -> tuple[Task, ...]:
        """Return the tasks of all users: hosts load the rows of their own users, other processes get only the shapes.

        Raises:
            ConfigError: there are too few processes, or too many.
            HmtlError: a host cannot load its data.
        """
        rank, size = self._rendezvous.rank, self._rendezvous.size
        tasks: tuple[Task, ...] = ()
        check_size(size, K, H)
        with self.barrier():
            if rank > H:
                tasks = load(lambda K: set(Placement(rank, size, K, H).users.tolist()))
            if rank == H + 1:
                known = to_bytes({"tasks": [task.without_rows() for task in tasks]})
                self._rendezvous.store.set("tasks", bytes(known))
        tasks = tasks or from_bytes(self._rendezvous.store.get("tasks"))["tasks"]
        self._placement = Placement(rank, size, len(tasks), H)
        own = set(self._placement.users.tolist())
        return tuple(task if k in own else task.without_rows() for k, task in enumerate(tasks))

    def barrier(self) -> AbstractContextManager[None]:
        return self._rendezvous.barrier()

    def connect(self, contacts: Topology | Moving, network: Network) -> Exchange:
        """Connect this process to the others, after `load_tasks`.

        Raises:
            ConfigError: multicast is chosen, but the network is not a broadcast medium.
            EngineError: a process has ended, or multicast cannot be used on this machine.
        """
        assert self._placement is not None, "load_tasks comes first"
        if self.multicast and network.medium != "broadcast":
            raise ConfigError(
                f"engine=multicast sends once to all relays, but network.medium={network.medium} counts one "
                "transmission per relay. Set network.medium=broadcast, or engine=torch_distributed."
            )
        placement = self._placement
        if placement.leads:
            log.warning("%d processes; nothing is encrypted or signed: for trusted networks only", len(placement.names))
        connect(self._rendezvous)
        group = self._join_group(network)
        listener = group if isinstance(group, Listener) else None
        ranks = placement.neighbors
        connections = {name: Connection(placement.rank, rank, listener) for name, rank in ranks.items()}
        return ProcessExchange(placement, Peers(placement.name, connections, self.seconds, group), contacts)

    def _join_group(self, network: Network) -> Caster | Listener | None:
        """Return this process's end of the multicast group, which only the server and the relays have."""
        assert self._placement is not None
        if self.multicast is None:
            return None
        placement, store = self._placement, self._rendezvous.store
        if placement.is_relay:
            return Listener(self.multicast, store.get(f"invitation {placement.name}"))
        if not placement.leads:
            return None
        caster = Caster(self.multicast, self._rendezvous.address, network.W2)
        for name in placement.relays:
            store.set(f"invitation {name}", caster.invitation(placement.neighbors[name]))
        return caster
