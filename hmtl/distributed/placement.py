"""The node that each process plays, and the users of each host."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.messages import SERVER, host_name, relay_name
from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.base import NOBODY, Ids, Users
from hmtl.mtl.sums import Terms


class Placement:
    """N processes, each with one node of the network.

    Rank 0 is the server, ranks 1 to H are the relays, and all others are hosts of the K users.

    Args:
        rank: rank of this process.
        size: N.
        K: number of users.
        H: number of relays.
        homes: the users of each host, in ascending order; None: hosts share them evenly.

    Attributes:
        names: the node of each rank [N].
        relays, hosts, others: names of the nodes of each kind, and of all nodes but the server.
        homes: the users of each host.
        order: where each user comes among those of all hosts, one host after the other.
        name, users: the node of this process, and its users.
        leads, is_relay: whether this node is the server, whose process leads, or a relay.
    """

    def __init__(self, rank: int, size: int, K: int, H: int, homes: Sequence[Ids] | None = None) -> None:
        self.rank, self.K = rank, K
        self.names = names_of(size, H)
        self.others = self.names[1:]
        self.relays, self.hosts = self.others[:H], self.others[H:]
        self.homes = list(homes or np.array_split(np.arange(K), len(self.hosts)))
        self.order = np.argsort(np.concatenate(self.homes))
        self.name = self.names[rank]
        self.users = self.users_of(self.name)
        self.leads, self.is_relay = rank == 0, self.name in self.relays

    def by_user(self, rows: Sequence[Tensor]) -> Tensor:
        """Return a row per user, in the order of users, from the rows of each host."""
        return torch.cat(list(rows))[self.order]

    def users_of(self, name: str) -> Ids:
        """Return the users of a node; only a host has any."""
        return self.homes[self.hosts.index(name)] if name in self.hosts else NOBODY


class HostedUsers:
    """A user side that numbers users as the whole network does; `inner` numbers those of this host from 0.

    Args:
        inner: the user side of this host.
        hosted: numbers of its users in the network [n].
    """

    def __init__(self, inner: Users, hosted: Ids) -> None:
        self.inner, self.hosted = inner, hosted
        self.numbers, self.row_bits = inner.numbers, inner.row_bits
        self.deltas, self.origin, self.averages = inner.deltas, inner.origin, inner.averages

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor | Terms]:
        users, ivs = self.inner.local_update(round, np.flatnonzero(np.isin(self.hosted, idle)))
        return self.hosted[users], ivs

    def take_sent(self, users: Ids, sent: Tensor, further: Tensor) -> Tensor:
        return self.inner.take_sent(self._places(users), sent, further)

    def take_leftover(self, users: Ids, leftover: Tensor) -> None:
        self.inner.take_leftover(self._places(users), leftover)

    def commit(self, users: Ids) -> None:
        self.inner.commit(self._places(users))

    def roll_back(self, users: Ids) -> None:
        self.inner.roll_back(self._places(users))

    def receive(self, users: Ids, models: Tensor) -> None:
        self.inner.receive(self._places(users), models)

    def _places(self, users: Ids) -> Ids:
        return np.searchsorted(self.hosted, users)


def names_of(size: int, H: int) -> list[str]:
    """Return the node of each rank, for N processes and H relays."""
    return [SERVER, *map(relay_name, range(H)), *map(host_name, range(size - 1 - H))]


def check_size(size: int, K: int | None, H: int) -> None:
    """Raise ConfigError if N processes are too few or too many for K users (None: not yet known) and H relays."""
    hosts = size - 1 - H
    if hosts < 1 or (K is not None and hosts > K):
        most = "more" if K is None else H + 1 + K
        raise ConfigError(
            f"engine=torch_distributed has {size} processes, but H={H} and K={K} need {H + 2} to {most}: a server, the "
            "relays, and hosts with at least one user each. Set processes, or torchrun's --nproc-per-node."
        )
