"""A separate network on this machine: namespaces connected by veth pairs and bridges, with links of given rates.

    workers --- users ===trunk=== relays --- relay 0..H-1 --- backhaul --- server

`users`, `relays` and `backhaul` are bridges. Every link between a relay and the server carries BPS in each direction,
like the ports of a switch: all messages to the server share its link, and so do all messages from it, whether they are
one copy per relay or one multicast that the switch copies. This is the formula's W2. Users and relays share the trunk,
which carries BPS downwards and `copies` times BPS upwards: in the formula a user broadcasts its IV once, whereas TCP
sends one copy to each of `copies` relays, and this takes the time of W1. The server also has a link to the users' side,
for messages that are not measured. Needs root, and Linux with `ip` and `tc`.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PREFIX = "hmtl-"
SWITCH = PREFIX + "switch"
LOCK = Path("/run/lock/hmtl-network")
BPS = 100e6
BURST = "64kb"  # several ms of a link, so that a late timer costs nothing
QUEUE = "200ms"


class LabError(Exception):
    """The network cannot be built here."""


class Lab:
    """A context in which the network exists; its end kills the processes in it.

    Args:
        relays, workers: numbers of nodes.
        copies: copies of an IV on the trunk.

    Raises:
        LabError: another such network exists, or this machine cannot build one.
    """

    def __init__(self, relays: int, workers: int, copies: int) -> None:
        self.relays, self.workers, self.copies = relays, workers, copies
        self.server = "10.83.2.1"

    @property
    def names(self) -> list[str]:
        """Names of the namespaces with nodes, by rank."""
        return [
            PREFIX + name
            for name in (
                "server",
                *(f"relay{i}" for i in range(self.relays)),
                *(f"worker{n}" for n in range(self.workers)),
            )
        ]

    def __enter__(self) -> Self:
        if missing := [name for name in ("ip", "tc", "sysctl") if shutil.which(name) is None]:
            raise LabError(f"{missing[0]} is missing: install iproute2 and procps")
        if os.geteuid() != 0:
            raise LabError("network namespaces need root: try sudo")
        self._lock = LOCK.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LabError("another run uses the namespaces hmtl-*: wait for its end") from error
        clear()  # a run that was killed leaves its namespaces
        try:
            self._build()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clear()
        self._lock.close()

    def _build(self) -> None:
        _ip(f"netns add {SWITCH}")
        for bridge in ("users", "relays", "backhaul"):
            _ip(f"-n {SWITCH} link add {bridge} type bridge mcast_snooping 0")
            _ip(f"-n {SWITCH} link set {bridge} up")
        _ip(f"-n {SWITCH} link add trunk-up type veth peer name trunk-down")
        for port, bridge, times in (("trunk-up", "users", self.copies), ("trunk-down", "relays", 1)):
            _ip(f"-n {SWITCH} link set {port} master {bridge} up")
            self._shape(SWITCH, port, times)
        for name in self.names:
            _ip(f"netns add {name}")
            _ip(f"-n {name} link set lo up")
            _run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        server, *others = self.names
        relays, workers = others[: self.relays], others[self.relays :]
        self._plug(server, "hop2", "backhaul", self.server, shaped=True)
        self._plug(server, "hop1", "relays", "10.83.1.1")
        for i, name in enumerate(relays, 10):
            self._plug(name, "hop2", "backhaul", f"10.83.2.{i}", shaped=True)
            self._plug(name, "hop1", "relays", f"10.83.1.{i}")
        for n, name in enumerate(workers, 100):
            self._plug(name, "hop1", "users", f"10.83.1.{n}")
            for i in (1, *range(10, 10 + self.relays)):  # the one address of each relay and of the server
                _ip(f"-n {name} route add 10.83.2.{i} via 10.83.1.{i} congctl cubic")

    def _plug(self, name: str, device: str, bridge: str, address: str, shaped: bool = False) -> None:
        """Connect a namespace to a bridge."""
        port = f"{name.removeprefix(PREFIX)}-{device}"
        _ip(f"link add {device} netns {name} type veth peer name {port} netns {SWITCH}")
        _ip(f"-n {name} addr add {address}/24 dev {device}")
        # bundles of up to ten packets take less CPU time; tbf still counts the headers of each packet
        _ip(f"-n {name} link set {device} gso_max_segs 10 up")
        _ip(f"-n {name} route change {address.rpartition('.')[0]}.0/24 dev {device} src {address} congctl cubic")
        _ip(f"-n {SWITCH} link set {port} master {bridge} up")
        if shaped:
            self._shape(name, device)
            self._shape(SWITCH, port)

    def _shape(self, name: str, device: str, times: int = 1) -> None:
        rate = f"{times * BPS:.0f}bit"
        _run("tc", "-n", name, *f"qdisc add dev {device} root tbf rate {rate} burst {BURST} latency {QUEUE}".split())


def clear() -> None:
    """Kill all processes in the namespaces, and remove the namespaces."""
    namespaces = [line.split()[0] for line in _run("ip", "netns", "list").splitlines()]
    names = [name for name in namespaces if name.startswith(PREFIX)]
    for name in names:
        for pid in _run("ip", "netns", "pids", name).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
    for name in names:
        while _run("ip", "netns", "pids", name):
            time.sleep(0.01)
        _ip(f"netns del {name}")


def _ip(words: str) -> None:
    _run("ip", *words.split())


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
