"""The communicator of partial demands: relays learn what their users' models need."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.coding import best_aggregators, demand_bounds, make_plan
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS
from hmtl.communication.accounting.network import Network, between_seconds
from hmtl.communication.communicators.base import Communicator, MakeLinks
from hmtl.communication.links import InProcess
from hmtl.communication.nodes.aggregation import AggregatorSide
from hmtl.communication.nodes.host import UserSide
from hmtl.communication.nodes.partial import PartialRelay, PartialServer
from hmtl.communication.planning.planner import PartialPlanner
from hmtl.communication.round import Nodes, coding
from hmtl.communication.wires import Wire
from hmtl.errors import ConfigError
from hmtl.topology import Moving, Topology


class CodedPartial(Communicator):
    """A communicator for models that depend on few other users' IVs.

    One relay within range of a user computes the user's model from the IVs that the model needs. So each relay demands
    the IVs that its users' models need. IVs that the same relays demand are coded together, and so are IVs with
    different demands if that takes less time; relays then learn IVs that they ignore. No model passes through the
    server. All relays learn what is exchanged before the first round.

    Args:
        topology: who hears whom.
        network, wire, links: see `Communicator`.
        seed, max_pieces, generation: see `hmtl.coding.make_plan`.
    """

    planner: Any  # a PartialPlanner, once the learner is known

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        seed: int = 0,
        wire: Wire = None,
        *,
        max_pieces: int = 8,
        generation: int = 200,
        links: MakeLinks = InProcess,
    ) -> None:
        if isinstance(topology, Moving):
            raise ConfigError(
                "communicator=partial needs users who do not move, since one relay computes each user's model in all "
                "rounds. Choose communicator=coded, or a topology without movement."
            )
        self._settings: dict[str, Any] = {"seed": seed, "max_pieces": max_pieces, "generation": generation}
        super().__init__(topology, network, "optimal", wire, links, partial(make_plan, **self._settings))
        self._setup_planner = self.planner
        self.alike = partial(CodedPartial, wire=wire, **self._settings)
        self._aggregator: AggregatorSide | None = None
        self._needs: NDArray[np.bool_] | None = None

    def check_learner(self, aggregator: AggregatorSide) -> None:
        needs = aggregator.needs()
        if needs is None:
            raise ConfigError(
                "communicator=partial saves nothing here, since this learner computes each model from most or all IVs. "
                "Choose communicator=coded, or algorithm=fedu with a graph of few neighbours."
            )
        self._aggregator = aggregator
        if self._needs is None or not np.array_equal(needs, self._needs):
            self._needs, self.planner = needs, PartialPlanner(self.topology, self.network, needs, **self._settings)
        _ = self.plan  # raises if nothing can be coded

    def setup(self, users: UserSide, aggregator: AggregatorSide) -> None:
        """Exchange what has to be known before the first round; all relays learn all of it."""
        round_planner = self.planner
        self.planner = self._setup_planner
        super().setup(users, aggregator)
        self.planner = round_planner

    def attach(self, users: UserSide, aggregator: AggregatorSide) -> None:
        if self._nodes is None or self._aggregator is not aggregator:
            self.check_learner(aggregator)  # a set-up may have changed what models need
        super().attach(users, aggregator)

    def describe(self) -> dict[str, Any]:
        """Return what `summary.json` reports of communication, with the bounds of `demand_bounds`.

        A note says so if `communicator=coded` would be cheaper.
        """
        bound = demand_bounds(self.topology, self.planner.demands)
        least = {RELAYS_TO_SERVER: bound.uplink, SERVER_TO_RELAYS: bound.down(self.network.medium)}
        described = super().describe() | {"communicator": "partial", "bounds": least}
        if notes := [note for note in (described.get("note"), self._cheaper()) if note]:
            described["note"] = "; ".join(notes)
        return described

    def _cheaper(self) -> str:
        """Return a note that `communicator=coded` would be cheaper, or "" if it would not."""
        t, network = self.topology, self.network
        if network.links is not None:
            return ""
        uplinks, seconds = network.uplinks(t), between_seconds(network, self.theory, 1.0)
        best = best_aggregators(t, uplinks=uplinks, medium=network.medium)
        if best.cost / network.W2 >= seconds:
            return ""
        coded = make_plan(t, uplinks=uplinks, aggregators=best.nodes.setting, **self._settings)
        saved = 1 - between_seconds(network, coded.loads, 1.0) / seconds
        if saved < 1e-6:
            return ""
        return f"communicator=coded would be cheaper: it takes {saved:.1%} less time between relays and server"

    def _make_nodes(self, users: UserSide, aggregator: AggregatorSide) -> Nodes:
        if aggregator is not self._aggregator:  # the aggregator of a set-up
            return super()._make_nodes(users, aggregator)
        relay = partial(PartialRelay, aggregator=aggregator, coder=partial(self._aggregator_coder, users))
        return self._local_nodes(users, relay, PartialServer, coding, None)
