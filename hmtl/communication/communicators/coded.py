"""Transports whose aggregators learn all IVs: relays, by coding, or the server, by forwarding. K users, H relays."""

from collections.abc import Callable

from hmtl.coding import CODED_SCHEMES, Aggregators, Loads, Plan, loads, scheme_of
from hmtl.communication.accounting.ledger import LinkLedger
from hmtl.communication.accounting.network import Network
from hmtl.communication.communicators.base import Communicator
from hmtl.communication.links import InProcess, Links
from hmtl.topology import Moving, Topology


class CodedHierarchical(Communicator):
    """The hierarchical scheme of Hu et al. 2022, Section IV, with any of the plans of `hmtl.coding`: relays aggregate.

    Each round the aggregators confirm what they decoded and computed by digests, which the server compares.

    Args:
        topology, network, wire, links: see `Communicator`.
        scheme: which plan, see `hmtl.coding.make_plan`, also for `max_pieces` and `generation`.
        aggregators: who computes the models: `auto`, those relays, or the server, that take the least time on this
            network; `all` relays that hear somebody; the `server`; or relays by number. The other relays are helpers,
            who send combinations and learn nothing.
        seed: coefficients follow from it and the topology, so none travel.
    """

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        scheme: str = "optimal",
        seed: int = 0,
        wire: str | None = None,
        *,
        aggregators: Aggregators = "auto",
        max_pieces: int = 8,
        generation: int = 200,
        links: Callable[[LinkLedger], Links] = InProcess,
    ) -> None:
        scheme_of(scheme, CODED_SCHEMES)
        plans = {"seed": seed, "max_pieces": max_pieces, "generation": generation}
        super().__init__(topology, network, scheme, wire, links, aggregators=aggregators, **plans)
        _ = self.plan  # refuses what cannot be coded, before the first round

    @property
    def plan(self) -> Plan:
        """The plan for when all are there."""
        return self.planner.plan

    @property
    def theory(self) -> Loads:
        return self.plan.loads


class Uncoded(Communicator):
    """Relays forward, the server aggregates. Ref: Hu et al. 2022, Example 1; loads (K, K, K, K).

    Args:
        topology, network, wire, links: see `Communicator`; who forwards is chosen for the least time.
    """

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        wire: str | None = None,
        *,
        links: Callable[[LinkLedger], Links] = InProcess,
    ) -> None:
        super().__init__(topology, network, "uncoded", wire, links)

    @property
    def theory(self) -> Loads:
        return loads(self.topology, self.scheme.name, self.network.uplinks(self.topology))
