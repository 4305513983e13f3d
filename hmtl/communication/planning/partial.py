"""Plans of rounds in which each relay computes only its own users' models."""

from dataclasses import asdict
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hmtl.coding import DemandPlan, demand_plan, demands_of, serve
from hmtl.communication.accounting.network import Network
from hmtl.communication.attendance import Attendance, Routes
from hmtl.communication.planning.planner import Code, Planner, PlanSettings
from hmtl.topology import Topology


class PartialPlanner(Planner):
    """The plans of rounds in which everybody takes part.

    Args:
        topology, network, settings: see `Planner`.
        needs: which IVs each user's model is computed from [K, K].

    Attributes:
        serving: the relay that computes each user's model [K].
        demands: which IVs each relay needs [H, K].
    """

    def __init__(
        self,
        topology: Topology,
        network: Network,
        needs: NDArray[np.bool_],
        settings: PlanSettings = PlanSettings(),  # noqa: B008, it is frozen
    ) -> None:
        super().__init__(topology, network, "optimal", settings)
        self.serving = serve(topology, needs)
        self.demands = demands_of(needs, self.serving, topology.H)

    @cached_property
    def preferred(self) -> tuple[int, ...]:
        """The relays that serve some user."""
        return tuple(np.unique(self.serving[self.serving >= 0]).tolist())

    @property
    def plan(self) -> DemandPlan:
        """The plan for when every IV arrives on every link."""
        plan = super().plan
        assert isinstance(plan, DemandPlan)
        return plan

    def routes(self, attendance: Attendance) -> Routes:
        """Return that models come from the relay that computes them."""
        return Routes(self.serving, np.zeros(self.topology.K, dtype=bool))

    def _code(self, heard: Topology, aggregators: tuple[int, ...]) -> Code:
        uplinks = self.network.uplinks(heard)
        return Code(demand_plan(heard, self.demands, uplinks=uplinks, **asdict(self.settings)), aggregators)
