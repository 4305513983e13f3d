"""The turns of a round of secure sums: users share the seeds of their masks before it, and unmask the sum after it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from hmtl.communication.flows.flow import Flow
from hmtl.communication.messages import KEYS, MODELS, SHARED, SHARES, UNMASK, VERDICT, Message
from hmtl.communication.nodes.secure import SecureHost, SecureRelay, SecureServer
from hmtl.communication.round import Answers, Schedule, Stage, collect, compute, conclude

N = TypeVar("N")
OfHost = Callable[[SecureHost, Sequence[Message]], Answers]
OfRelay = Callable[[SecureRelay, Sequence[Message]], Answers]
OfServer = Callable[[SecureServer, Sequence[Message]], Answers]


class Turns:
    """Turns of the nodes of secure sums, each of which gets messages of one kind and sends some of one kind."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._hosts, self._relays = stage.nodes.host_names, stage.nodes.relay_names

    def users(self, action: OfHost, gets: str = "", says: str = "") -> None:
        """Let users hear relays, and answer them."""
        hears, kinds = [gets] * bool(gets), [says] * bool(says)
        self.stage.hosts(
            lambda host, got: action(_secure(SecureHost, host), got.get(gets, [])), hears=hears, says=kinds
        )

    def up(self, action: OfRelay, kind: str) -> None:
        """Let relays hear users, and tell the server."""
        self._of_relays(action, kind, senders=self._hosts)

    def down(self, action: OfRelay, kind: str) -> None:
        """Let relays hear the server, and tell users."""
        self._of_relays(action, kind, receivers=self._hosts)

    def back(self, action: OfRelay, kind: str) -> None:
        """Let relays hear the server, and answer it."""
        self._of_relays(action, kind)

    def server(self, action: OfServer, kind: str, hears: bool = True) -> None:
        """Let the server hear relays, and answer them."""
        self.stage.server(
            lambda server, got: action(_secure(SecureServer, server), got.get(kind, [])),
            hears=[kind] * hears,
            says=[kind],
            peers=self._relays,
        )

    def _of_relays(self, action: OfRelay, kind: str, **peers: Sequence[str]) -> None:
        kinds = [kind]
        self.stage.relays(
            lambda relay, got: action(_secure(SecureRelay, relay), got[kind]), hears=kinds, says=kinds, **peers
        )


class SecureSchedule(Schedule):
    """A round around a flow of sums of masked terms."""

    def begin(self, stage: Stage, round: int) -> None:
        """Let users compute their terms, advertise keys and share the seeds of their masks."""
        turns, relays = Turns(stage), stage.nodes.relay_names
        stage.hosts(lambda host, _: host.update(round, relays))
        turns.users(lambda host, _: host.advertise(), says=KEYS)
        turns.up(lambda relay, keys: relay.advertise(round, keys), KEYS)
        turns.server(lambda server, keys: server.introduce(round, keys), KEYS)
        turns.down(SecureRelay.introduce, KEYS)
        turns.users(SecureHost.share, KEYS, SHARES)
        turns.up(SecureRelay.collect, SHARES)
        turns.server(SecureServer.pass_on, SHARES)
        turns.down(SecureRelay.pass_on, SHARES)
        turns.users(SecureHost.read, SHARES, SHARED)
        turns.up(SecureRelay.confirm_shares, SHARED)
        turns.server(SecureServer.settle, SHARED)
        turns.down(SecureRelay.announce, SHARED)
        turns.users(SecureHost.prepare, SHARED)

    def attempt(self, stage: Stage, flow: Flow) -> None:
        """Collect the sum of masked terms."""
        collect(stage, flow)
        stage.server(lambda server, _: _secure(SecureServer, server).retry(), says=[VERDICT, MODELS])

    def end(self, stage: Stage, flow: Flow | None) -> None:
        """Let users reveal shares, relays combine them, and the server unmask the sum and send the models.

        Relays combine shares again if one of them falls silent.
        """
        turns = Turns(stage)
        turns.server(SecureServer.ask, UNMASK, hears=False)
        turns.down(SecureRelay.ask, UNMASK)
        turns.users(SecureHost.answer, UNMASK, UNMASK)
        turns.up(SecureRelay.hear, UNMASK)
        combining = True
        while combining:
            turns.server(SecureServer.unmask, UNMASK)
            turns.back(SecureRelay.combine, UNMASK)
            nodes = stage.nodes.server, *stage.acting
            combining = any(node.combining for node in nodes if isinstance(node, SecureRelay | SecureServer))
        if flow:
            compute(stage, flow)
        stage.keep_attending()
        conclude(stage)


def _secure(kind: type[N], node: object) -> N:
    """Return a node of this kind."""
    assert isinstance(node, kind), "the nodes of secure sums are of their own kinds"
    return node
