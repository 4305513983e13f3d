"""Multicast on this machine alone, with receivers that lose datagrams."""

import contextlib

import numpy as np

from hmtl.distributed.multicast.group import Caster, Listener, Multicast

HERE, RATE = "127.0.0.1", 400e6
GROUP = Multicast(port=47190)


def possible() -> bool:
    """Whether a datagram to the group comes back on this machine."""
    with contextlib.suppress(Exception), GROUP.socket(HERE, receive=True) as ear:
        ear.settimeout(1.0)
        with GROUP.socket(HERE, receive=False) as mouth:
            mouth.sendto(b"anybody?", (GROUP.group, GROUP.port))
            return bool(ear.recv(100))
    return False


def losing(listener: Listener, rate: float) -> Listener:
    """A listener to whom each datagram comes but for a chance of `rate`."""
    rng, hear = np.random.default_rng(listener.receiver.rank), listener.receiver.hear
    listener.receiver.hear = lambda datagram: hear(datagram) if rng.random() >= rate else None  # type: ignore[method-assign]
    return listener


def end_of_group(rank: int, relays: int, run: int, loss: float) -> Caster | Listener | None:
    """For the server (rank 0), a relay (the next ones) or a host."""
    if rank == 0:
        return Caster(GROUP, HERE, run, RATE)
    return losing(Listener(GROUP, HERE, run, rank), loss) if rank <= relays else None
