"""The price of a round in which everybody takes part; `sums_or_ivs` takes the lowest.

A *dry round* is played in this process, with short rows of zeros. Its ledger says how many rows and how many bits of
overhead each link carries. The price counts these rows at the length of their format, and adds the overhead. Plans of
large networks take minutes; their rows come from the formulas in `hmtl.coding`, without overhead.

K users, H relays, m numbers in an IV, or words in a row of sums.
"""

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import loads, sum_loads
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS, TIERS, USERS_TO_RELAYS
from hmtl.communication.accounting.network import Network
from hmtl.communication.communicators.base import Communicator
from hmtl.communication.flows.ivs import IVs
from hmtl.communication.flows.recipe import Recipe
from hmtl.communication.messages import KEYS, SHARED, SHARES, UNMASK
from hmtl.communication.sides import AggregatorSide, RowMeaning, UserSide
from hmtl.communication.terms import Words
from hmtl.io.arrays import NOBODY, Ids
from hmtl.io.row_layout import RowLayout
from hmtl.topology import Topology

log = logging.getLogger(__name__)

BITS_PER_GB = 8e9
MAX_DRY_NUMBERS = 420  # numbers of a dry IV: up to 8 pieces of its bytes need no padding
MAX_DRY_WORDS = 10_080  # words of a dry row of sums: up to 8 pieces of 1 to 4 stretches need no padding
OF_SECURE_SUMS = (KEYS, SHARED, SHARES, UNMASK)  # the kinds of messages that secure sums add, all of them overhead
MAX_PLAYED_SIZE = 5000  # users times relays of a network that is priced by a dry round


@dataclass(frozen=True, eq=False)
class Price:
    """What a round costs in which everybody takes part.

    Attributes:
        bits: payload and overhead on each link of each tier, in the order of the ledger; of a large network, payload
            alone, by relay from relays to server, and in total otherwise.
        seconds: the communication time of the round.
        between: the time that the bits between relays and server take; with a file of links, that of the round.
        added: bits that secure sums add, by kind of message and tier.
        links: with a file of links, the bits that each node sends and receives on its link [1 + H + N, 2].
        cost: what these bits cost at the file's prices; None: it has none.
    """

    bits: dict[str, NDArray[np.float64]]
    seconds: float
    between: float
    added: dict[str, dict[str, int]]
    links: NDArray[np.float64] | None = None
    cost: float | None = None


def price(
    recipe: Recipe,
    t: Topology,
    network: Network,
    m: int,
    dtype: torch.dtype = torch.float64,
    common: torch.dtype | None = None,
    absent: tuple[int, ...] = (),
) -> Price:
    """Return the price of a round by a recipe.

    Args:
        recipe: how rows travel.
        t, network: of the round.
        m: numbers in an IV, or words in a row of sums.
        dtype: type of the numbers in IVs.
        common: type of the model, if terms travel and all users receive one; None: they receive sums.
        absent: relays that have failed.

    Raises:
        CodingError: the recipe has no plan for this network.
        ConfigError: it does not fit this network.
    """
    meaning = Words(m, common=common) if recipe.adds else None
    row = recipe.transport(RowLayout.zeros(m, dtype), t.K, meaning).tier_bits
    if t.K * t.H > MAX_PLAYED_SIZE and not (recipe.secure or network.links):
        bits = {tier: row[tier] * rows for tier, rows in _rows_by_formula(recipe, t, network, absent).items()}
        return _price(bits, network.seconds(bits), network, {})
    numbers = min(m, MAX_DRY_WORDS if recipe.adds else MAX_DRY_NUMBERS)
    dry = dry_round(replace(recipe, wire=None), t, network, numbers, common, absent)
    bits, dry_row = {}, dry.transport.tier_bits
    for tier in TIERS:
        payload, overhead = dry.ledger.per_link(tier, -1).T
        bits[tier] = payload / dry_row[tier] * row[tier] + overhead
    sizes = row[USERS_TO_RELAYS] // 8, 0
    seconds = dry.time_of(bits, sizes)
    kinds = OF_SECURE_SUMS if recipe.secure else ()
    added = {kind: {tier: dry.ledger.bits(tier, kind=kind).total for tier in TIERS} for kind in kinds}
    made = _price(bits, seconds, network, added)
    if (access := dry.planner.access) is None:
        return made
    links = access.crossing(bits, dry.paths(sizes)).sum(axis=0)
    cost = None if access.prices is None else float((links * access.prices).sum()) / BITS_PER_GB
    return replace(made, links=links, cost=cost)


def _price(
    bits: dict[str, NDArray[np.float64]], seconds: float, network: Network, added: dict[str, dict[str, int]]
) -> Price:
    between = {tier: bits[tier] * (tier in (RELAYS_TO_SERVER, SERVER_TO_RELAYS)) for tier in TIERS}
    return Price(bits, seconds, seconds if network.links else network.seconds(between), added)


def _rows_by_formula(
    recipe: Recipe, t: Topology, network: Network, absent: tuple[int, ...]
) -> dict[str, NDArray[np.float64]]:
    """Return how many rows each relay sends the server [H], and how many the links of other tiers carry in total."""
    nodes, senders = recipe.nodes(t, network), len(t.present)  # users do not know that their relay has failed
    if absent:
        t = t.restricted(relays=set(range(t.H)) - {*absent})
        nodes = recipe.planner(t, network, nodes).usual
    uplinks, users = network.uplinks(t), len(t.present)
    if isinstance(recipe, IVs):
        load = loads(t, recipe.scheme, uplinks, aggregators=nodes.setting)
    else:
        load = sum_loads(t, uplinks)
    last = load.last_hop if load.last_hop and network.last_hop == "broadcast" else users
    by_tier = senders, load.by_relay, load.down(network.medium), last
    return {tier: np.asarray(rows, np.float64) for tier, rows in zip(TIERS, by_tier, strict=True)}


def added_by_secure_sums(communicator: Communicator) -> dict[str, int]:
    """Return the bits of each tier that secure sums add to a round in which everybody takes part.

    Unless all users are neighbors, how many sealed shares pass the server, since no relay hears both users, is drawn
    in every round.
    """
    added = price(communicator.recipe, communicator.contacts.at(0), communicator.network, 1).added
    return {tier: sum(bits[tier] for bits in added.values()) for tier in TIERS}


@lru_cache(32)  # a comparison plays about 17
def dry_round(
    recipe: Recipe,
    t: Topology,
    network: Network,
    numbers: int,
    common: torch.dtype | None = None,
    absent: tuple[int, ...] = (),
) -> Communicator:
    """Play a round of zeros without the absent relays, and return the communicator, whose ledger has the bits.

    Args:
        recipe: how rows travel; their numbers have 64 bits.
        t, network: of the round.
        numbers: in a row.
        common, absent: see `price`.
    """
    if recipe.secure:
        log.info("playing a round of secure sums of %d users for its price", t.K)
    communicator = Communicator(t, network, recipe)
    words = Words(numbers, common=common) if recipe.adds else None
    users, aggregator = _DryUsers(t.K, numbers, words), _DryAggregator(1 if words else t.K)
    communicator.round(0, cast(UserSide, users), cast(AggregatorSide, aggregator), absent)  # no other members
    return communicator


class _DryUsers:
    """Users who send zeros, see `hmtl.communication.sides.UserSide`."""

    def __init__(self, K: int, numbers: int, words: Words | None) -> None:
        self.row_layout, self.words = RowLayout.zeros(numbers, torch.int64 if words else torch.float64), words
        self._ivs = self.row_layout.origin.expand(K, -1)

    def hold_meaning(self) -> RowMeaning | None:
        return self.words

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        return np.arange(len(self._ivs)), self._ivs

    def commit(self, users: Ids) -> None: ...

    def roll_back(self, users: Ids) -> None: ...

    def receive(self, users: Ids, models: Tensor) -> None: ...


class _DryAggregator:
    """An aggregator that returns these many rows of zeros, see `hmtl.communication.sides.AggregatorSide`."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        return ivs.new_zeros(1, ivs.shape[1]).expand(self._rows, -1)

    def hold_meaning(self) -> RowMeaning | None:
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...
