"""Links on which what arrives at a node may be another message, or none."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from hmtl.communication.messages import IVS, MODELS, Message
from hmtl.testing.scripted import Counting
from hmtl.topology import Topology

Change = Callable[[str, Message], Message | None]


class Changed(Counting):
    """In-process links that apply `change` to each message for a node before the node sees it."""

    reliable = streams = False
    change: Change = staticmethod(lambda node, message: message)
    shuffle: Callable[[int], np.ndarray] = staticmethod(np.arange)  # the order in which so many messages arrive
    members: Mapping[str, np.ndarray] = {}

    def collect(self, node, kind):
        """Collect messages, of which a host gets rows of its own users only, as between processes."""
        posted = super().collect(node, kind)
        arrived = [posted[n] for n in self.shuffle(len(posted))]
        if node in self.members:
            arrived = [of_home(message, self.members[node]) for message in arrived]
        return [changed for message in arrived if (changed := self.change(node, message)) is not None]


def of_home(message: Message, home: np.ndarray) -> Message:
    """Return what a host with these users gets of a message."""
    near, rows = np.isin(message.of_users(), home), message.rows()
    at = rows[torch.from_numpy(near)] if len(rows) == len(near) else rows
    return replace(message, users=message.of_users()[near], at=at)


def flipped(message: Message) -> Message:
    """The message with one bit changed."""
    part = "payload" if message.payload.numel() else "overhead"
    damaged = getattr(message, part).clone()
    damaged[-1, -1] ^= 1
    return replace(message, **{part: damaged})


def poisoned(t: Topology, arrives: np.ndarray | None = None) -> Change:
    """IVs as relays get them: without the rows lost on single links, with garbage in the rows of users out of range."""
    arrives = t.G if arrives is None else arrives

    def change(node: str, message: Message) -> Message:
        if message.kind != IVS or not node.startswith("relay"):
            return message
        i, users = int(node.split()[1]), message.users
        out_of_range = t.G[i][users] == 0
        kept = np.flatnonzero(arrives[i][users] | out_of_range)
        noise = torch.from_numpy(np.random.default_rng(7).integers(0, 256, message.payload.shape, np.uint8))
        payload = torch.where(torch.from_numpy(out_of_range)[:, None], noise, message.payload)
        return replace(message, users=users[kept], payload=payload[kept], overhead=message.overhead[kept])

    return change


def losing(rate: float, seed: int) -> Change:
    """Return a change of messages that loses each IV on each link, and each model, with a probability."""
    rng = np.random.default_rng(seed)

    def change(node: str, message: Message) -> Message:
        if not (message.kind == IVS and node.startswith("relay")) and not (
            message.kind == MODELS and node.startswith("host")
        ):
            return message
        kept = np.flatnonzero(rng.random(len(message)) >= rate)
        return replace(message, users=message.of_users()[kept], at=message.rows()[torch.from_numpy(kept)])

    return change
