"""What all nodes know where each relay computes its own users' models: who serves whom, demands, code."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hmtl.coding import DemandPlan, demand_plan, demands_of, serve
from hmtl.communication.accounting.network import Network
from hmtl.communication.attendance import Attendance, Routes
from hmtl.communication.planning.planner import Code, Planner
from hmtl.topology import Topology


class PartialPlanner(Planner):
    """Plans of the rounds, in which all take part.

    Args:
        topology, network, seed, max_pieces, generation: see `Planner`.
        needs: [K, K], row k: whose IVs user k's model is computed from.
    """

    def __init__(
        self,
        topology: Topology,
        network: Network,
        needs: NDArray[np.bool_],
        seed: int = 0,
        max_pieces: int = 8,
        generation: int = 200,
    ) -> None:
        super().__init__(topology, network, "optimal", seed, max_pieces, generation)
        self.serving = serve(topology, needs)
        self.demands = demands_of(needs, self.serving, topology.H)

    @cached_property
    def home(self) -> tuple[int, ...]:
        """The relays that serve somebody."""
        return tuple(np.unique(self.serving[self.serving >= 0]).tolist())

    def routes(self, attendance: Attendance) -> Routes:
        """Models come from the relay that computes them."""
        return self.serving, np.zeros(self.topology.K, dtype=bool)

    @property
    def plan(self) -> DemandPlan:
        """The plan for when all links hold."""
        plan = super().plan
        assert isinstance(plan, DemandPlan)
        return plan

    def _code(self, heard: Topology, aggregators: tuple[int, ...]) -> Code:
        uplinks = self.network.uplinks(heard)
        return Code(demand_plan(heard, self.demands, uplinks=uplinks, **self._settings), aggregators)
