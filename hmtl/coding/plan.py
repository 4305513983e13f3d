"""The plan of a network: the codes of all rounds, from the topology and one seed."""

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.block import Block
from hmtl.coding.formulas import Loads, carriers, uncoded_loads
from hmtl.coding.omniscience import Uplinks
from hmtl.topology import Topology


@dataclass(frozen=True, eq=False)
class Plan:
    """Codes with which every aggregator learns the IVs of all present users.

    Users that all aggregators hear need no code.

    Attributes:
        topology: the network.
        scheme: the name of the scheme that determines the uplink.
        seed: the source of the coefficients.
        aggregators: the relays that learn all IVs; empty if the server aggregates, which needs no code.
        uplinks: of the active relays, see `make_plan`.
        blocks: the codes, for disjoint sets of users.
    """

    topology: Topology
    scheme: str
    seed: int
    aggregators: tuple[int, ...]
    uplinks: Uplinks | None
    blocks: tuple[Block, ...] = field(repr=False)

    @cached_property
    def sent(self) -> tuple[Fraction, ...]:
        """IVs' worth of combinations that each active relay sends, without padding."""
        sent = [Fraction()] * len(self.topology.active)
        for block in self.blocks:
            for i, rows in enumerate(block.uplink):
                sent[i] += Fraction(len(rows), block.pieces)
        return tuple(sent)

    @cached_property
    def loads(self) -> Loads:
        """The loads in IVs without padding; those of `loads`, if there are enough pieces."""
        if not self.aggregators:
            return uncoded_loads(self.topology, self.uplinks)
        return Loads.coded(self.topology, self.aggregators, self.sent, *self.received, self.uplinks)

    @cached_property
    def received(self) -> tuple[Fraction, Fraction]:
        """IVs' worth of the server's combinations, as a broadcast and as copies."""
        broadcast, unicast = Fraction(), Fraction()
        for block in self.blocks:
            broadcast += Fraction(len(block.downlink), block.pieces)
            unicast += Fraction(sum(map(block.need, block.aggregators)), block.pieces)
        return broadcast, unicast

    def carriers(self, models: int) -> NDArray[np.int64]:
        """Return the aggregator that sends each model of a user that no aggregator hears."""
        return carriers(self.topology, self.aggregators, self.sent, models, self.uplinks)
