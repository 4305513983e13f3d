"""The turns of a round of secure sums: users share the seeds of their masks before it, and unmask the sum after it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from hmtl.communication.flows.flow import Flow
from hmtl.communication.messages import KEYS, MODELS, SHARED, SHARES, UNMASK, VERDICT, Message
from hmtl.communication.nodes.secure import SecureHost, SecureRelay, SecureServer
from hmtl.communication.round import Answers, Schedule, Stage, collect, compute, conclude

Action = Callable[[Any, Sequence[Message]], Answers]
"""A turn of a node of secure sums, which gets messages of one kind and sends some of one kind."""


class SecureSchedule(Schedule):
    """A round around a flow of sums of masked terms."""

    def begin(self, stage: Stage, round: int) -> None:
        """Let users compute their terms, advertise keys and share the seeds of their masks."""
        super().begin(stage, round)
        users, relays, server = partial(_users, stage), partial(_relays, stage), partial(_server, stage)
        up, down = {"senders": stage.nodes.host_names}, {"receivers": stage.nodes.host_names}
        users(lambda host, _: host.advertise(), "", KEYS)
        relays(lambda relay, keys: relay.advertise(round, keys), KEYS, **up)
        server(lambda server, keys: server.introduce(round, keys), KEYS)
        relays(SecureRelay.introduce, KEYS, **down)
        users(SecureHost.share, KEYS, SHARES)
        relays(SecureRelay.collect, SHARES, **up)
        server(SecureServer.pass_on, SHARES)
        relays(SecureRelay.pass_on, SHARES, **down)
        users(SecureHost.read, SHARES, SHARED)
        relays(SecureRelay.confirm_shares, SHARED, **up)
        server(SecureServer.settle, SHARED)
        relays(SecureRelay.announce, SHARED, **down)
        users(SecureHost.prepare, SHARED, "")

    def attempt(self, stage: Stage, flow: Flow) -> None:
        """Collect the sum of masked terms."""
        collect(stage, flow)
        stage.server(lambda server, _: cast(SecureServer, server).retry(), says=[VERDICT, MODELS])

    def end(self, stage: Stage, flow: Flow | None) -> None:
        """Let users reveal shares, relays combine them, and the server unmask the sum and send the models.

        Relays combine shares again if one of them falls silent.
        """
        _server(stage, SecureServer.ask, UNMASK, hears=False)
        _relays(stage, SecureRelay.ask, UNMASK, receivers=stage.nodes.host_names)
        _users(stage, SecureHost.answer, UNMASK, UNMASK)
        _relays(stage, SecureRelay.hear, UNMASK, senders=stage.nodes.host_names)
        combining = True
        while combining:
            _server(stage, SecureServer.unmask, UNMASK)
            _relays(stage, SecureRelay.combine, UNMASK)
            nodes = stage.nodes.server, *stage.acting
            combining = any(node.combining for node in nodes if isinstance(node, SecureRelay | SecureServer))
        if flow:
            compute(stage, flow)
        stage.keep_attending()
        conclude(stage)


def _users(stage: Stage, action: Action, gets: str, says: str) -> None:
    """Let users hear relays, and answer them."""
    kinds = {"hears": [gets] * bool(gets), "says": [says] * bool(says)}
    stage.hosts(lambda host, got: action(host, got.get(gets, [])), **kinds)


def _relays(stage: Stage, action: Action, kind: str, **peers: Sequence[str]) -> None:
    """Let relays hear and answer the server, or users instead if these are the `senders` or `receivers`."""
    stage.relays(lambda relay, got: action(relay, got[kind]), hears=[kind], says=[kind], **peers)


def _server(stage: Stage, action: Action, kind: str, hears: bool = True) -> None:
    """Let the server hear relays, and answer them."""
    kinds = {"hears": [kind] * hears, "says": [kind]}
    stage.server(lambda server, got: action(server, got.get(kind, [])), stage.nodes.relay_names, **kinds)
