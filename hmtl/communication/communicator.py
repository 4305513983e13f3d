"""A communicator carries one round's IVs up and the new models down, and counts every bit.

K users, m numbers per IV, L bytes per IV.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from hmtl.coding.packets import from_bytes, to_bytes
from hmtl.communication.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    USERS_TO_RELAYS,
    LinkLedger,
)
from hmtl.communication.network import check_medium
from hmtl.errors import CodingError
from hmtl.topology import Topology

GlobalUpdate = Callable[[Tensor], Tensor]


class Stopwatch:
    """Seconds of one round by who spent them, for example `relay 3`, `server` or `global update`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, who: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[who] = self.seconds.get(who, 0.0) + time.perf_counter() - start

    def slowest(self, who: str) -> float:
        """The largest of the times of those whose name starts with `who`; zero where there are none."""
        return max((s for name, s in self.seconds.items() if name.startswith(who)), default=0.0)


class Communicator(ABC):
    """Base of all transports: a subclass says how IVs reach the aggregator and how models leave it.

    Args:
        topology: who hears whom.
        medium: the server's downlink, `broadcast` or `unicast`.
    """

    def __init__(self, topology: Topology, medium: str = "broadcast") -> None:
        check_medium(medium)
        self.topology = topology
        self.medium = medium
        self.ledger = LinkLedger(topology.K, topology.H)
        self.stopwatch = Stopwatch()

    def exchange(self, ivs: Tensor, global_update: GlobalUpdate) -> Tensor:
        """One round of communication: users' IVs in, users' models out.

        Args:
            ivs: [K, m] floating point; row k is what user k sends.
            global_update: φ of (3), handed all IVs [K, m]; gives [K, m + e]: the models, and e further numbers for
                each user, which travel with them and count as overhead.

        Returns:
            [K, m + e], row k as user k received it.

        Raises:
            CodingError: `ivs` has not one row for each user, or a relay decoded other bytes than the users sent.
        """
        if ivs.ndim != 2 or len(ivs) != self.topology.K:
            raise CodingError(
                f"ivs has shape {tuple(ivs.shape)}, but the network has {self.topology.K} users: "
                "hand over one row of numbers for each user."
            )
        self.ledger.begin_round()
        self.stopwatch = Stopwatch()
        sent = to_bytes(ivs)
        nbytes = sent.shape[1]
        self.ledger.add(USERS_TO_RELAYS, np.arange(self.topology.K), 8 * nbytes)
        received = from_bytes(self._gather(sent), ivs.dtype)
        with self.stopwatch.measure("global update"):
            models = to_bytes(global_update(received))
        payload, overhead = 8 * min(models.shape[1], nbytes), 8 * max(models.shape[1] - nbytes, 0)
        self._return(payload, overhead)
        self.ledger.add(RELAYS_TO_USERS, np.arange(self.topology.K), payload, overhead)
        return from_bytes(models, ivs.dtype)

    @abstractmethod
    def _gather(self, ivs: Tensor) -> Tensor:
        """Bring all IVs, [K, L] uint8, to where the global update runs; the ledger counts what it takes."""

    @abstractmethod
    def _return(self, payload_bits: int, overhead_bits: int) -> None:
        """Count what brings the models, of so many bits each, from there to the relays."""


class Uncoded(Communicator):
    """Relays forward, the server runs the global update. Ref: Hu et al. 2022, Example 1; loads (K, K, K, K)."""

    def _gather(self, ivs: Tensor) -> Tensor:
        self.ledger.add(RELAYS_TO_SERVER, self.topology.serving, 8 * ivs.shape[1])
        return ivs

    def _return(self, payload_bits: int, overhead_bits: int) -> None:
        self.ledger.add(SERVER_TO_RELAYS, self.topology.serving, payload_bits, overhead_bits)
