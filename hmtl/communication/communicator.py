"""A communicator carries one round's IVs up and the new models down, and counts every bit.

K users, m numbers per IV, L bytes per IV.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding.packets import from_bytes, to_bytes
from hmtl.communication.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    USERS_TO_RELAYS,
    LinkLedger,
)
from hmtl.communication.network import Network, check_medium
from hmtl.errors import CodingError, ConfigError
from hmtl.topology import Topology

GlobalUpdate = Callable[[Tensor], Tensor]
Users = NDArray[np.int64]
WIRES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
        wire: how numbers travel, a name of WIRES; None sends them as they are.
    """

    def __init__(self, topology: Topology, medium: str = "broadcast", wire: str | None = None) -> None:
        check_medium(medium)
        if wire is not None and wire not in WIRES:
            raise ConfigError(f"wire={wire} is unknown: choose one of {', '.join(WIRES)}, or null for no conversion.")
        self.topology = topology
        self.medium = medium
        self.wire = wire
        self.V_bits = 0  # of one IV on the wire, known from the first exchange on
        self.ledger = LinkLedger(topology.K, topology.H)
        self.stopwatch = Stopwatch()

    def exchange(self, ivs: Tensor, global_update: GlobalUpdate, absent: Sequence[int] = ()) -> Tensor:
        """One round of communication: users' IVs in, users' models out.

        Args:
            ivs: [K, m] floating point; row k is what user k sends.
            global_update: φ of (3), handed all IVs [K, m]; gives [K, m + e]: the models, and e further numbers for
                each user, which travel with them and count as overhead.
            absent: users who send nothing; everybody knows what to take for their IVs, which stand in `ivs`.

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
        wire = WIRES[self.wire] if self.wire else ivs.dtype
        sent = to_bytes(ivs.to(wire)).cpu()  # relays and server handle bytes, on whatever device users compute
        self.V_bits = 8 * sent.shape[1]
        present = np.setdiff1d(np.arange(self.topology.K), absent)
        self.ledger.add(USERS_TO_RELAYS, present, self.V_bits)
        received = from_bytes(self._gather(sent, present), wire).to(ivs)
        with self.stopwatch.measure("global update"):
            models = to_bytes(global_update(received).to(wire)).cpu()
        del received  # which may be as large as all IVs
        model_bits = 8 * models.shape[1]
        payload, overhead = min(model_bits, self.V_bits), max(model_bits - self.V_bits, 0)
        self._return(payload, overhead)
        self.ledger.add(RELAYS_TO_USERS, np.arange(self.topology.K), payload, overhead)
        return from_bytes(models, wire).to(ivs, copy=True)  # users share no memory with who computed their models

    @abstractmethod
    def _gather(self, ivs: Tensor, present: Users) -> Tensor:
        """All IVs, [K, L] uint8 in new memory, as they come to where the global update runs; the ledger counts it.

        Args:
            ivs: row k is what user k sends, or what everybody takes for it if it is not `present`.
            present: the users who send.
        """

    @abstractmethod
    def _return(self, payload_bits: int, overhead_bits: int) -> None:
        """Count what brings the models, of so many bits each, from there to the relays."""


class Uncoded(Communicator):
    """Relays forward, the server runs the global update. Ref: Hu et al. 2022, Example 1; loads (K, K, K, K).

    Args:
        topology, medium, wire: see `Communicator`.
        uplink_bps, uplink: the relays' links to the server, see `Network`; who forwards is chosen for the least time.
    """

    def __init__(
        self,
        topology: Topology,
        medium: str = "broadcast",
        wire: str | None = None,
        *,
        uplink_bps: Sequence[float] | None = None,
        uplink: str = "shared",
    ) -> None:
        super().__init__(topology, medium, wire)
        self.forwarders = Network(uplink_bps=uplink_bps, uplink=uplink).forwarders(topology)

    def _gather(self, ivs: Tensor, present: Users) -> Tensor:
        self.ledger.add(RELAYS_TO_SERVER, self.forwarders[present], 8 * ivs.shape[1])
        return ivs.clone()

    def _return(self, payload_bits: int, overhead_bits: int) -> None:
        self.ledger.add(SERVER_TO_RELAYS, self.topology.serving, payload_bits, overhead_bits)
