"""Where processes meet before they have connections: torch's store, kept by the first of them."""

import datetime
import io
import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

from hmtl.errors import ConfigError, EngineError, HmtlError

log = logging.getLogger(__name__)
START = datetime.timedelta(minutes=10)  # for all to read their data, and to make what they are made of
SOON = 30.0  # seconds after which a process says for whom it waits
FOREVER = datetime.timedelta(days=365)  # a wait that gloo gave up would break all connections


class Rendezvous:
    """This process among those that were started with it.

    Args:
        seconds: how long to wait for the first process, and for connections, at least a minute.

    Raises:
        ConfigError: it was not started by torchrun or `hmtl.launch`.
    """

    def __init__(self, seconds: float) -> None:
        if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise ConfigError(
                f"engine=torch_distributed, but {missing[0]} is not set: start all processes by "
                "python -m hmtl.launch processes=N, or by torchrun -m hmtl.train."
            )
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._wait = datetime.timedelta(seconds=max(60.0, seconds))
        self._gates = 0  # how often all were together

    @cached_property
    def store(self) -> Any:
        """Torch's store, once all that is known without the others is found right.

        Raises:
            EngineError: the first process is not reached.
        """
        address, port, wait = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), self._wait
        try:
            if self.rank == 0 and _numeric(address) and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                # by itself, torch's would listen on all networks of this machine; a name need not be this one's alone
                listener = socket.create_server((address, port))
                fd = listener.detach()
                place = address, port, self.size, True, wait, False
                return dist.TCPStore(*place, master_listen_fd=fd, use_libuv=True)  # type: ignore[attr-defined]
            # which knows of a store that torchrun has opened, and is public though torch does not export it
            store, *_ = next(dist.rendezvous("env://", timeout=wait))  # type: ignore[attr-defined]
        except (OSError, RuntimeError, ValueError) as error:
            raise EngineError(
                f"process {self.rank} does not reach the first process at {address}:{port} "
                f"({str(error).splitlines()[0][:80]}): is it there, and the port free?"
            ) from error
        return store

    def hosts(self, H: int, K: int | None) -> int:
        """How many processes are left for hosts of users, with H relays and K users.

        Raises:
            ConfigError: too few, or too many.
        """
        hosts = self.size - 1 - H
        if hosts < 1 or (K is not None and hosts > K):
            most = "more" if K is None else H + 1 + K
            raise ConfigError(
                f"engine=torch_distributed has {self.size} processes; with H={H} and K={K} there are {H + 2} to "
                f"{most}: a server, the relays, and hosts of at least a user each."
            )
        return hosts

    @contextmanager
    def together(self) -> Iterator[None]:
        """Go on when all processes are through with the block.

        Raises:
            HmtlError: what was raised in this process, or in another.
            EngineError: one did not come.
        """
        self._gates += 1
        gate, own = f"gate {self._gates}", None
        try:
            yield
        except HmtlError as error:
            own = error
        self.store.set(f"{gate} {self.rank}", "" if own is None else str(own))
        try:
            if self.rank == 0:
                words = [self._hear(f"{gate} {rank}", f"process {rank}") for rank in range(self.size)]
                self.store.set(gate, next(filter(None, words), ""))
            theirs = self._hear(gate)
        except RuntimeError as error:
            raise own or EngineError("a process went, or took more than 10 minutes, before all were ready.") from error
        if own or theirs:
            raise own or ConfigError(theirs)

    def _hear(self, key: str, whom: str = "all") -> str:
        late = threading.Timer(SOON, log.warning, ("process %d still waits for %s of %d", self.rank, whom, self.size))
        late.start()
        try:
            self.store.wait([key], START)
        finally:
            late.cancel()
        word: bytes = self.store.get(key)
        return word.decode()

    def connect(self) -> None:
        """Make connections between all processes, torch's default group.

        Gloo waits for ever, see `FOREVER`, also for a process that goes meanwhile: hence the thread.

        Raises:
            EngineError: a process is not there.
        """
        failed = []

        def connect() -> None:
            try:
                dist.init_process_group("gloo", None, FOREVER, self.size, self.rank, self.store)
            except RuntimeError as error:
                failed.append(error)

        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        thread.join(self._wait.total_seconds())
        if failed or thread.is_alive():
            raise EngineError("a process went before all were connected: start them all again.")


def _numeric(address: str) -> bool:
    """Whether it is an IPv4 address, and no name."""
    try:
        return ipaddress.ip_address(address).version == 4
    except ValueError:
        return False


def packed(word: Mapping[str, Any]) -> memoryview:
    """A word of one process to others, made of numbers, strings and tensors, as bytes."""
    content = io.BytesIO()
    torch.save(dict(word), content)
    return content.getbuffer()


def unpacked(content: bytes | memoryview) -> dict[str, Any]:
    """The inverse of `packed`; nothing in it is executed."""
    return dict(torch.load(io.BytesIO(content), weights_only=True))
