"""The ledger: the bits of each tier, link and kind of message, which `communication.links` counts. K users, H relays.

A tier is one direction of one hop; a link is one sender on it or, on the way down, one receiver.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hmtl.io.described import Described
from hmtl.topology.names import NAMELESS, Names

TIERS = ("users_to_relays", "relays_to_server", "server_to_relays", "relays_to_users")
USERS_TO_RELAYS, RELAYS_TO_SERVER, SERVER_TO_RELAYS, RELAYS_TO_USERS = TIERS
SETUP = "setup"

Counts = dict[tuple[str, str], NDArray[np.int64]]
"""Payload and overhead bits of the links of a tier [links, 2], by tier and kind of message."""


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
    kind: str
    links: NDArray[np.int64]
    payload: int
    overhead: int
    round: int

    @property
    def total(self) -> int:
        return len(self.links) * (self.payload + self.overhead)


class LinkLedger(Described):
    """Bits by tier, link and kind of message: of the set-up, of the latest round, and in total.

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

    _shown = ("rounds",)

    def __init__(self, K: int, H: int, names: Names = NAMELESS) -> None:
        users, relays = [f"user {names.user(k)}" for k in range(K)], [f"relay {names.relay(i)}" for i in range(H)]
        broadcasts = [f"all of {i}" for i in relays]
        links = users, relays, [*relays, "all relays"], [*users, *broadcasts]
        self.links: dict[str, Sequence[str]] = dict(zip(TIERS, links, strict=True))
        self.rounds = 0
        self._setup, self._earlier, self._latest = Counts(), Counts(), Counts()

    def begin_round(self) -> None:
        """Begin the next round."""
        for key, counts in self._latest.items():
            self._earlier[key] = self._earlier.get(key, 0) + counts
        self._latest = {}
        self.rounds += 1

    def add(
        self, tier: str, kind: str, links: ArrayLike, payload: int, overhead: int = 0, round: int | None = None
    ) -> None:
        """Record bits of the current round, or of the set-up before the first round.

        Args:
            tier: one of TIERS.
            kind: of the message, one of the kinds in `messages`.
            links: the index of a link of the tier, or several (repeats allowed).
            payload, overhead: bits on each of these links.
            round: the round in which they were sent, if it is over; -1: the set-up.
        """
        counts = self._latest if self.rounds else self._setup
        if round is not None and round != self.rounds - 1:
            counts = self._setup if round < 0 else self._earlier
        if (tier, kind) not in counts:
            counts[tier, kind] = np.zeros((len(self.links[tier]), 2), np.int64)
        for column, bits in enumerate((payload, overhead)):  # two columns at once take 20 times as long
            np.add.at(counts[tier, kind][:, column], np.asarray(links, dtype=np.int64), bits)

    def bits(self, tier: str, link: int | None = None, round: int | str | None = None, kind: str | None = None) -> Bits:
        """Return the bits on a tier, or on one link of it; see `per_link` for `round` and `kind`."""
        counts = self.per_link(tier, round, kind)
        payload, overhead = counts.sum(0) if link is None else counts[link]
        return Bits(int(payload), int(overhead))

    def per_link(self, tier: str, round: int | str | None = None, kind: str | None = None) -> NDArray[np.int64]:
        """Return payload and overhead bits of the links of a tier [links, 2].

        `round` is the latest round (its number, or -1), SETUP, or None for the total. `kind` is one kind of message;
        None: all.

        Raises:
            ValueError: the round is an earlier one.
        """
        if round is None:
            parts = [self._setup, self._earlier, self._latest]
        elif round == SETUP:
            parts = [self._setup]
        elif self.rounds and round in (-1, self.rounds - 1):
            parts = [self._latest]
        else:
            raise ValueError(
                f"round {round} is not the latest of {self.rounds} rounds, and a ledger holds only that one. Read it "
                "after every round."
            )
        total = np.zeros((len(self.links[tier]), 2), np.int64)
        for part in parts:
            for (counted, each), counts in part.items():
                total += counts if counted == tier and kind in (None, each) else 0
        return total

    def table(self) -> Any:
        """Return the bits so far, those of the set-up included, as a DataFrame: the content of `links.csv`.

        Columns are `tier`, `link`, `kind`, `payload_bits` and `overhead_bits`. A row is a kind of message on a link
        that has carried any.
        """
        import pandas as pd  # noqa: PLC0415, it takes long to load, and nodes write no tables

        rows, counted = list[tuple[Any, ...]](), {*self._setup, *self._earlier, *self._latest}
        for tier, kind in sorted(counted, key=lambda key: (TIERS.index(key[0]), key[1])):
            counts = self.per_link(tier, kind=kind)
            used = np.flatnonzero(counts.any(axis=1))
            names = [self.links[tier][link] for link in used.tolist()]
            rows += zip(repeat(tier), names, repeat(kind), *counts[used].T.tolist(), strict=False)
        return pd.DataFrame(rows, columns=["tier", "link", "kind", "payload_bits", "overhead_bits"])

    def state_dict(self) -> dict[str, Any]:
        parts = {"setup": self._setup, "earlier": self._earlier, "latest": self._latest}
        copies = (
            {"/".join(key): torch.from_numpy(bits.copy()) for key, bits in each.items()} for each in parts.values()
        )
        return {"rounds": self.rounds, **dict(zip(parts, copies, strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rounds = state["rounds"]
        self._setup, self._earlier, self._latest = (
            {tuple(key.split("/")): bits.numpy().copy() for key, bits in state[name].items()}
            for name in ("setup", "earlier", "latest")
        )
