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


def ends_of_group(relays: int, loss: float) -> dict[int, Caster | Listener]:
    """Return the ends of a group by rank: 0 is the server, the next ones are relays."""
    caster = Caster(GROUP, HERE, RATE)
    ranks = range(1, relays + 1)
    return {0: caster} | {rank: losing(Listener(GROUP, caster.invitation(rank)), loss) for rank in ranks}
