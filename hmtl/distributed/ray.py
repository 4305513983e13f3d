"""A run on a cluster, by Ray: hosts, relays and server are actors, wherever Ray places them.

Messages are objects in Ray's store, which receivers fetch from each other; the controller passes on references. Ray
starts an actor again whose process has ended; it then gets its state from the run. A cluster is one trust domain:
who controls it sees everything that nodes know, so that secure sums protect nobody here.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from socket import create_connection
from typing import Any

import torch

from hmtl.communication.messages import nothing
from hmtl.distributed.cell import Cell
from hmtl.distributed.connections import ENDED
from hmtl.distributed.controller import Controller
from hmtl.distributed.frames import Frame, Header
from hmtl.distributed.mail import Homes, shared_evenly
from hmtl.errors import ConfigError, EngineError, ProcessLost, few
from hmtl.training.engine import Build, Load, Values

log = logging.getLogger(__name__)
MAX_HOSTS_PER_CORE = 16  # hosts for each core of this machine
REACH = 10.0  # seconds to reach a cluster
MIN_FETCH_SECONDS = 0.1  # seconds to fetch a message in any case
SMALL = 1 << 12  # bytes of messages that are handed over by the controller, as references would take longer


class Actor:
    """The process of a node, as Ray runs it; see `Cell`."""

    def __init__(self, name: str, homes: Callable[[int], Homes], load: Load, build: Build, seconds: float) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self._ray, self._seconds = _ray(), seconds
        self._left = seconds  # to wait for messages in this call
        self._cell = Cell(name, homes, load, build, self._hand, self._fetch)

    def answer(self, call: str, values: Values) -> Values:
        """Answer a call, see `Cell.answer`."""
        self._left = self._seconds
        return self._cell.answer(call, values)

    def _hand(self, receivers: Sequence[str], frame: Frame) -> Any:
        """Return a small message itself, or else, in a list, so that Ray does not fetch it, where it is."""
        if frame.header().body <= SMALL:
            return frame.header().to_bytes(), frame.body.numpy()
        bare = replace(frame, payload=nothing(0), overhead=nothing(0))
        return [self._ray.put((bare, frame.payload.numpy(), frame.overhead.numpy()))]  # Ray does not pickle arrays

    def _fetch(self, sender: str, handle: Any) -> Frame | None:
        if not isinstance(handle, list):
            header, body = handle
            return Frame.from_bytes(Header.from_bytes(header), torch.from_numpy(body.copy()))
        begin = time.monotonic()
        try:
            frame, *parts = self._ray.get(handle[0], timeout=max(MIN_FETCH_SECONDS, self._left))
        except (self._ray.exceptions.RayError, self._ray.exceptions.GetTimeoutError):
            return None  # it was lost with its sender
        finally:
            self._left -= time.monotonic() - begin
        payload, overhead = (torch.from_numpy(part.copy()) for part in parts)  # Ray's memory is read-only
        arrived: Frame = replace(frame, payload=payload, overhead=overhead)
        return arrived


class RayCluster(Controller):
    """An engine whose nodes are actors of Ray.

    Args:
        hosts: how many hosts share the users.
        address: of the cluster, as `ray.init` takes it; "auto": the one of this machine; None: one is started here.
        resources: whether each node runs where there is a resource of its name, such as `relay-2`; otherwise nodes are
            spread over the machines.
        num_gpus: GPUs of each host.
        seconds, patience: see `Controller`.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(
        self,
        hosts: int = 1,
        address: str | None = None,
        resources: bool = False,
        num_gpus: float = 0,
        seconds: float = 60.0,
        patience: float = 600.0,
    ) -> None:
        super().__init__(seconds, patience)
        if hosts < 1:
            raise ConfigError(f"engine.hosts={hosts}: users need at least one host. Set it to 1 or more.")
        if address is None and hosts > (most := MAX_HOSTS_PER_CORE * (os.cpu_count() or 1)):
            raise ConfigError(
                f"engine.hosts={hosts} processes are too many for this machine. Set it to {most} or less, or set "
                "engine.address to a cluster."
            )
        self._count, self._address, self._resources, self._num_gpus = hosts, address, resources, num_gpus
        self._ray, self._actors = _ray(), dict[str, Any]()
        self._build: Any = None  # where the values of this call are
        self._ours = not self._ray.is_initialized()

    def hosts_for(self, H: int) -> int:
        return self._count

    def start(self, load: Load, build: Build) -> None:
        ray, path = self._ray, os.pathsep.join(filter(None, sys.path))
        if self._ours:
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if self._address:
                quiet["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
            else:  # processes inherit it; otherwise each would be started for this environment, which takes longer
                os.environ["PYTHONPATH"], quiet["include_dashboard"] = path, False
            try:
                if self._address:
                    log.warning("connecting to Ray at engine.address=%s", self._address)
                    if match := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", self._address):
                        create_connection((match[1], int(match[2])), REACH).close()  # Ray would try for two minutes
                ray.init(self._address or "local", **quiet)  # None would be a cluster that runs on this machine
            except (OSError, RuntimeError, ValueError) as error:
                raise EngineError(
                    f"engine.address={self._address}: Ray cannot be reached ({error}). Start it, or correct it."
                ) from error
        wanted = {name.replace(" ", "-") for name in self.nodes if self._resources}
        if missing := wanted.difference(ray.cluster_resources()):
            raise ConfigError(
                f"engine.resources=true, but no machine has the resources {few(sorted(missing))}. Start "
                "machines with them (ray start --resources), change engine.hosts, or set engine.resources=false."
            )
        homes = partial(shared_evenly, len(self.hosts))
        for name in self.nodes:
            gpus = self._num_gpus if name in self.hosts else 0
            place: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
            if self._resources:
                place = {"resources": {name.replace(" ", "-"): 1}}
            options = {"num_cpus": 0, "num_gpus": gpus, "max_restarts": -1, **place}
            kind = type(name, (Actor,), {})  # Ray shows processes by it
            self._actors[name] = ray.remote(**options)(kind).remote(name, homes, load, build, self.seconds / 2)

    def send(self, name: str, call: str, values: Values) -> Any:
        if call == "build":  # the same for all nodes, and pickled once
            self._build = self._build or self._ray.put(values)
        return self._actors[name].answer.remote(call, self._build if call == "build" else values)

    def receive(self, name: str, asked: Any, seconds: float) -> Values | None:
        if not self._ray.wait([asked], timeout=seconds, fetch_local=False)[0]:
            return None
        try:
            answer: Values = self._ray.get(asked, timeout=self.seconds)  # it may have to come from another machine
        except self._ray.exceptions.GetTimeoutError:
            return None
        except self._ray.exceptions.RayError as error:
            why = f" ({str(error).splitlines()[-1]})" if "in its creation task" in str(error) else ""
            raise ProcessLost(f"{ENDED}{why}", "") from error
        return answer

    def returned(self, lost: Collection[str]) -> Collection[str]:
        return lost  # or still away, and then soon lost again

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise ConfigError("engine=ray needs a package that is not installed: pip install 'hmtl[ray]'.") from error
