"""The one place where bits are counted.

A tier is one direction of one hop; a link is one sender (or, downwards, one receiver) on it. K users, H relays.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

TIERS = ("users_to_relays", "relays_to_server", "server_to_relays", "relays_to_users")
USERS_TO_RELAYS, RELAYS_TO_SERVER, SERVER_TO_RELAYS, RELAYS_TO_USERS = TIERS


class Bits(NamedTuple):
    """Bits sent: `payload` carries IVs or models (padding included), `overhead` all that travels with them."""

    payload: int
    overhead: int

    @property
    def total(self) -> int:
        return self.payload + self.overhead


class LinkLedger:
    """Bits by round, tier and link.

    Links of a tier: users_to_relays, one for each user (its broadcast); relays_to_server, one for each relay;
    server_to_relays, one for each relay and a last one for what is broadcast to all of them; relays_to_users, one for
    each user (from the relay that serves it).
    """

    def __init__(self, K: int, H: int) -> None:
        users = [f"user {k}" for k in range(K)]
        relays = [f"relay {i}" for i in range(H)]
        self.links: dict[str, Sequence[str]] = dict(
            zip(TIERS, (users, relays, [*relays, "all relays"], users), strict=True)
        )
        ends = np.cumsum([0, *(len(self.links[tier]) for tier in TIERS)])
        self._slices = {tier: slice(ends[n], ends[n + 1]) for n, tier in enumerate(TIERS)}
        self._counts: list[NDArray[np.int64]] = []  # per round [links of all tiers, 2]

    @property
    def rounds(self) -> int:
        """Number of rounds counted so far."""
        return len(self._counts)

    def begin_round(self) -> None:
        self._counts.append(np.zeros((self._slices[TIERS[-1]].stop, 2), np.int64))

    def add(self, tier: str, links: ArrayLike, payload: int, overhead: int = 0) -> None:
        """Count bits of the present round on `links` (an index or an array of indices, repeats allowed) of `tier`."""
        counts, links = self._counts[-1][self._slices[tier]], np.asarray(links)
        np.add.at(counts[:, 0], links, payload)
        np.add.at(counts[:, 1], links, overhead)

    def bits(self, tier: str, link: int | None = None, round: int | None = None) -> Bits:
        """Bits on `tier`, or on one `link` of it; in one `round` (negative counts from the last), or in all."""
        counts = self.per_link(tier, round)
        payload, overhead = counts.sum(0) if link is None else counts[link]
        return Bits(int(payload), int(overhead))

    def per_link(self, tier: str, round: int | None = None) -> NDArray[np.int64]:
        """[links, 2] payload and overhead bits of one `round` (negative counts from the last), or of all."""
        rounds = self._counts if round is None else [self._counts[round]]
        return sum((c[self._slices[tier]] for c in rounds), np.zeros((len(self.links[tier]), 2), np.int64))

    def loads(self, V_bits: int) -> dict[str, float]:
        """Measured load of each tier: payload bits per round, divided by V (Hu et al. 2022, Definitions 3 and 4)."""
        return {tier: self.bits(tier).payload / (self.rounds * V_bits) for tier in TIERS}

    def state_dict(self) -> dict[str, Any]:
        return {"counts": torch.from_numpy(np.asarray(self._counts))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._counts = list(state["counts"].numpy().copy())
