"""The communicators that `communicator` names, each with its recipe; `prices` may choose another."""

from hmtl.coding import CODED_SCHEMES, Aggregators, Scheme, scheme_of
from hmtl.communication.accounting.network import Network
from hmtl.communication.codecs.wires import Wire
from hmtl.communication.communicators.base import Communicator, MakeLinks
from hmtl.communication.flows.ivs import IVs
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.links import InProcess
from hmtl.communication.secure.neighbors import Secure
from hmtl.errors import ConfigError
from hmtl.topology import Moving, Topology


class CodedHierarchical(Communicator):
    """A communicator whose relays exchange coded combinations of IVs, and aggregate.

    Ref: Hu et al. 2022, Section IV, with any plan of `hmtl.coding`.

    In each round, the aggregators send digests of what they decoded and computed, which the server compares.

    Args:
        topology: who hears whom, in all rounds or round by round.
        network, links: see `Communicator`.
        scheme, max_pieces, generation: which plan, see `hmtl.coding.make_plan`.
        wire: the format in which numbers travel, see `hmtl.communication.codecs.wires`; None: their own type.
        aggregators: who computes the models. `auto`: those relays, or the server, that take the least time on this
            network; `all`: every relay that hears somebody; `server`; or a list of relays, which may contain
            `server`. The remaining relays are helpers, which learn nothing: they send combinations, or the IVs
            themselves if the server aggregates.
        seed: seed of the coefficients, which every node derives from it and the topology, so none are sent.
    """

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        scheme: str | Scheme = "optimal",
        seed: int = 0,
        wire: Wire = None,
        *,
        aggregators: Aggregators = "auto",
        max_pieces: int = 8,
        generation: int = 200,
        links: MakeLinks = InProcess,
    ) -> None:
        scheme_of(scheme, CODED_SCHEMES)
        recipe = IVs(scheme, seed, max_pieces, generation, aggregators=aggregators, wire=wire)
        super().__init__(topology, network, recipe, links)
        _ = self.plan  # raises if nothing can be coded


class Uncoded(Communicator):
    """A communicator whose relays forward IVs and models; the server aggregates. Loads are (K, K, K, K).

    Ref: Hu et al. 2022, Example 1.

    Args:
        topology: who hears whom, in all rounds or round by round.
        network, links: see `Communicator`; the relays that forward are chosen for the least time.
        wire: the format in which numbers travel, see `hmtl.communication.codecs.wires`; None: their own type.
    """

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        wire: Wire = None,
        *,
        links: MakeLinks = InProcess,
    ) -> None:
        super().__init__(topology, network, IVs("uncoded", wire=wire), links)


class Sums(Communicator):
    """A communicator for learners that need only sums: relays and server add the users' terms.

    What is exchanged before the first round travels uncoded.

    Args:
        topology: who hears whom, in all rounds or round by round.
        network, links: see `Communicator`; `network.last_hop` says how relays reach their users.
        sums: one of `SUMS`: whether relays send rows of sums whole or in shares.
        aggregators: `auto` or `server`: the server learns the sums.
        wire: a name in FEW_BITS, for terms and sums of low precision, see `codecs.few_bit_words`; None: 64 bits.
        secure: whether relays and server learn nothing but the sums, see `hmtl.communication.secure.masking`.
        colluding, least: settings of secure sums, see `Secure`.
    """

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        wire: str | None = None,
        *,
        sums: str = "auto",
        aggregators: Aggregators = "auto",
        links: MakeLinks = InProcess,
        secure: bool = False,
        colluding: float = 0.1,
        least: int | None = None,
    ) -> None:
        settings = Secure(colluding, least)
        if not secure and settings != Secure():
            raise ConfigError(
                f"colluding={colluding} and least={least} have no effect with secure=false. Set secure=true, or leave "
                "them out."
            )
        recipe = SumsOfRows(sums=sums, aggregators=aggregators, wire=wire, secure=settings if secure else None)
        super().__init__(topology, network, recipe, links)
