"""The schemes by name: what each of them sends, and how. Nothing else compares their names."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hmtl.coding.allocation import Split, allocate, cheapest, even
from hmtl.coding.formulas import Loads, allocated_loads, optimal_loads, uncoded_loads
from hmtl.coding.optimal import Uplinks
from hmtl.coding.plan import Block, Plan, allocated_code, optimal_code
from hmtl.errors import CodingError
from hmtl.topology import Topology


@dataclass(frozen=True)
class Scheme:
    """A way to bring all IVs to where the global update runs.

    Attributes:
        name: as users write it.
        loads: of a topology and the uplinks of its active relays.
        code: the blocks of a plan, from the arguments of `make_plan`: topology, seed, max_pieces, generation, uplinks.
            None: IVs go to the server as they are.
    """

    name: str
    loads: Callable[[Topology, Uplinks | None], Loads]
    code: Callable[[Topology, int, int, int, Uplinks | None], Iterable[Block]] | None


def _by_allocation(name: str, split: Split) -> Scheme:
    """The scheme of Hu et al. 2022, Section IV, with a choice of α; uplinks and settings mean nothing to it."""
    return Scheme(
        name,
        lambda t, uplinks: allocated_loads(t, allocate(t, split)),
        lambda t, seed, *_: (allocated_code(part, seed) for part in allocate(t, split)),
    )


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme("uncoded", uncoded_loads, None),
            Scheme("optimal", optimal_loads, optimal_code),
            _by_allocation("paper", cheapest),
            _by_allocation("equal", even),
        )
    }
)
CODED_SCHEMES = tuple(scheme.name for scheme in SCHEMES.values() if scheme.code)


def scheme_of(name: str, among: Collection[str] = tuple(SCHEMES)) -> Scheme:
    """The scheme of that name.

    Raises:
        CodingError: it is not `among` those to choose from.
    """
    if name not in among:
        raise CodingError(f"scheme={name} is unknown: choose one of {', '.join(among)}.")
    return SCHEMES[name]


def loads(t: Topology, scheme: str = "optimal", uplinks: Uplinks | None = None) -> Loads:
    """The loads of a scheme.

    Args:
        t: the topology.
        scheme: `uncoded`, where each IV and each model passes the server once; `optimal`, which no scheme falls below;
            `paper` or `equal`, see `make_plan`.
        uplinks: of the active relays, for which `optimal` then takes the least time instead of the least load, with
            c < H pieces, and `uncoded` the relays that forward soonest; None: all alike.

    Raises:
        CodingError: no such scheme.

    Ref: Hu et al. 2022, Theorem 1, eqs. (33a) and (33b).
    """
    return scheme_of(scheme).loads(t, uplinks)


def make_plan(
    t: Topology,
    scheme: str = "optimal",
    seed: int = 0,
    *,
    max_pieces: int = 8,
    generation: int = 100,
    uplinks: Uplinks | None = None,
) -> Plan:
    """The plan of a scheme, every relay's decoding proven; equal arguments give equal plans.

    Args:
        t: the topology.
        scheme: `optimal`, the fewest messages, to which alone `max_pieces`, `generation` and `uplinks` matter; or the
            paper's, with the cheapest allocation, `paper`, or an even one, `equal`.
        seed: the run's seed.
        max_pieces: the most pieces that an IV is cut into. 1 is the cheapest to compute, and costs less than one IV;
            the optimum needs H − 1 at most.
        generation: about how many users are coded together, where there are at least one and a half times as many.
        uplinks: of the active relays, where they differ or work side by side.

    Raises:
        CodingError: no such coded scheme, more pieces than can be inverted, or no draw lets every relay decode.

    Ref: Hu et al. 2022, Section IV-B.
    """
    for name, value in (("max_pieces", max_pieces), ("generation", generation)):
        if value < 1:
            raise CodingError(f"{name}={value} leaves nothing to code with. Set it to 1 or more.")
    code = scheme_of(scheme, CODED_SCHEMES).code
    assert code is not None
    return Plan(t, scheme, seed, tuple(code(t, seed, max_pieces, generation, uplinks)))
