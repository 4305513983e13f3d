"""FedPer, FedRep and LG-FedAvg: FedAvg of some layers of a network, while the others are personal.

A regularizer may couple the personal layers.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hmtl.mtl.algorithms.base import Aggregator, Algorithm, MessageKind, Users
from hmtl.mtl.algorithms.coupled_layers import PersonalSection, SectionedAggregator, SharedSection
from hmtl.mtl.algorithms.fedavg import FedAvg
from hmtl.mtl.algorithms.fedu import PenaltyCoupling, relation_of
from hmtl.mtl.algorithms.networks import Sending
from hmtl.mtl.algorithms.personal_layers import LayerUsers, Split, last_layer, matching
from hmtl.mtl.algorithms.setup_exchange import SetupAggregator, SetupUsers, joined
from hmtl.mtl.networks.flat import MakeModel
from hmtl.mtl.problem import Problem
from hmtl.mtl.regularizers import Relation
from hmtl.mtl.solvers.networks import NetworkSolver


class FedPer(FedAvg):
    """FedAvg of the first layers; each user has a last layer of its own. Users train both at once.

    The personal parameters start alike and never travel. Those of an absent user stay as they are, while the shared
    ones are replaced by the new average.

    Args:
        problem, solver, model, options: as in `FedAvg`.
        personal: names of the personal parameters, or of modules with personal parameters only, as in `state_dict` of
            the network; None: the last layer.
        coupled: whether the regularizer of the problem couples the personal parameters, as in FedU; they then travel
            beside the shared ones, see `PersonalSection`.
        personal_messages: what users send of coupled parameters.

    Ref: Arivazhagan et al. 2019.
    """

    last_is_personal: ClassVar[bool] = True
    personal_first: ClassVar[bool] = False
    """Whether users train the personal parameters first, and then the shared ones, instead of all at once."""

    def __init__(
        self,
        problem: Problem,
        solver: NetworkSolver,
        model: MakeModel,
        personal: Sequence[str | int] | str | int | None = None,
        coupled: bool = False,
        personal_messages: MessageKind = "ivs",
        **options: Any,
    ) -> None:
        self.coupled = coupled
        self.personal_messages = personal_messages
        self.personal = [personal] if isinstance(personal, str | int) else personal
        super().__init__(problem, solver, model, **options)

    @property
    def bounded(self) -> bool:
        return not self.coupled

    @property
    def _split(self) -> Split:
        names = list(self.model.shapes)
        if self.personal is not None:
            return Split(self.model, matching(names, [str(each) for each in self.personal]))
        last = last_layer([name for name in names if name not in self.model.buffers])
        return Split(self.model, last if self.last_is_personal else frozenset(names) - last)

    @property
    def _start(self) -> Tensor:
        split = self._split
        return split.part(self.model.start, split.shared)

    def _users(self, sending: Sending) -> LayerUsers:
        split = self._split
        phases = (split.personal, split.shared) if self.personal_first else (frozenset(self.model.shapes),)
        return (SharedSection if self.coupled else LayerUsers)(self._local, sending, split, phases)

    def _sides(self, messages: MessageKind) -> tuple[Users, Aggregator]:
        users, aggregator = super()._sides(messages)
        if not isinstance(users, SharedSection):
            return users, aggregator
        self.model.check_no_buffers("FedPer with coupled=true")
        start = self._split.part(self.model.start, self._split.personal)
        sending, personal = PenaltyCoupling(self.problem, self.solver).sides(start, self.personal_messages)
        return PersonalSection(users, sending), SectionedAggregator(aggregator, personal)

    def setup(self) -> tuple[SetupUsers, SetupAggregator] | None:
        setup = super().setup()
        if setup is None or not isinstance(self.aggregator, SectionedAggregator):
            return setup
        return joined(setup, PenaltyCoupling(self.problem, self.solver).setup(self.aggregator.personal))

    @property
    def relation(self) -> Relation | None:
        return relation_of(self.aggregator.personal) if isinstance(self.aggregator, SectionedAggregator) else None

    def describe(self) -> dict[str, Any]:
        described = super().describe() | {"personal": sorted(self._split.personal)}
        return Algorithm.describe(self) | described if self.coupled else described

    @torch.no_grad()
    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        figures = super()._objective(measured, blocks)
        if isinstance(self.aggregator, SectionedAggregator):
            figures["primal"] += float(sum(self.aggregator.penalty(block) for block in blocks))
        return figures


class FedRep(FedPer):
    """FedPer whose users train the personal layers first, with the shared ones fixed, and then the shared ones.

    Each of the two phases takes the solver's epochs.

    Args, Raises: as in `FedPer`.

    Ref: Collins et al. 2021.
    """

    personal_first = True


class LGFedAvg(FedPer):
    """FedPer the other way round: each user has first layers of its own, and the last layer is averaged.

    Args, Raises: as in `FedPer`; personal=None: all but the last layer.

    Ref: Liang et al. 2020.
    """

    last_is_personal = False

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"algorithm": "lg_fedavg"}
