"""Planners of a network whose users may move: one for each topology, and the relays at home in aggregating.

K users, H relays.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from hmtl.coding import Aggregators, resolve, scheme_of
from hmtl.communication.accounting.network import Network
from hmtl.communication.planning.planner import Planner
from hmtl.topology import Moving, Topology

KEPT = 16  # planners, in case their contacts return


@dataclass
class Planning:
    """What it cost, in the rounds, that contacts change and that users and relays drop out.

    Attributes:
        plans: how many were made, because contacts changed or because users or relays dropped out; those of a run that
            was resumed may be made twice.
        seconds: that this took; all nodes plan at the same time.
        handover_bits: of aggregators' state, handed to relays that had missed rounds.
    """

    plans: int = 0
    seconds: float = 0.0
    handover_bits: int = 0

    def add(self, plans: int, seconds: float, handover_bits: int) -> None:
        self.plans += plans
        self.seconds += seconds if plans else 0.0
        self.handover_bits += handover_bits


class Planners:
    """A planner for each topology.

    Args:
        contacts: who hears whom, in all rounds or round by round.
        network, scheme, settings: see `Planner`.
        aggregators: who computes the models. Where users move, they are chosen once, for the first contacts.
    """

    def __init__(
        self,
        contacts: Topology | Moving,
        network: Network,
        scheme: str,
        aggregators: Aggregators = "all",
        **settings: Any,
    ) -> None:
        self.contacts, self.network, self.scheme, self.aggregators = contacts, network, scheme, aggregators
        self._settings = settings
        self.of = lru_cache(KEPT)(self._planner)

    @cached_property
    def _home(self) -> tuple[int, ...] | None:
        """Of a network whose users move: the relays at home in aggregating, the same in all rounds.

        A relay that joins has to be handed the state, about K IVs up and as many down, which no stretch of few rounds
        makes up for.
        """
        if isinstance(self.contacts, Topology):
            return None
        if scheme_of(self.scheme).code is None:
            return ()
        first = self.contacts.at(0)
        links, medium = self.network.uplinks(first), self.network.medium
        # Those that are named, or all, may have users later, even if they have none in the first contacts.
        t = first if self.aggregators == "auto" else Topology(np.ones_like(first.G))
        return resolve(t, self.aggregators, self.scheme, links, medium)

    def _planner(self, t: Topology) -> Planner:
        return Planner(t, self.network, self.scheme, aggregators=self.aggregators, home=self._home, **self._settings)
