"""The ledger: the bits of each tier and link, which `communication.links` counts message by message. K users, H relays.

A tier is one direction of one hop; a link is one sender on it or, on the way down, one receiver.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hmtl.topology.names import NAMELESS, Names

TIERS = ("users_to_relays", "relays_to_server", "server_to_relays", "relays_to_users")
USERS_TO_RELAYS, RELAYS_TO_SERVER, SERVER_TO_RELAYS, RELAYS_TO_USERS = TIERS
SETUP = "setup"


class Bits(NamedTuple):
    """Bits sent: the `payload` of IVs or models, with padding, and the `overhead` of what travels with them."""

    payload: int
    overhead: int

    @property
    def total(self) -> int:
        return self.payload + self.overhead


class Sent(NamedTuple):
    """Bits that were sent on some links of a tier in a round, see `LinkLedger.add`; round -1: the set-up."""

    tier: str
    links: NDArray[np.int64]
    payload: int
    overhead: int
    round: int

    @property
    def total(self) -> int:
        return len(self.links) * (self.payload + self.overhead)


class LinkLedger:
    """Bits by tier and link: of the set-up, of the latest round, and in total.

    `Links.post` records every message. The ledger does not grow with the rounds: the bits of earlier rounds are in the
    measurements of a run. What is exchanged before the first round is recorded as `SETUP`, which is part of the totals
    but of no round.

    Links of a tier:
        users_to_relays: one for each user (its broadcast).
        relays_to_server: one for each relay.
        server_to_relays: one for each relay, and a last one for what is broadcast to all relays.
        relays_to_users: one for each user (from the relay that serves it), then one for each relay's broadcasts.

    Attributes:
        links: names of the links of each tier.
        rounds: number of rounds recorded so far.
    """

    def __init__(self, K: int, H: int, names: Names = NAMELESS) -> None:
        users, relays = [f"user {names.user(k)}" for k in range(K)], [f"relay {names.relay(i)}" for i in range(H)]
        broadcasts = [f"all of {i}" for i in relays]
        links = users, relays, [*relays, "all relays"], [*users, *broadcasts]
        self.links: dict[str, Sequence[str]] = dict(zip(TIERS, links, strict=True))
        ends = np.cumsum([0, *map(len, links)])
        self._slices = {tier: slice(*ends[n : n + 2]) for n, tier in enumerate(TIERS)}
        self.rounds = 0
        zeros = np.zeros((ends[-1], 2), np.int64)  # payload and overhead of the links of all tiers
        self._setup, self._earlier, self._latest = zeros, zeros.copy(), zeros.copy()

    @property
    def _open(self) -> NDArray[np.int64]:
        return self._latest if self.rounds else self._setup

    def begin_round(self) -> None:
        """Begin the next round."""
        self._earlier += self._latest
        self._latest[:] = 0
        self.rounds += 1

    def add(self, tier: str, links: ArrayLike, payload: int, overhead: int = 0, round: int | None = None) -> None:
        """Record bits of the current round, or of the set-up before the first round.

        Args:
            tier: one of TIERS.
            links: the index of a link of the tier, or several (repeats allowed).
            payload, overhead: bits on each of these links.
            round: the round in which they were sent, if it is over; -1: the set-up.
        """
        counts = self._open
        if round is not None and round != self.rounds - 1:
            counts = self._setup if round < 0 else self._earlier
        np.add.at(counts[self._slices[tier]], np.asarray(links, dtype=np.int64), (payload, overhead))

    def bits(self, tier: str, link: int | None = None, round: int | str | None = None) -> Bits:
        """Return the bits on a tier, or on one link of it; see `per_link` for `round`."""
        counts = self.per_link(tier, round)
        payload, overhead = counts.sum(0) if link is None else counts[link]
        return Bits(int(payload), int(overhead))

    def per_link(self, tier: str, round: int | str | None = None) -> NDArray[np.int64]:
        """Return payload and overhead bits of the links of a tier [links, 2].

        `round` is the latest round (its number, or -1), SETUP, or None for the total.

        Raises:
            ValueError: the round is an earlier one.
        """
        if round is None:
            counts = self._setup + self._earlier + self._latest
        elif round == SETUP:
            counts = self._setup
        elif self.rounds and round in (-1, self.rounds - 1):
            counts = self._latest
        else:
            raise ValueError(
                f"round {round} is not the latest of {self.rounds} rounds, and a ledger holds only that one. Read it "
                "after every round."
            )
        return counts[self._slices[tier]].copy()

    def loads(self, V_bits: int) -> dict[str, float]:
        """Return the measured load of each tier: payload bits per round, divided by V.

        Ref: Hu et al. 2022, Definitions 3 and 4.
        """
        return {tier: self.bits(tier).payload / (self.rounds * V_bits or 1) for tier in TIERS}

    def latest(self) -> torch.Tensor:
        """Return the bits of the current round, or of the set-up, [links of all tiers, 2]."""
        return torch.from_numpy(self._open.copy())

    def add_latest(self, counts: torch.Tensor) -> None:
        """Add what `latest` of another ledger returned."""
        np.add(self._open, counts.numpy(), out=self._open)

    def state_dict(self) -> dict[str, Any]:
        counts = {"setup": self._setup, "earlier": self._earlier, "latest": self._latest}
        return {"rounds": self.rounds, **{name: torch.from_numpy(bits.copy()) for name, bits in counts.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rounds = state["rounds"]
        names = ("setup", "earlier", "latest")
        self._setup, self._earlier, self._latest = (state[name].numpy().copy() for name in names)
