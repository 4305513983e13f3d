"""A switch in a process: namespaces whose only links have given rates and delays, without help of the kernel (netem).

Each namespace has a TUN device. The switch reads its packets, holds each as long as the sender's and the receiver's
links take, and writes it to the receiver. A packet that would wait for more than QUEUE seconds at a link is dropped.
Needs root.
"""

import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LINKS = {  # Mbit/s in each direction, and milliseconds
    "server": (100, 1),
    "relay-0": (100, 1),
    "relay-1": (20, 9),
    "relay-2": (5, 19),
    "host-0": (20, 5),
    "host-1": (100, 10),
}
QUEUE = 0.3  # seconds
MTU = 1500
PREFIX = "field-"
TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 1, 0x1000, 0x40000000
Link = tuple[float, float, float]  # bit/s up, bit/s down, seconds


def address(n: int) -> str:
    return f"10.84.0.{n + 1}"


def build(names: Sequence[str]) -> list[int]:
    """Make the namespaces, and return the switch's end of each one's link."""
    fds = []
    for n, name in enumerate(names):
        run(f"ip netns add {PREFIX}{name}")
        run(f"ip -n {PREFIX}{name} link set lo up")
        fds.append(_tun(name))
        run(f"ip -n {PREFIX}{name} addr add {address(n)}/24 dev net0")
        run(f"ip -n {PREFIX}{name} link set net0 mtu {MTU} txqueuelen 100 up")
    return fds


def clear() -> None:
    """Remove the namespaces."""
    lines = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.splitlines()
    for name in (line.split()[0] for line in lines):
        if name.startswith(PREFIX):
            for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
                os.kill(int(pid), 9)
            run(f"ip netns del {name}")


@contextmanager
def switched(folder: Path) -> Iterator[None]:
    """A context in which a switch connects namespaces by LINKS."""
    table = folder / "links.txt"
    table.write_text("".join(f"{name} {rate}e6 {rate}e6 {ms / 1000}\n" for name, (rate, ms) in LINKS.items()))
    process = subprocess.Popen([sys.executable, __file__, str(table)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # it is ready
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def run(words: str) -> None:
    subprocess.run(words.split(), check=True)


def _tun(name: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    here, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{PREFIX}{name}", os.O_RDONLY)
    if libc.setns(there, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", b"net0", IFF_TUN | IFF_NO_PI))
    libc.setns(here, CLONE_NEWNET)
    os.close(here)
    os.close(there)
    return fd


def switch(fds: Sequence[int], links: Sequence[Link]) -> None:
    """Carry packets for ever."""
    up, down = [0.0] * len(fds), [0.0] * len(fds)  # until when the links are busy
    events: list[tuple[float, int, bool, int, bytes]] = []  # when, number, whether it is delivered, to whom, packet
    poll, places, count = select.epoll(), {fd: n for n, fd in enumerate(fds)}, 0
    for fd in fds:
        poll.register(fd, select.EPOLLIN)
    while True:
        now = time.monotonic()
        while events and events[0][0] <= now:
            when, number, deliver, b, packet = heapq.heappop(events)
            if deliver:
                try:
                    os.write(fds[b], packet)
                except OSError:
                    continue
            else:
                start = max(down[b], when)
                if start - when < QUEUE:
                    down[b] = start + 8 * len(packet) / links[b][1]
                    heapq.heappush(events, (down[b] + links[b][2], number, True, b, packet))
        wait = min(0.1, max(0.0, events[0][0] - time.monotonic())) if events else 0.1
        for fd, _ in poll.poll(wait if wait > 0.001 else 0.0):
            a = places[fd]
            for _ in range(16):
                try:
                    packet = os.read(fd, 65536)
                except BlockingIOError:
                    break
                b, now = packet[19] - 1, time.monotonic()
                if packet[0] >> 4 != 4 or not 0 <= b < len(fds) or max(up[a], now) - now > QUEUE:
                    continue
                up[a] = max(up[a], now) + 8 * len(packet) / links[a][0]
                count += 1
                heapq.heappush(events, (up[a] + links[a][2], count, False, b, packet))


if __name__ == "__main__":
    content = Path(sys.argv[1]).read_text().split("\n")
    rows = [line.split() for line in content if line]
    clear()
    ends = build([row[0] for row in rows])
    print("ready", flush=True)
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    switch(ends, [(float(row[1]), float(row[2]), float(row[3])) for row in rows])
