"""A communicator for models that hang on few others': relays learn the IVs alone that their own users' models need."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.coding import DemandPlan, Loads, demand_bounds
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS, LinkLedger
from hmtl.communication.accounting.network import Network
from hmtl.communication.communicators.base import Communicator
from hmtl.communication.encoding import WIRES
from hmtl.communication.links import InProcess, Links
from hmtl.communication.nodes.aggregator import AggregatorSide
from hmtl.communication.nodes.host import UserHost, UserSide
from hmtl.communication.nodes.partial import PartialRelay, PartialServer
from hmtl.communication.planning.partial import PartialPlanner
from hmtl.communication.planning.planner import Planner
from hmtl.communication.round import Nodes, Outcome
from hmtl.errors import ConfigError
from hmtl.topology import Moving, Topology


class CodedPartial(Communicator):
    """Each user's model is computed by one relay that hears the user, of the IVs that the model needs.

    So a relay demands these IVs of its users, and the users whom the same relays demand are coded together. No model
    passes the server. What is exchanged before the first round all relays learn.

    Args:
        topology, network, wire, links: see `Communicator`.
        seed, max_pieces, generation: see `hmtl.coding.make_plan`.
    """

    planner: Any  # a PartialPlanner, once the learner is known

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        seed: int = 0,
        wire: str | None = None,
        *,
        max_pieces: int = 8,
        generation: int = 200,
        links: Callable[[LinkLedger], Links] = InProcess,
    ) -> None:
        if isinstance(topology, Moving):
            raise ConfigError(
                "communicator=partial, but users move, and each user's model stays with one relay. Choose "
                "communicator=coded, or a topology that stays."
            )
        self._plans: dict[str, Any] = {"seed": seed, "max_pieces": max_pieces, "generation": generation}
        super().__init__(topology, network, "optimal", wire, links, **self._plans)
        self._of_setup = Planner(topology, network, "optimal", **self._plans)
        self._aggregator: AggregatorSide | None = None
        self._needs: NDArray[np.bool_] | None = None

    def meet(self, aggregator: AggregatorSide) -> None:
        needs = aggregator.needs()
        if needs is None:
            raise ConfigError(
                "communicator=partial, but this learner computes models of most or all IVs, so that every "
                "relay needs them. Choose communicator=coded, or algorithm=fedu with a graph of few neighbours."
            )
        self._aggregator = aggregator
        if self._needs is None or not np.array_equal(needs, self._needs):
            self._needs, self.planner = needs, PartialPlanner(self.topology, self.network, needs, **self._plans)
        _ = self.plan  # refuses what cannot be coded, before the first round

    def setup(self, users: UserSide, aggregator: AggregatorSide) -> None:
        """See `Communicator.setup`; all relays learn all."""
        of_rounds = self.planner
        self.planner = self._of_setup
        super().setup(users, aggregator)
        self.planner = of_rounds

    def round(
        self, number: int, users: UserSide, aggregator: AggregatorSide, absent_relays: Collection[int] = ()
    ) -> Outcome:
        """See `Communicator.round`; all have to take part."""
        if self._nodes is None or self._aggregator is not aggregator:
            self.meet(aggregator)  # again, as a set-up can tell more of the needs
        return super().round(number, users, aggregator, absent_relays)

    @property
    def plan(self) -> DemandPlan:
        """The plan of the rounds, once the learner is known."""
        plan: DemandPlan = self.planner.plan
        return plan

    @property
    def theory(self) -> Loads:
        return self.plan.loads

    def describe(self) -> dict[str, Any]:
        """Bounds are those of `demand_bounds`, for the relays that serve the users."""
        bound = demand_bounds(self.topology, self.planner.demands)
        least = {RELAYS_TO_SERVER: bound.uplink, SERVER_TO_RELAYS: bound.down(self.network.medium)}
        return super().describe() | {"communicator": "partial", "bounds": least}

    def _cast(self, users: UserSide, aggregator: AggregatorSide) -> Nodes:
        if aggregator is not self._aggregator:  # a set-up's
            return super()._cast(users, aggregator)
        K, wire = self.topology.K, WIRES[self.wire] if self.wire else None
        return self._here(
            lambda n, mine: UserHost(K, users, wire, n, mine),
            lambda i, hosts: PartialRelay(i, self.planner, aggregator, users.numbers, wire, hosts, self._links.sure),
            lambda: PartialServer(self.planner, None),
            None,
        )
