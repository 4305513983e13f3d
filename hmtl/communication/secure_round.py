"""The turns of a round of secure sums: users share the seeds of their masks before it, and unmask the sum after it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hmtl.communication.flows.flow import Flow
from hmtl.communication.messages import KEYS, MODELS, SERVER, SHARED, SHARES, UNMASK, VERDICT
from hmtl.communication.nodes.secure import SecureHost, SecureRelay, SecureServer
from hmtl.communication.round import Schedule, Stage, collect, compute, conclude
from hmtl.communication.turns import Answers

Action = Callable[..., Answers]
"""A turn of a node of secure sums, which gets messages of one kind and sends some of one kind."""


class SecureSchedule(Schedule):
    """A round around a flow of sums of masked terms."""

    def begin(self, stage: Stage, round: int) -> None:
        """Let users compute their terms, advertise keys and share the seeds of their masks."""
        super().begin(stage, round)
        users, relays, server = partial(_users, stage), partial(_relays, stage), partial(_server, stage)
        hosts = stage.nodes.host_names
        stage.hosts(SecureHost.advertise, says=[KEYS])
        stage.relays(SecureRelay.advertise, round, hears=[KEYS], says=[KEYS])
        server(SecureServer.introduce, KEYS, round)
        relays(SecureRelay.introduce, KEYS, hosts)
        users(SecureHost.share, KEYS, [SHARES])
        relays(SecureRelay.collect, SHARES)
        server(SecureServer.pass_on, SHARES)
        relays(SecureRelay.pass_on, SHARES, hosts)
        users(SecureHost.read, SHARES, [SHARED])
        relays(SecureRelay.confirm_shares, SHARED)
        server(SecureServer.settle, SHARED)
        relays(SecureRelay.announce, SHARED, hosts)
        users(SecureHost.prepare, SHARED, [])

    def attempt(self, stage: Stage, flow: Flow[Any]) -> None:
        """Collect the sum of masked terms."""
        collect(stage, flow)
        stage.server(SecureServer.retry, says=[VERDICT, MODELS])

    def end(self, stage: Stage) -> None:
        """Let users reveal shares, relays combine them, and the server unmask the sum and send the models.

        Relays combine shares again if one of them falls silent.
        """
        stage.server(SecureServer.ask, peers=stage.nodes.relay_names, says=[UNMASK])
        _relays(stage, SecureRelay.ask, UNMASK, stage.nodes.host_names)
        _users(stage, SecureHost.answer, UNMASK, [UNMASK])
        _relays(stage, SecureRelay.hear, UNMASK)
        combining = True
        while combining:
            _server(stage, SecureServer.unmask, UNMASK)
            _relays(stage, SecureRelay.combine, UNMASK)
            combining = any(node.combining for node in (stage.nodes.server, *stage.acting) if node)
        compute(stage)
        stage.keep_attending()
        conclude(stage)


def _users(stage: Stage, action: Action, gets: str, says: Sequence[str]) -> None:
    """Let users hear relays, and answer them."""
    stage.hosts(action, hears=[gets], says=says)


def _relays(stage: Stage, action: Action, kind: str, receivers: Sequence[str] = (SERVER,)) -> None:
    """Let relays hear messages of one kind and answer the server, or users if these are the `receivers`."""
    stage.relays(action, hears=[kind], says=[kind], receivers=receivers)


def _server(stage: Stage, action: Action, kind: str, *numbers: int) -> None:
    """Let the server hear relays, and answer them."""
    stage.server(action, *numbers, peers=stage.nodes.relay_names, hears=[kind], says=[kind])
