"""The turns of a round of secure sums: users share the seeds of their masks before it, and unmask the sum after it."""

from typing import Any

from hmtl.communication.flows.flow import Flow
from hmtl.communication.messages import KEYS, SHARED, SHARES, UNMASK
from hmtl.communication.nodes.secure import SecureHost, SecureRelay, SecureServer
from hmtl.communication.round import Schedule, Stage, collect, compute, conclude


class SecureSchedule(Schedule):
    """A round around a flow of sums of masked terms."""

    turns = (5, 6, 7, 5)  # keys, shares and who holds them, rows, and what unmasks their sum, which relays combine

    def begin(self, stage: Stage, round: int) -> None:
        """Let users compute their terms, advertise keys and share the seeds of their masks."""
        super().begin(stage, round)
        stage.hosts(SecureHost.advertise, tells=True)
        stage.relays(SecureRelay.advertise, round, hears=[KEYS], tells=True)
        stage.server(SecureServer.introduce, round, hears=[KEYS], tells=True)
        stage.relays(SecureRelay.introduce, hears=[KEYS], tells=True)
        stage.hosts(SecureHost.share, hears=[KEYS], tells=True)
        stage.relays(SecureRelay.collect, hears=[SHARES], tells=True)
        stage.server(SecureServer.pass_on, hears=[SHARES], tells=True)
        stage.relays(SecureRelay.pass_on, hears=[SHARES], tells=True)
        stage.hosts(SecureHost.read, hears=[SHARES], tells=True)
        stage.relays(SecureRelay.confirm_shares, hears=[SHARED], tells=True)
        stage.server(SecureServer.choose_sharers, hears=[SHARED], tells=True)
        stage.relays(SecureRelay.announce, hears=[SHARED], tells=True)
        stage.hosts(SecureHost.prepare, hears=[SHARED])

    def attempt(self, stage: Stage, flow: Flow[Any]) -> None:
        """Collect the sum of masked terms."""
        collect(stage, flow)
        stage.server(SecureServer.retry, tells=True)

    def end(self, stage: Stage) -> None:
        """Let users reveal shares, relays combine them, and the server unmask the sum and send the models.

        Relays combine shares again if one of them falls silent.
        """
        stage.server(SecureServer.ask, tells=True)
        stage.relays(SecureRelay.ask, hears=[UNMASK], tells=True)
        stage.hosts(SecureHost.answer, hears=[UNMASK], tells=True)
        stage.relays(SecureRelay.hear, hears=[UNMASK], tells=True)
        combining = True
        while combining:
            stage.server(SecureServer.unmask, hears=[UNMASK], tells=True)
            stage.relays(SecureRelay.combine, hears=[UNMASK], tells=True)
            combining = any(node.combining for node in (stage.nodes.server, *stage.acting) if node)
        compute(stage)
        stage.keep_attending()
        conclude(stage)
