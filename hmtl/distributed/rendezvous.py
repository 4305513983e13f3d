"""Where the processes of a run meet before they are connected: a key-value store that the first of them serves."""

import datetime
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch.distributed as dist

from hmtl.errors import ConfigError, EngineError, HmtlError

log = logging.getLogger(__name__)
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
START = datetime.timedelta(minutes=10)  # for all processes to load their data and to build the learner
REMIND = 30.0  # seconds after which a process logs which one it is waiting for


class Rendezvous:
    """This process and those that were started with it, as the environment of torch.distributed describes them.

    Args:
        seconds: how long to wait for the first process; at least a minute.

    Attributes:
        rank: rank of this process.
        size: number of processes.
        address: address of the first process.

    Raises:
        ConfigError: a variable is missing, so the process was started by neither torchrun nor `hmtl.launch`.
    """

    def __init__(self, seconds: float) -> None:
        if missing := [name for name in VARIABLES if name not in os.environ]:
            raise ConfigError(
                f"engine=torch_distributed, but {missing[0]} is not set: start all processes with "
                "python -m hmtl.launch processes=N, or with torchrun -m hmtl.train."
            )
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.address, self.port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.wait = datetime.timedelta(seconds=max(60.0, seconds))
        self._barriers = 0  # number of barriers so far

    @cached_property
    def store(self) -> Any:
        """Torch's key-value store, connected at first use, so that settings are checked before.

        Raises:
            EngineError: the first process cannot be reached.
        """
        try:
            numeric = self.address.replace(".", "").isdecimal()  # a host name may stand for several machines
            if self.rank == 0 and numeric and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                # torch itself would listen on all networks of this machine
                listener = socket.create_server((self.address, self.port))
                place = self.address, self.port, self.size, True, self.wait, False
                listening: dict[str, Any] = {"master_listen_fd": listener.detach(), "use_libuv": True}
                return dist.TCPStore(*place, **listening)  # type: ignore[attr-defined]  # torch has no types for it
            # this also finds a store that torchrun has opened; public, though torch does not export it
            store, *_ = next(dist.rendezvous("env://", timeout=self.wait))  # type: ignore[attr-defined]  # nor for it
        except (RuntimeError, OSError, ValueError) as error:
            raise EngineError(
                f"process {self.rank} cannot reach the first process at {self.address}:{self.port} "
                f"({str(error).splitlines()[0][:80]}). Check that it is running and that the port is free."
            ) from error
        return store

    @contextmanager
    def barrier(self) -> Iterator[None]:
        """Continue once all processes have left the block.

        Raises:
            HmtlError: what this process raised in the block.
            ConfigError: what another process raised in the block.
            EngineError: a process did not arrive.
        """
        self._barriers += 1
        key, own = f"barrier {self._barriers}", None
        try:
            yield
        except HmtlError as error:
            own = error
        self.store.set(f"{key} {self.rank}", "" if own is None else str(own))
        try:
            if self.rank == 0:
                errors = [self._wait_for(f"{key} {rank}", f"process {rank}") for rank in range(self.size)]
                self.store.set(key, next(filter(None, errors), ""))
            first_error = self._wait_for(key, "all")
        except RuntimeError as error:
            raise own or EngineError(
                f"a process ended before all were ready, or took more than {START.total_seconds() / 60:g} minutes. "
                "Start all of them again."
            ) from error
        if own or first_error:
            raise own or ConfigError(first_error)

    def _wait_for(self, key: str, who: str) -> str:
        reminder = threading.Timer(
            REMIND, log.warning, ("process %d still waits for %s of %d", self.rank, who, self.size)
        )
        reminder.start()
        try:
            self.store.wait([key], START)
        finally:
            reminder.cancel()
        value: bytes = self.store.get(key)
        return value.decode()
