"""Bits by round, tier and link; `links.Links.post` is the one place that counts them.

A tier is one direction of one hop; a link is one sender (or, downwards, one receiver) on it. K users, H relays.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

TIERS = ("users_to_relays", "relays_to_server", "server_to_relays", "relays_to_users")
USERS_TO_RELAYS, RELAYS_TO_SERVER, SERVER_TO_RELAYS, RELAYS_TO_USERS = TIERS
SETUP = "setup"


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
    each user (from the relay that serves it), then one for what each relay broadcasts to its users. What is exchanged
    before the first round stands apart, as `SETUP`: it is part of all sums over the run, and of no round.
    """

    def __init__(self, K: int, H: int) -> None:
        users = [f"user {k}" for k in range(K)]
        relays = [f"relay {i}" for i in range(H)]
        self.links: dict[str, Sequence[str]] = dict(
            zip(
                TIERS, (users, relays, [*relays, "all relays"], [*users, *(f"all of {i}" for i in relays)]), strict=True
            )
        )
        ends = np.cumsum([0, *(len(self.links[tier]) for tier in TIERS)])
        self._slices = {tier: slice(ends[n], ends[n + 1]) for n, tier in enumerate(TIERS)}
        self._setup = self._empty()  # [links of all tiers, 2]
        self._counts: list[NDArray[np.int64]] = []  # the same for each round
        self._open = self._setup

    @property
    def rounds(self) -> int:
        """Number of rounds counted so far."""
        return len(self._counts)

    def _empty(self) -> NDArray[np.int64]:
        return np.zeros((self._slices[TIERS[-1]].stop, 2), np.int64)

    def begin_round(self) -> None:
        self._open = self._empty()
        self._counts.append(self._open)

    def add(self, tier: str, links: ArrayLike, payload: int, overhead: int = 0) -> None:
        """Count bits of the present round on `links` (an index or an array of indices, repeats allowed) of `tier`.

        Before the first round, they are the set-up's.
        """
        np.add.at(self._open[self._slices[tier]], np.asarray(links, dtype=np.int64), (payload, overhead))

    def bits(self, tier: str, link: int | None = None, round: int | str | None = None) -> Bits:
        """Bits on `tier`, or on one `link` of it; for `round` see `per_link`."""
        counts = self.per_link(tier, round)
        payload, overhead = counts.sum(0) if link is None else counts[link]
        return Bits(int(payload), int(overhead))

    def per_link(self, tier: str, round: int | str | None = None) -> NDArray[np.int64]:
        """[links, 2] payload and overhead bits of one `round` (negative counts from the last), of SETUP, or of all."""
        if isinstance(round, int):
            chosen = [self._counts[round]]
        else:
            chosen = [self._setup] if round == SETUP else [self._setup, *self._counts]
        return sum((c[self._slices[tier]] for c in chosen), np.zeros((len(self.links[tier]), 2), np.int64))

    def loads(self, V_bits: int) -> dict[str, float]:
        """Measured load of each tier: payload bits per round, divided by V (Hu et al. 2022, Definitions 3 and 4).

        Zero where nothing was sent, so that there is no V.
        """
        return {tier: self.bits(tier).payload / (self.rounds * V_bits or 1) for tier in TIERS}

    def latest(self) -> torch.Tensor:
        """The counts of the present round, or of the set-up before there is one, [links of all tiers, 2]."""
        return torch.from_numpy(self._open.copy())

    def add_latest(self, counts: torch.Tensor) -> None:
        """Add what another ledger calls its `latest`."""
        self._open += counts.numpy()

    def state_dict(self) -> dict[str, Any]:
        rounds = np.asarray(self._counts).reshape(len(self._counts), *self._setup.shape)
        return {"setup": torch.from_numpy(self._setup.copy()), "counts": torch.from_numpy(rounds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._setup = state["setup"].numpy().copy()
        self._counts = list(state["counts"].numpy().copy())
        self._open = self._counts[-1] if self._counts else self._setup
