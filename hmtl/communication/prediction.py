"""Dry rounds, which are played with short rows of zeros: what they cost over access links; who aggregates soonest.

K users, H relays, m numbers per IV.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import combinations
from math import ceil, inf
from typing import cast

import numpy as np
import torch
from torch import Tensor

from hmtl.coding import AggregatorSet
from hmtl.communication.accounting.network import Network
from hmtl.communication.communicators.base import Communicator, MakeLinks
from hmtl.communication.flows.flow import Recipe
from hmtl.communication.flows.pieces import WORKING_SET
from hmtl.communication.links import InProcess
from hmtl.communication.meaning import Words
from hmtl.communication.messages import Users
from hmtl.communication.sides import AggregatorSide, RowMeaning, UserSide
from hmtl.communication.timed import TimedLinks
from hmtl.errors import CodingError
from hmtl.topology import Topology

log = logging.getLogger("hmtl.coding")  # whose messages are a plan's progress

LONGEST = 3360  # numbers in a row that is played; rows in up to 8 pieces need no padding then
MOST_ENUMERATED = 6  # relays; up to this number, all sets are tried if the network is small
MOST_WORK = 10**5  # sets that are tried times users and relays, at least two


class _Users:
    """Users who send zeros, see `hmtl.communication.sides.UserSide`."""

    deltas, further, answers = False, 0, (0,)

    def __init__(self, K: int, numbers: int, dtype: torch.dtype, common: torch.dtype | None) -> None:
        self.numbers, self.origin, self.common = numbers, torch.zeros(numbers, dtype=dtype), common
        self._ivs = torch.zeros(K, numbers, dtype=dtype)

    def means(self) -> RowMeaning | None:
        return Words(self.numbers, common=self.common) if self.origin.dtype == torch.int64 else None

    def local_update(self, round: int, idle: Users = np.empty(0, np.int64)) -> tuple[Users, Tensor]:  # noqa: B008, nobody writes to it
        return np.arange(len(self._ivs)), self._ivs

    def commit(self, users: Users) -> None: ...

    def roll_back(self, users: Users) -> None: ...

    def receive(self, users: Users, models: Tensor) -> None: ...


class _Aggregator:
    """An aggregator that returns what it gets, see `hmtl.communication.sides.AggregatorSide`."""

    def update(self, users: Users, ivs: Tensor) -> Tensor:
        return ivs

    def means(self) -> RowMeaning | None:
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


def dry_round(
    recipe: Recipe, t: Topology, network: Network, numbers: int, links: MakeLinks = InProcess, scale: float = 1.0
) -> Communicator:
    """Play a round of zeros in which everybody takes part; the communicator's ledger and clock have what it cost.

    Args:
        recipe: how rows travel; their numbers have 64 bits.
        t, network: of the round.
        numbers: in a row.
        links: see `Communicator`.
        scale: see `Planner`.
    """
    communicator = Communicator(t, network, replace(recipe, wire=None), links)
    communicator.planner.scale = scale
    users, aggregator = _Users(t.K, numbers, recipe.row_type, recipe.common), _Aggregator()
    communicator.round(0, cast(UserSide, users), cast(AggregatorSide, aggregator))  # a plan calls no other members
    return communicator


def predict(recipe: Recipe, t: Topology, network: Network, V_bits: float) -> float:
    """Return the seconds that the messages of a round take in which everybody takes part, with rows of V bits.

    Args:
        recipe: how rows travel, but for the format of their numbers.
        t, network: of the round; the network has a file of links.
        V_bits: bits of a row, however its numbers travel.
    """
    access = network.access(t)
    assert access is not None
    segments = 1 if recipe.adds else max(1, round(t.K * V_bits / 8 / WORKING_SET))
    numbers = min(ceil(V_bits / 64), LONGEST)
    scale = V_bits / 64 / numbers
    links = partial(TimedLinks, contacts=t, access=access, scale=scale, segments=segments)
    return dry_round(recipe, t, network, numbers, links, scale).seconds()


def by_seconds(recipe: Recipe, t: Topology, network: Network, V_bits: float) -> dict[AggregatorSet, float]:
    """Return the seconds of a round for sets of aggregators, the shortest first: all sets if there are few relays.

    Otherwise, a relay more or less is tried as long as this takes less time and not too many sets were tried.

    Args:
        recipe, t, network, V_bits: see `predict`; the rows are IVs.
    """
    seconds: dict[AggregatorSet, float] = {}
    most = max(2, MOST_WORK // (t.K * t.H))

    def shortest(sets: Iterable[AggregatorSet]) -> AggregatorSet:
        for nodes in [nodes for nodes in sets if nodes not in seconds][: most - len(seconds)]:
            try:
                seconds[nodes] = predict(replace(recipe, aggregators=nodes.setting), t, network, V_bits)
            except CodingError:  # these relays cannot aggregate by this scheme
                seconds[nodes] = inf
            log.debug("choices of aggregators tried: %d of at most %d", len(seconds), most)
        return min(seconds, key=lambda nodes: (seconds[nodes], len(nodes.relays)))

    alone, everyone = AggregatorSet((), server=True), AggregatorSet(t.active, server=False)
    if len(t.active) <= MOST_ENUMERATED and (2 << len(t.active)) <= most:
        sets = [A for n in range(1, len(t.active) + 1) for A in combinations(t.active, n)]
        best = shortest([alone, *(AggregatorSet(A, server) for A in sets for server in (False, True))])
    else:
        singles = [AggregatorSet((i,), server) for i in t.active for server in (False, True)]
        best, before = shortest([alone, everyone, *singles]), None
        while best != before:
            before, A = best, set(best.relays)
            near = [tuple(sorted(A ^ {i})) for i in t.active]
            best = shortest([AggregatorSet(B, server) for B in near if B for server in (False, True)])
    return dict(sorted(seconds.items(), key=lambda item: (item[0] != best, item[1])))
