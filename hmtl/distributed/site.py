"""A site: boxes of one or several owners, one node on each, or all on this machine, over gRPC with mutual TLS.

The server's process controls the run. The other nodes dial out to it, and hosts to their relays; calls come over these
streams. What a call may do is in `Cell.CALLS`, and nodes keep the order of turns themselves.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import count
from typing import Any

from hmtl.communication.messages import SERVER
from hmtl.distributed.cell import Cell
from hmtl.distributed.controller import Controller
from hmtl.distributed.deployment import Deployment
from hmtl.distributed.dialing import Party, Streams
from hmtl.distributed.launching import LocalNodes
from hmtl.distributed.mail import Homes, shared_evenly
from hmtl.distributed.multicast import Caster, Group, Listener
from hmtl.distributed.post import Post
from hmtl.distributed.signed_keys import SignedKeys
from hmtl.distributed.values import as_frame, of_frame
from hmtl.errors import ConfigError, EngineError, HmtlError, ProcessLost
from hmtl.training.engine import Build, Load, Values

log = logging.getLogger(__name__)
SERVER_LOST = "the server is lost"
MAX_MULTICAST_BYTES = 1 << 30  # bytes of a body that comes by multicast, at most
OVER = "end"
"""The call with which a controller ends the run."""
INVITE = "invite"
"""The call by which relays get the address and the key of a multicast group."""


class Site(Controller):
    """The server of a site, which controls the run.

    Args:
        deployment: the file of the site; None: a site of this machine, whose nodes are started here.
        processes: how many nodes there are, the server among them, without a file.
        multicast: HOST:PORT of a group by which the server sends only once what several relays receive; None: each gets
            a copy by its stream.
        interface: this machine's address on the network of the group; None: the system's choice.
        agreed: the settings that all nodes have to share.
        seconds, patience: see `Controller`.

    Raises:
        ConfigError: neither a file nor a number of processes is given, or the file does not fit.
    """

    def __init__(
        self,
        deployment: str | None = None,
        processes: int | None = None,
        multicast: str | None = None,
        interface: str | None = None,
        agreed: str = "",
        seconds: float = 60.0,
        patience: float = 600.0,
    ) -> None:
        super().__init__(seconds, patience)
        if (deployment is None) == (processes is None):
            raise ConfigError(
                "engine=site needs nodes: start them with python -m hmtl.launch processes=N on this machine, or with "
                "python -m hmtl.node on each box."
            )
        self._deployment = Deployment.read(deployment) if deployment else None
        self._local = LocalNodes(processes) if processes else None
        self._agreed = agreed
        self._group = Group(multicast, interface) if multicast else None
        self._asked = count(1)
        self.post: Any = None  # until it begins
        self._here: dict[int, Values] = {}  # answers of the server's own cell

    def hosts_for(self, H: int) -> int:
        if self._local:
            return self._local.hosts(H)
        assert self._deployment
        return self._deployment.hosts_beside(H)

    def homes_of(self, K: int) -> Homes:
        return self._deployment.homes(K) if self._deployment else super().homes_of(K)

    def start(self, load: Load, build: Build) -> None:
        if self._local:
            homes = partial(shared_evenly, len(self.hosts))
            party = self._local.start(
                self.nodes, partial(serve, homes=homes, load=load, build=build, seconds=self.seconds)
            )
        else:
            assert self._deployment
            party = self._deployment.party(SERVER, self._agreed)
        self.post = Post(Streams(party, self.seconds), self.seconds / 2)
        if missing := self.post.wire.missing(self.patience, check=self._local.check if self._local else bool):
            name, trouble = next(iter(missing.items()))
            raise EngineError(f"{name} did not arrive: {trouble}. Start it.")
        self._cell = Cell(SERVER, self.homes_of, load, build, self.post.hand, self.post.fetch)

    def introduce(self, names: Sequence[str]) -> None:
        """Invite relays to the multicast group.

        Raises:
            ConfigError: the network has no broadcast downlink.
        """
        if self._group is None:
            return
        network = self.built.communicator.network
        if network.medium != "broadcast":
            raise ConfigError(
                f"engine.multicast sends once to all relays, but network.medium={network.medium} counts one "
                "transmission per relay. Set network.medium=broadcast, or engine.multicast=null."
            )
        self.post.caster = self.post.caster or Caster(self._group, network.W2)
        invitation = {"group": self._group.address, "key": list(self.post.caster.key)}
        for name in set(names) & set(self.relays):
            self.post.send(name, as_frame({"call": INVITE, "values": invitation}, 0))

    def send(self, name: str, call: str, values: Values) -> int:
        number = next(self._asked)
        if name == SERVER:
            self._here[number] = {"call": call, "values": values}
        else:
            self.post.send(name, as_frame({"call": call, "values": values}, number))
        return number

    def receive(self, name: str, asked: int, seconds: float) -> Values | None:
        if name == SERVER:
            return self._cell.answer(**self._here.pop(asked))
        try:
            while frame := self.post.control(name, seconds):
                if frame.number == asked:
                    return of_frame(frame)
        except HmtlError as error:
            raise ProcessLost(str(error), "") from error
        return None

    def returned(self, lost: Collection[str]) -> Collection[str]:
        return [name for name in lost if self.post.take_back(name) or self.post.wire.connections[name].alive]

    def finish(self) -> None:
        for name in self.nodes:
            if name != SERVER:
                self.post.send(name, as_frame({"call": OVER, "values": {}}, 0))

    def close(self) -> None:
        if self._local and self.post:
            self.finish()
        if self.post:
            self.post.close()
            self.post = None
        if self._local:
            self._local.close()


def serve(
    party: Party,
    homes: Callable[[int], Homes],
    load: Load,
    build: Build,
    seconds: float = 60.0,
    patience: float = 3600.0,
    interface: str | None = None,
    begin: Callable[[int], object] = bool,
) -> None:
    """Play a node of a site until the run ends.

    Args:
        party: this node among all.
        homes, load, build: see `Cell`.
        seconds: how long to wait for a message.
        patience: how long to wait for the server to be there [s].
        interface: see `Site`.
        begin: called with the number of each round that begins.

    Raises:
        ProcessLost: the server is lost, or another node is not there at the start.
    """
    post = Post(Streams(party, seconds), seconds / 2)
    sign = partial(SignedKeys, party.name, party.identities, party.credentials)
    cell = Cell(party.name, homes, load, build, post.hand, post.fetch, sign)
    try:
        if trouble := post.wire.missing(patience, [SERVER]).get(SERVER):
            raise EngineError(f"{party.name} cannot reach the server: {trouble}. Start it.")
        post.wire.missing(seconds)
        round = -1
        while True:
            try:
                if (frame := post.control(SERVER, 1.0)) is None:
                    continue
            except EngineError as error:
                raise ProcessLost(f"{SERVER_LOST}: {error}.", "Start it again with resume=FOLDER.") from error
            asked = of_frame(frame)
            if asked["call"] == OVER:
                return
            if asked["call"] == INVITE:
                if post.listener:
                    post.listener.close()
                post.listener = Listener(
                    Group(asked["values"]["group"], interface), bytes(asked["values"]["key"]), MAX_MULTICAST_BYTES
                )
                continue
            if asked["values"].get("round", round) > round:
                begin(round := asked["values"]["round"])
            answer = cell.answer(asked["call"], asked["values"])
            post.send(SERVER, as_frame(answer, frame.number))
    finally:
        post.close()
