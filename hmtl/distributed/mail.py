"""Messages between processes: what of a message a receiver gets, and who has which users."""

from collections.abc import Mapping

import numpy as np
import torch

from hmtl.communication.messages import SERVER, Message, host_name, relay_number
from hmtl.distributed.frames import RELAYS, Frame, role
from hmtl.errors import ConfigError
from hmtl.io.arrays import Ids
from hmtl.topology import Topology

Homes = Mapping[str, Ids]
"""The users of each host."""


def shared_evenly(hosts: int, K: int) -> Homes:
    """Return the users of each of the hosts, in ascending order.

    Raises:
        ConfigError: there are more hosts than users.
    """
    if hosts > K:
        raise ConfigError(f"there are {hosts} hosts, but only K={K} users. Start fewer hosts.")
    return {host_name(n): ids for n, ids in enumerate(np.array_split(np.arange(K), hosts))}


def cut(message: Message, receiver: str, topology: Topology, homes: Homes) -> Frame:
    """Return what a receiver gets of a message: a relay only rows of users that it hears, a host only of its own."""
    users, rows, payload, overhead = message.users, message.rows(), message.payload, message.overhead
    if users is not None and receiver != SERVER:
        near = np.isin(users, topology.N(relay_number(receiver)) if role(receiver) == RELAYS else homes[receiver])
        rows = rows[torch.from_numpy(near)] if len(rows) == len(users) else rows  # or one row for all of them
        users = users[near]
    if message.at is not None or len(rows) < len(payload):
        payload, overhead = payload[rows], overhead[rows]
    return Frame(message.kind, message.round, payload, overhead, users, message.dtype, format=message.format)


def opened(name: str, sender: str, frame: Frame) -> Message:
    """Return the message in a frame that this node got. Its bits were counted where it was sent."""
    header = frame.round, "", frame.kind, sender, (name,), 0
    return Message(*header, frame.payload, frame.overhead, frame.users, dtype=frame.dtype, format=frame.format)
