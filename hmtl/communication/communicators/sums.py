"""The communicator of sums: relays and server add. K users, H relays."""

from functools import partial
from typing import Any

import numpy as np

from hmtl.coding import Loads, cover, sum_bounds, sum_loads
from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    TIERS,
    USERS_TO_RELAYS,
)
from hmtl.communication.accounting.network import Network, between_seconds
from hmtl.communication.coders import AggregatorCoder
from hmtl.communication.communicators.base import Communicator, MakeLinks
from hmtl.communication.communicators.ivs import CodedHierarchical
from hmtl.communication.links import InProcess
from hmtl.communication.nodes.adding import AddingHost, AddingRelay, AddingServer, SummingAggregation
from hmtl.communication.nodes.aggregation import AggregatorSide
from hmtl.communication.nodes.host import UserSide
from hmtl.communication.round import Nodes, forwarding
from hmtl.errors import ConfigError
from hmtl.topology import Moving, Topology

RECEIPT = 32  # bits, beside each user's own model, that say in which round the user's IV counted last


class Sums(Communicator):
    """A communicator for learners that need only sums: relays and server add the users' terms.

    What is exchanged before the first round travels uncoded.

    Args:
        topology: who hears whom, in all rounds or round by round.
        network, links: see `Communicator`; `network.last_hop` says how relays reach their users.
        wire: has to be None, since sums have a format of their own.
        coding: loads of the coded plan that sums replaced because they take less time; None: the user chose sums.
    """

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        wire: str | None = None,
        *,
        links: MakeLinks = InProcess,
        coding: Loads | None = None,
    ) -> None:
        if wire is not None:
            raise ConfigError(f"wire={wire} with communicator=sums: sums travel as 64-bit integers. Set wire=null.")
        super().__init__(topology, network, "uncoded", links=links)
        self.coding = coding

    @property
    def theory(self) -> Loads:
        return sum_loads(self.topology, self.network.uplinks(self.topology))

    def describe(self) -> dict[str, Any]:
        """Return what `summary.json` reports about communication, with the bounds of `sum_bounds`.

        `loads_uncoded` are the loads of the same learner's IVs and models, in units of this run's message length.
        """
        described = super().describe()
        topologies = [self.contacts.at(number) for number in self._described_rounds]
        rows = {t: self._rows(t) for t in set(topologies)}
        last_hop, *least = np.mean([rows[t] for t in topologies], axis=0).tolist()
        described["loads_theory"][RELAYS_TO_USERS] = last_hop
        described["bounds"] = dict(zip((RELAYS_TO_SERVER, SERVER_TO_RELAYS, RELAYS_TO_USERS), least, strict=True))
        described |= {"communicator": "sums", "scheme": "sums", "last_hop": self.network.last_hop}
        described["adding"] = list(self.planner.cover(self.topology).relays)
        if self._sides and self.V_bits:
            IV_bits = self._sides[0].row_bits[0]
            described["loads_uncoded"] = dict.fromkeys(TIERS, self.topology.K * IV_bits / self.V_bits)
            if self.coding:
                described["note"] = self._reason(self.coding, IV_bits)
        return described

    def uncoded_seconds(self) -> float:
        """Return the communication time of the last round with uncoded IVs and models instead."""
        if self._server is None or self._sides is None:
            return 0.0
        (numbers, up, down), sent = self._sides[0].row_bits, self._sent(-1)
        reached = self.topology.restricted(relays=self._server.attendance.relays).degrees > 0
        users = {
            USERS_TO_RELAYS: np.where(sent[USERS_TO_RELAYS] > 0, numbers + up, 0),
            RELAYS_TO_USERS: np.where(reached, numbers + down + RECEIPT, 0),
        }
        return self._uncoded_seconds({**sent, **users}, self._server)

    def _make_nodes(self, users: UserSide, aggregator: AggregatorSide) -> Nodes:
        if not users.numbers:  # a set-up, or nothing travels
            return super()._make_nodes(users, aggregator)
        aggregation = SummingAggregation(self.topology.K, aggregator, AggregatorCoder(users.numbers, None))
        server = partial(AddingServer, aggregation=aggregation)
        return self._local_nodes(users, AddingRelay, server, forwarding, aggregation, AddingHost)

    def _rows(self, t: Topology) -> tuple[float, float, float, float]:
        """Return how many rows relays send to users, and bounds for the rows from relays, from server, and to users."""
        bound = sum_bounds(t)
        up, down = bound.uplink, bound.down(self.network.medium)
        if self.network.last_hop == "unicast":
            return len(t.present), up, down, len(t.present)
        return len(cover(t).relays), up, down, bound.unicast

    def _reason(self, coding: Loads, IV_bits: int) -> str:
        """Return why sums travel instead of coded IVs."""
        adding = between_seconds(self.network, self.theory, self.V_bits)
        coded = between_seconds(self.network, coding, IV_bits)
        return (
            "relays add instead of coding, since this learner needs only sums: a round between relays and server takes "
            f"{adding:.3g} s instead of {coded:.3g} s (a row of sums has {self.V_bits / IV_bits:.2g} times the bits of "
            "an IV)"
        )


def sums_if_faster(coded: CodedHierarchical, ratio: float) -> Sums | None:
    """Return a communicator of sums to replace `coded`, or None if it is not faster.

    Only the time between relays and server is compared. Sums replace coding only if `aggregators=auto` and numbers
    travel in their own type.

    Args:
        coded: the communicator that sums may replace.
        ratio: bits of a row of sums divided by bits of an IV, 8·q/itemsize for q sums.
    """
    if coded.aggregators != "auto" or coded.wire is not None:
        return None
    sums = Sums(coded.contacts, coded.network, links=coded.make_links, coding=coded.theory)
    adding = between_seconds(coded.network, sums.theory, ratio)
    return sums if adding < between_seconds(coded.network, coded.theory, 1) else None
