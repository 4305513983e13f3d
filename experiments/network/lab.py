"""A network of its own on this machine: namespaces joined by veth pairs and bridges, with links of given speeds.

    workers --- users ===trunk=== relays --- relay 0..H-1 --- backhaul --- server

`users`, `relays` and `backhaul` are bridges. Every link of the second hop (relays and server) carries BPS each way,
as ports of a switch do: what goes to the server shares its link, and so does what comes from it, be it a copy for each
relay or one multicast that the switch copies behind it. This is the formula's W2. The first hop shares the trunk: BPS
downwards, and `copies` times BPS upwards, where an IV that its user broadcasts once, as the formula has it, goes as a
copy to each of so many relays: it takes W1's time. The server has a link to the users' side, too, for words
that nothing measures. Needs root, and Linux with `ip`, `tc` and `nft`.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PREFIX = "hmtl-"
SWITCH = PREFIX + "switch"
LOCK = Path("/run/lock/hmtl-network")
BPS = 100e6
BURST = "64kb"  # some ms of a link, so that a timer that fires late costs nothing
QUEUE = "200ms"
LOSSY = (
    "table ip lossy {{ chain in {{ type filter hook prerouting priority raw; "
    "ip daddr 224.0.0.0/4 numgen random mod 1000000 < {} drop; }}; }}"
)


class LabError(Exception):
    """The network cannot be built here."""


def obstacle() -> str | None:
    """Why there can be no such network on this machine; None where there can."""
    try:
        with Lab(relays=1, workers=1, copies=1):
            return None
    except LabError as error:
        return str(error)


class Lab:
    """The network, as long as the context lasts; when it ends, processes and all are gone.

    Args:
        relays, workers: how many there are.
        copies: of an IV, on the trunk.
        loss: probability that a multicast packet that comes to a relay is lost, for each relay apart.

    Raises:
        LabError: there is another one, or the kernel cannot.
    """

    def __init__(self, relays: int, workers: int, copies: int, loss: float = 0.0) -> None:
        self.relays, self.workers, self.copies, self.loss = relays, workers, copies, loss
        self.server = "10.83.2.1"

    @property
    def names(self) -> list[str]:
        """Of the namespaces with nodes, in the order of their ranks."""
        return [
            PREFIX + name
            for name in (
                "server",
                *(f"relay{i}" for i in range(self.relays)),
                *(f"worker{n}" for n in range(self.workers)),
            )
        ]

    def __enter__(self) -> Self:
        if missing := [name for name in ("ip", "tc", "sysctl", "nft") if shutil.which(name) is None]:
            raise LabError(f"{missing[0]} is missing: install iproute2, procps and nftables")
        if os.geteuid() != 0:
            raise LabError("network namespaces need root: try sudo")
        self._lock = LOCK.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LabError("another run has the namespaces hmtl-*: wait for its end") from error
        clear()  # what a run that was killed has left
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

    def device(self, rank: int) -> str:
        """That on which a node has its address."""
        return "hop2" if rank <= self.relays else "hop1"

    def start(self, rank: int, command: Sequence[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Run a command as one of the nodes, before anything else on this machine, which would make links look slow."""
        place = ["nice", "-n", "-20", "ip", "netns", "exec", self.names[rank]]
        return subprocess.Popen([*place, *command], env=environment, start_new_session=True)

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
            if self.loss:
                _run("ip", "netns", "exec", name, "nft", LOSSY.format(round(1e6 * self.loss)))
        for n, name in enumerate(workers, 100):
            self._plug(name, "hop1", "users", f"10.83.1.{n}")
            for i in (1, *range(10, 10 + self.relays)):  # nodes have one address each: the one above
                _ip(f"-n {name} route add 10.83.2.{i} via 10.83.1.{i} congctl cubic")

    def _plug(self, name: str, device: str, bridge: str, address: str, shaped: bool = False) -> None:
        """Give a namespace a link to a bridge."""
        port = f"{name.removeprefix(PREFIX)}-{device}"
        _ip(f"link add {device} netns {name} type veth peer name {port} netns {SWITCH}")
        _ip(f"-n {name} addr add {address}/24 dev {device}")
        # up to ten packets go bundled and are counted so, which spares time; tbf counts the headers of each one
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
    """End all processes in the namespaces, and remove these."""
    found = [line.split()[0] for line in _run("ip", "netns", "list").splitlines()]
    names = [name for name in found if name.startswith(PREFIX)]
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
