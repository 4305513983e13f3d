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
    """Bits by tier and link: of the set-up, of the latest round, and of all together.

    What each round before had on each tier is in the measurements of a run; here, nothing grows with the rounds.

    Links of a tier: users_to_relays, one for each user (its broadcast); relays_to_server, one for each relay;
    server_to_relays, one for each relay and a last one for what is broadcast to all of them; relays_to_users, one for
    each user (from the relay that serves it), then one for what each relay broadcasts to its users. What is exchanged
    before the first round stands apart, as `SETUP`: it is part of all sums over the run, and of no round.

    Attributes:
        rounds: number of rounds counted so far.
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
        self.rounds = 0
        self._setup, self._earlier, self._latest = (self._empty() for _ in range(3))  # [links of all tiers, 2] each

    @property
    def _open(self) -> NDArray[np.int64]:
        return self._latest if self.rounds else self._setup

    def _empty(self) -> NDArray[np.int64]:
        return np.zeros((self._slices[TIERS[-1]].stop, 2), np.int64)

    def begin_round(self) -> None:
        self._earlier += self._latest
        self._latest[:] = 0
        self.rounds += 1

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
        """[links, 2] payload and overhead bits of the latest `round` (by its number, or -1), of SETUP, or of all.

        Raises:
            ValueError: an earlier round.
        """
        if round is None:
            counts = self._setup + self._earlier + self._latest
        elif round == SETUP:
            counts = self._setup
        elif self.rounds and round in (-1, self.rounds - 1):
            counts = self._latest
        else:
            raise ValueError(f"round {round} of {self.rounds}: a ledger has the latest one alone. Ask in each round.")
        return counts[self._slices[tier]].copy()

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
        np.add(self._open, counts.numpy(), out=self._open)

    def state_dict(self) -> dict[str, Any]:
        counts = {"setup": self._setup, "earlier": self._earlier, "latest": self._latest}
        return {"rounds": self.rounds, **{name: torch.from_numpy(part.copy()) for name, part in counts.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: there are numbers below zero in it.
        """
        if min(state["rounds"], *(int(state[name].min()) for name in ("setup", "earlier", "latest"))) < 0:
            raise ValueError("fewer bits than none")
        self.rounds = state["rounds"]
        self._setup, self._earlier, self._latest = (
            state[name].numpy().copy() for name in ("setup", "earlier", "latest")
        )
