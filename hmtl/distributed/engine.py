"""A run in several processes, each of which plays one node.

All processes go through the same rounds, and each holds what its node needs: a host holds its users' rows and models,
an aggregator its state. The first process, which plays the server, leads: it collects what the others measured and
sent, saves checkpoints and decides when to stop. These values travel alongside the messages of the network under
study, and the ledger does not count them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from hmtl.communication import Network
from hmtl.communication.messages import SERVER
from hmtl.data import Task
from hmtl.distributed.control import Control, as_frame
from hmtl.distributed.deployment import DeployedNode
from hmtl.distributed.exchange import FINISHED, ProcessExchange, check_goes_on
from hmtl.distributed.frames import RELAYS, Frame, role
from hmtl.distributed.meeting import Meeting
from hmtl.distributed.multicast.group import Caster, Listener, Multicast
from hmtl.distributed.peers import BEFORE, Peers
from hmtl.distributed.placement import Placement, names_of
from hmtl.distributed.sums_only import SumsOnlyExchange
from hmtl.distributed.wire import Party, Wire
from hmtl.errors import ConfigError, EngineError, HmtlError
from hmtl.mtl.algorithms.base import Ids
from hmtl.topology import Moving, Topology
from hmtl.training.engine import Engine, Exchange, Load, Values

INVITED = "invitation"  # the key of a relay's invitation to the multicast group
MOMENT = 10.0  # seconds for the others to find a process that comes back


class Site(Protocol):
    """How a process knows the others.

    Attributes:
        rank: the place of this process's node among all.
        size: number of nodes.
        address: where the server is, a name or an address without a port.
        wait: how long to wait for all to arrive [s].
    """

    rank: int
    size: int
    address: str
    wait: float

    def homes(self, K: int | None, H: int) -> Sequence[Ids]:
        """Return the users of each host; nobody if K is not yet known. Raise ConfigError if there are too few nodes."""

    def party(self, names: Sequence[str], agreed: str) -> Party:
        """Return this node among all, given the names of all in order."""

    def addresses(self, party: Party, port: int) -> Mapping[str, str]:
        """Return the addresses of server and relays; this node listens at a port (0: none)."""

    def leave(self) -> None:
        """Release what was needed to meet."""


class Processes(Engine):
    """One process per node: first the server, then the relays, then hosts of users.

    Args:
        site: called with `seconds`, returns how this process knows the others.
        seconds: how long to wait for a process to answer before it, or its users, count as absent.
        multicast: the group in which the server sends only once what several relays receive; None: each relay gets a
            copy by TCP.
        patience: how long to wait for the server, for the last host or for the last relay to come back [s].
        agreed: what all processes have to agree on, such as a hash of the configuration.

    Raises:
        ConfigError: `seconds` is not positive.
    """

    def __init__(
        self,
        site: Callable[[float], Site],
        seconds: float = 60.0,
        multicast: Multicast | None = None,
        patience: float = 600.0,
        agreed: str = "",
    ) -> None:
        if not seconds > 0:
            raise ConfigError(f"engine.seconds={seconds} is not positive. Set it to the seconds to wait for a process.")
        self.site, self.seconds, self.multicast, self.patience = site(seconds), seconds, multicast, patience
        self.leads = self.site.rank == 0
        self.agreed = agreed
        self._peers: Peers | None = None  # once it is known how many relays there are
        self._placement: Placement | None = None  # once the number of users is known
        self._known: Values = {}  # what the server tells every process at the start
        self._comes_back = False  # whether the run had begun before this process was there
        self._exchange: ProcessExchange | None = None

    def load_tasks(self, load: Load, K: int | None, H: int) -> tuple[Task, ...]:
        """Return the tasks of all users: hosts load the rows of their own users, other processes get only the shapes.

        Raises:
            ConfigError: there are too few processes, or too many.
            EngineError: a process does not arrive.
            HmtlError: a host cannot load its data.
        """
        rank, size = self.site.rank, self.site.size
        self.site.homes(K, H)
        names = names_of(size, H)
        self._peers = self._connect(names, f"{size} nodes, {H} relays, {K or 'any'} users, {self.agreed}")
        control, first_host = Control(self._peers), names[H + 1]
        tasks: tuple[Task, ...] = ()
        with self.barrier():
            if rank > H:
                tasks = load(lambda K: set(self._place(K, H).users.tolist()))
        if not self._comes_back:
            self._known = self._tell(control, first_host, tasks)
        tasks = tasks or tuple(self._known["tasks"])
        self._placement = self._place(len(tasks), H)
        own = set(self._placement.users.tolist())
        return tuple(task if k in own else task.without_rows() for k, task in enumerate(tasks))

    def _tell(self, control: Control, first_host: str, tasks: Sequence[Task]) -> Values:
        """Return what all have to know before they build the learner, such as the tasks of the first host."""
        known: Values = {}
        try:
            if control.peers.name == first_host:
                control.send(SERVER, {"tasks": [task.without_rows() for task in tasks]})
            if control.leads:
                known = control.wait_for(first_host, "tasks", first_host, self.seconds)
            return control.broadcast(known)
        except HmtlError:
            control.peers.close()
            raise

    def _place(self, K: int, H: int) -> Placement:
        return Placement(self.site.rank, self.site.size, K, H, self.site.homes(K, H))

    @contextmanager
    def barrier(self) -> Iterator[None]:
        """Continue once all processes have left the block.

        Raises:
            HmtlError: what this process raised in the block.
            ConfigError: what another process raised in the block.
            ProcessLost: another process has ended.
        """
        assert self._peers is not None, "load_tasks comes first"
        own = None
        try:
            yield
        except HmtlError as error:
            own = error
        try:
            # a process that comes back agrees with nobody: the others are playing rounds
            first_error = "" if self._comes_back else Control(self._peers).agree("" if own is None else str(own))
            if own and str(own) not in first_error:
                raise own
            if first_error:
                raise ConfigError(first_error) from own
        except HmtlError:
            self._peers.close()
            raise

    def connect(self, contacts: Topology | Moving, network: Network, only_sums: bool = False) -> Exchange:
        """Return the exchange of this process with the others, after `load_tasks`.

        Raises:
            ConfigError: multicast is chosen, but the network is not a broadcast medium.
            EngineError: multicast cannot be used on this machine.
        """
        assert self._placement is not None, "load_tasks comes first"
        assert self._peers is not None
        if self.multicast and network.medium != "broadcast":
            raise ConfigError(
                f"engine=multicast sends once to all relays, but network.medium={network.medium} counts one "
                "transmission per relay. Set network.medium=broadcast, or engine=torch_distributed."
            )
        self._peers.join(self._join_group(network))
        exchange = SumsOnlyExchange if only_sums else ProcessExchange
        self._exchange = exchange(self._placement, self._peers, contacts, self.patience, self._comes_back)
        return self._exchange

    def _connect(self, names: Sequence[str], agreed: str) -> Peers:
        """Return the other processes once there is a stream to each that this one talks to.

        The server first tells each process whether the run has begun. If it has, some of the others may be missing.

        Raises:
            ProcessLost: the server ended on the way.
            EngineError: a process does not arrive.
        """
        party = self.site.party(names, agreed)
        greet = self._greeting if party.name == SERVER else lambda name: None
        wire = Wire(party, self.seconds, lambda port: self.site.addresses(party, port), greet)
        peers = Peers(party.name, wire.connections, self.seconds, leave=wire.close)
        try:
            if party.name != SERVER:
                wait = max(self.site.wait, self.patience)
                if trouble := wire.missing(wait, [SERVER]).get(SERVER):
                    raise EngineError(f"{party.name} cannot reach the server: {trouble}. Start it.")
                self._known = Control(peers).wait_for(SERVER, "begun", SERVER, wait)
                self._comes_back = self._known["begun"]
                check_goes_on(self._known)
            missing = wire.missing(MOMENT if self._comes_back else self.site.wait)
            if missing and not self._comes_back:
                name, trouble = next(iter(missing.items()))
                raise EngineError(f"{party.name} cannot reach {name}: {trouble}. Start all again.")
        except EngineError:
            wire.close()
            raise
        self.site.leave()
        return peers

    def _greeting(self, name: str) -> Frame:
        """Return what the server tells a process that arrives: whether the run has begun, and then what it is about."""
        if self._exchange is None or not self._exchange.begun:
            return as_frame({"begun": False}, BEFORE)
        assert self._peers is not None
        known, group = {"begun": True, FINISHED: self._exchange.finished, **self._known}, self._peers.group
        if isinstance(group, Caster) and role(name) == RELAYS:
            known[INVITED] = group.invitation(self._peers.connections[name].rank)
        return as_frame(known, BEFORE)

    def _join_group(self, network: Network) -> Caster | Listener | None:
        """Return this process's end of the multicast group, which only the server and the relays have."""
        assert self._placement is not None
        if self.multicast is None:
            return None
        assert self._peers is not None
        placement, control = self._placement, Control(self._peers)
        if placement.is_relay:
            known = self._known if self._comes_back else control.wait_for(SERVER, INVITED, SERVER, self.seconds)
            return Listener(self.multicast, known[INVITED])
        if not placement.leads:
            return None
        caster = Caster(self.multicast, self.site.address, network.W2)
        for name in placement.relays:
            control.send(name, {INVITED: caster.invitation(self._peers.connections[name].rank)})
        return caster


class TorchDistributed(Processes):
    """Processes that were started by `hmtl.launch`, torchrun or Slurm, and meet at torch.distributed's store.

    Args:
        seconds, multicast, patience, agreed: see `Processes`.
        tls: whether all is encrypted, and nodes prove who they are; without, all have to be on this machine.

    Raises:
        ConfigError: the process was started by neither torchrun nor `hmtl.launch`.
    """

    def __init__(
        self,
        seconds: float = 60.0,
        multicast: Multicast | None = None,
        tls: bool = True,
        patience: float = 600.0,
        agreed: str = "",
    ) -> None:
        super().__init__(lambda seconds: Meeting(seconds, tls), seconds, multicast, patience, agreed)


class Deployed(Processes):
    """One node of a deployment in the field, as `hmtl.node` starts it.

    Args:
        deployment: the file of the deployment.
        name: this node's name in it.
        agreed: the settings that all nodes have to share.
        seconds, multicast: see `Processes`.
        patience: how long to wait for other nodes, at the start, and if the server, the last host or relay is lost [s].
        tls: see `TorchDistributed`.

    Raises:
        ConfigError: the deployment has no such node, or its certificate cannot be used.
    """

    def __init__(
        self,
        deployment: str,
        name: str,
        agreed: str,
        seconds: float = 60.0,
        multicast: Multicast | None = None,
        patience: float = 3600.0,
        tls: bool = True,
    ) -> None:
        super().__init__(lambda _: DeployedNode(deployment, name, patience, tls), seconds, multicast, patience, agreed)
