"""A site of this machine: its nodes are processes, with certificates that never leave memory.

The processes are forked from one that has imported what they need, so that starting many takes little time and memory.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from secrets import randbelow

from hmtl.distributed.dialing import Party
from hmtl.distributed.frames import HOSTS, role
from hmtl.distributed.identity import Credentials, issue, key_to_pem, make_authority, make_key, to_pem
from hmtl.errors import ConfigError, EngineError, HmtlError, complain

FIRST_PORT, PORTS, PORT_TRIES = 10_000, 20_000, 20  # where servers listen
EXIT_SECONDS = 10.0  # seconds for processes to end after the controller
LOCAL_CERTIFICATE_DAYS = 365  # for which a certificate is valid
PRELOAD = ("hmtl.config.build", "hmtl.distributed.site", "hmtl.mtl", "hmtl.tuning", "cvxpy", "scipy.optimize")
"""What most nodes import; together these take each process two seconds."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class LocalNodes:
    """Nodes that are started on this machine.

    Args:
        processes: how many nodes there are, the server's among them, which is this process.
    """

    def __init__(self, processes: int) -> None:
        self._count = processes
        self.processes: list[BaseProcess] = []

    def hosts(self, H: int) -> int:
        """Return the number of hosts; raise ConfigError if there are too few processes for H relays."""
        if self._count < H + 2:
            raise ConfigError(
                f"processes={self._count} are too few for H={H}: a server, the relays, and hosts with at least one "
                f"user each. Set processes to {H + 2} or more."
            )
        return self._count - 1 - H

    def start(self, names: Sequence[str], serve: Callable[[Party], object]) -> Party:
        """Start all nodes but the first, the server, and return this one among all."""
        parties = _parties(names)
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))  # glibc then returns large freed blocks at once
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        self.processes = [
            context.Process(target=_work, args=(serve, party), name=party.name, daemon=True) for party in parties[1:]
        ]
        resource_tracker.ensure_running()  # as its start unblocks signals
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they inherit the mask, see `_work`
        try:
            for process in self.processes:
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return parties[0]

    def check(self) -> None:
        """Exit if a node has ended that has said why; raise EngineError if one has ended in another way."""
        for process in self.processes:
            if process.exitcode == 2:
                sys.exit(2)
            if process.exitcode is not None:
                raise EngineError(f"{process.name} ended at the start, with status {process.exitcode}. Start again.")

    def close(self) -> None:
        """Wait for all nodes to end, but not for long."""
        for process in filter(lambda process: process.pid, self.processes):
            process.join(EXIT_SECONDS / len(self.processes))
            process.kill()
            process.join()


def _parties(names: Sequence[str]) -> list[Party]:
    """Return each node among all, each with its own key, at free ports of this machine."""
    identities = {name: name.replace(" ", "-") for name in names}
    addresses = {name: f"127.0.0.1:{free_port()}" for name in names if role(name) != HOSTS}
    keys = {name: make_key() for name in names}
    authority = make_authority("hmtl", LOCAL_CERTIFICATE_DAYS)
    own = {name: to_pem(issue(identities[name], key, LOCAL_CERTIFICATE_DAYS, authority)) for name, key in keys.items()}
    return [
        Party(
            name,
            names,
            identities,
            addresses.get(name),
            addresses,
            Credentials(key_to_pem(keys[name]), own[name], to_pem(authority[1])).present,
        )
        for name in names
    ]


def free_port() -> int:
    """Return a TCP port of this machine that nobody uses.

    It is below those that the system gives to outgoing connections, one of which could take it before it is used,
    unless many tries find no such port.
    """
    for _ in range(PORT_TRIES):
        port = FIRST_PORT + randbelow(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _work(serve: Callable[[Party], object], party: Party) -> None:
    os.setpgrp()  # so that Ctrl-C reaches only the controller, which ends the run
    signal.signal(signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN))  # to ignore drops one that came before
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_stop_without_controller, daemon=True).start()
    try:
        serve(party)
    except (HmtlError, ImportError, OSError) as error:
        complain(f"{party.name}: {error}")
        sys.exit(2)


def _stop_without_controller() -> None:
    """Stop this process once the controller's has ended."""
    if controller := multiprocessing.parent_process():
        controller.join()
        os.kill(os.getpid(), signal.SIGTERM)
