"""The node that each process plays, and the users of each host."""

from functools import cached_property

import numpy as np

from hmtl.communication.messages import SERVER, Users, host_name, relay_name
from hmtl.errors import ConfigError


class Placement:
    """N processes, each with one node of the network.

    Rank 0 is the server, ranks 1 to H are the relays, and all others are hosts, which share the K users evenly.

    Args:
        rank: of this process.
        size: N.
        K: number of users.
        H: number of relays.

    Attributes:
        names: the node of each rank [N].
        name: the node of this process.
        relays, hosts: names of the nodes of each kind.
        homes: the users of each host.

    Raises:
        ConfigError: there are too few processes, or more hosts than users.
    """

    def __init__(self, rank: int, size: int, K: int, H: int) -> None:
        check_size(size, K, H)
        self.rank, self.K = rank, K
        self.relays = [relay_name(i) for i in range(H)]
        self.hosts = [host_name(n) for n in range(size - 1 - H)]
        self.homes: list[Users] = np.array_split(np.arange(K), len(self.hosts))
        self.names = [SERVER, *self.relays, *self.hosts]
        self.name = self.names[rank]

    @cached_property
    def users(self) -> Users:
        """The users of this process."""
        return self.users_of(self.name)

    def users_of(self, name: str) -> Users:
        """Return the users of a node: nobody, unless it is a host."""
        return self.homes[self.hosts.index(name)] if name in self.hosts else np.empty(0, np.int64)

    @property
    def others(self) -> list[str]:
        """All nodes but the server."""
        return self.names[1:]

    @property
    def leads(self) -> bool:
        """Whether this process is the leading one, which plays the server."""
        return self.rank == 0

    @property
    def is_relay(self) -> bool:
        """Whether this process plays a relay."""
        return self.name in self.relays

    @property
    def neighbors(self) -> dict[str, int]:
        """Ranks of the processes that this one exchanges frames with, by name.

        Relays and hosts exchange frames with each other, but not among themselves; the server does with all.
        """
        return {name: rank for rank, name in enumerate(self.names) if _kind(name) != _kind(self.name)}


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def check_size(size: int, K: int | None, H: int) -> None:
    """Raise ConfigError if N processes are too few or too many for K users (None: not yet known) and H relays."""
    hosts = size - 1 - H
    if hosts < 1 or (K is not None and hosts > K):
        most = "more" if K is None else H + 1 + K
        raise ConfigError(
            f"engine=torch_distributed has {size} processes, but H={H} and K={K} need {H + 2} to {most}: a server, the "
            "relays, and hosts of at least one user each. Set processes, or --nproc-per-node of torchrun."
        )
