"""Where the processes of a run find each other: a key-value store that the first of them serves.

The store carries addresses and certificates only, each signed with a secret that all processes share. Each process
makes its key itself, and keeps it.
"""

import datetime
import hmac
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from ipaddress import ip_address
from typing import Any

import numpy as np
import torch.distributed as dist

from hmtl.distributed.frames import HOSTS, role
from hmtl.distributed.identity import Credentials, issue, key_to_pem, make_key, to_pem
from hmtl.distributed.launching import SECRET
from hmtl.distributed.multicast.group import this_end
from hmtl.distributed.placement import check_size
from hmtl.distributed.wire import REMIND, Party
from hmtl.errors import ConfigError, EngineError
from hmtl.mtl.algorithms.base import Ids

log = logging.getLogger(__name__)
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
START = 600.0  # seconds for all processes to load their data and to build the learner
DAYS = 365  # for which a certificate is valid


class Meeting:
    """This process and those that were started with it, as the environment of torch.distributed describes them.

    Args:
        seconds: how long to wait for the first process; at least a minute.
        tls: whether processes prove who they are, and encrypt.

    Attributes:
        rank: rank of this process.
        size: number of processes.
        address: address of the first process.

    Raises:
        ConfigError: a variable is missing, so the process was started by neither torchrun nor `hmtl.launch`.
    """

    def __init__(self, seconds: float, tls: bool = True) -> None:
        if missing := [name for name in VARIABLES if name not in os.environ]:
            raise ConfigError(
                f"engine=torch_distributed, but {missing[0]} is not set: start all processes with "
                "python -m hmtl.launch processes=N, or with torchrun -m hmtl.train."
            )
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.address, self.port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.wait, self._tls = max(60.0, seconds), tls
        self._secret = os.environ.get(SECRET, "").encode()
        if tls and self.rank == 0 and not self._secret and self.address not in ("localhost", "127.0.0.1"):
            log.warning("%s is not set, so anybody who reaches this machine can join. Set it at all processes.", SECRET)

    def homes(self, K: int | None, H: int) -> list[Ids]:
        check_size(self.size, K, H)
        return list(np.array_split(np.arange(K or 0), self.size - 1 - H))

    def party(self, names: Sequence[str], agreed: str) -> Party:
        """As `Site.party`, once all certificates have arrived; raise EngineError if one does not."""
        name, identities = names[self.rank], {name: name.replace(" ", "-") for name in names}
        credentials = None
        if self._tls:
            key = make_key()
            own = to_pem(issue(identities[name], role(name), key, DAYS))
            self._put(f"certificate of {name}", own)
            trusted = b"".join(self._get(f"certificate of {each}") for each in names)
            credentials = Credentials(key_to_pem(key), own, trusted)
        listen = None if role(name) == HOSTS else _join(self._listen_at(), 0)
        return Party(name, names, identities, listen, credentials=credentials, agreed=agreed)

    def addresses(self, party: Party, port: int) -> Mapping[str, str]:
        """As `Site.addresses`, once all have arrived.

        A process on the machine of the first one publishes only its port: others reach it as they reach the first.
        """
        if port:
            here = this_end(self.address)
            here = "" if ip_address(here).is_loopback else here
            self._put(f"address of {party.name}", f"{here} {port}".encode())
        addresses = {}
        for name in party.names:
            if role(name) != HOSTS:
                host, number = self._get(f"address of {name}").decode().split(" ")
                addresses[name] = _join(host or self.address, int(number))
        return addresses

    def leave(self) -> None:
        """Close the store: once the server has heard all, all have read what they need."""
        self.__dict__.pop("store", None)

    @cached_property
    def store(self) -> Any:
        """Torch's key-value store, connected at first use, so that settings are checked before.

        Raises:
            EngineError: the first process cannot be reached.
        """
        try:
            wait = datetime.timedelta(seconds=self.wait)
            if self.rank == 0 and _numeric(self.address) and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                # torch itself would listen on all networks of this machine
                listener = socket.create_server((self.address, self.port))
                place = self.address, self.port, self.size, True, wait, False
                listening: dict[str, Any] = {"master_listen_fd": listener.detach(), "use_libuv": True}
                return dist.TCPStore(*place, **listening)  # type: ignore[attr-defined]  # torch has no types for it
            # this also finds a store that torchrun has opened; public, though torch does not export it
            store, *_ = next(dist.rendezvous("env://", timeout=wait))  # type: ignore[attr-defined]  # nor for it
        except (RuntimeError, OSError, ValueError) as error:
            raise EngineError(
                f"process {self.rank} cannot reach the first process at {self.address}:{self.port} "
                f"({str(error).splitlines()[0][:80]}). Check that it is running and that the port is free."
            ) from error
        return store

    def _listen_at(self) -> str:
        """Return the address at which this process listens: that by which it reaches the first process."""
        here = this_end(self.address)
        if ip_address(here).is_loopback and not _numeric(self.address):
            return "0.0.0.0"  # the machine's own name: others reach it by an address that is not known here
        return here

    def _put(self, key: str, value: bytes) -> None:
        self.store.set(key, self._signature(key, value) + value)

    def _get(self, key: str) -> bytes:
        """Wait for what another process has put, and return it."""
        try:
            with reminding(f"process {self.rank}", f"the {key}"):
                self.store.wait([key], datetime.timedelta(seconds=START))
                signed: bytes = self.store.get(key)
        except RuntimeError as error:
            raise EngineError(
                f"the {key} did not arrive: its process has ended, or took more than "
                f"{START / 60:g} minutes. Start all processes again."
            ) from error
        value = signed[32:]
        if not hmac.compare_digest(signed[:32], self._signature(key, value)):
            raise EngineError(f"the {key} is signed with another {SECRET}. Set the same one for all processes.")
        return value

    def _signature(self, key: str, value: bytes) -> bytes:
        return hmac.digest(self._secret, key.encode() + b"\0" + value, "sha256")


@contextmanager
def reminding(who: str, whom: str) -> Iterator[None]:
    """Log after a while who still waits for whom."""
    reminder = threading.Timer(REMIND, log.warning, ("%s still waits for %s", who, whom))
    reminder.daemon = True
    reminder.start()
    try:
        yield
    finally:
        reminder.cancel()


def _numeric(address: str) -> bool:
    """Return whether this is an address, and no name, which may stand for several machines."""
    try:
        ip_address(address)
    except ValueError:
        return False
    return True


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
