"""Planners of a network whose users may move, one for each topology."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from hmtl.coding import Aggregators, resolve, scheme_of
from hmtl.communication.accounting.network import Network
from hmtl.communication.planning.planner import Planner, PlanSettings
from hmtl.topology import Moving, Topology

KEPT = 16  # planners, in case a topology recurs


@dataclass
class Planning:
    """The cost of users who move and of users and relays that drop out.

    Attributes:
        plans: number of plans made in the rounds; a resumed run may make some of them twice.
        seconds: time that making them took; all nodes plan at the same time.
        handover_bits: bits of aggregators' state that were handed to relays that had missed rounds.
    """

    plans: int = 0
    seconds: float = 0.0
    handover_bits: int = 0

    def add(self, plans: int, seconds: float, handover_bits: int) -> None:
        """Add the cost of a round."""
        self.plans += plans
        self.seconds += seconds if plans else 0.0
        self.handover_bits += handover_bits


class Planners:
    """A planner for each topology.

    Args:
        contacts: who hears whom, in all rounds or round by round.
        network, scheme, settings: see `Planner`.
        aggregators: who computes the models. If users move, aggregators are chosen once, for the first contacts.
    """

    def __init__(
        self,
        contacts: Topology | Moving,
        network: Network,
        scheme: str,
        settings: PlanSettings = PlanSettings(),  # noqa: B008, it is frozen
        aggregators: Aggregators = "all",
    ) -> None:
        self.contacts, self.network, self.scheme = contacts, network, scheme
        self.settings, self.aggregators = settings, aggregators
        self.of = lru_cache(KEPT)(self._planner)

    @cached_property
    def _preferred(self) -> tuple[int, ...] | None:
        """The preferred aggregators in all rounds, if users move; None if users stay.

        A relay that joins the aggregators has to be handed the state, about K IVs up and as many down, which a few
        rounds with better aggregators do not make up for.
        """
        if isinstance(self.contacts, Topology):
            return None
        if scheme_of(self.scheme).code is None:
            return ()
        first = self.contacts.at(0)
        uplinks, medium = self.network.uplinks(first), self.network.medium
        # Relays that are named, or all of them, may have users later even if they have none in the first contacts.
        t = first if self.aggregators == "auto" else Topology(np.ones_like(first.G))
        return resolve(t, self.aggregators, self.scheme, uplinks, medium)

    def _planner(self, t: Topology) -> Planner:
        return Planner(t, self.network, self.scheme, self.settings, self.aggregators, self._preferred)
