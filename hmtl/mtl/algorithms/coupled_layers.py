"""Personal layers that a regularizer couples: a round carries two sections of numbers, one after the other.

K users; a shared and p personal numbers of a network. The shared numbers are averaged as in FedPer, and the personal
ones are combined as in FedU. Each section has a user side and an aggregator of its own, which `sections` lists. Users
train once in a round, in the local update of the first section.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hmtl.mtl.algorithms.base import NOBODY, Aggregator, Ids, Users, of_rows, with_rows
from hmtl.mtl.algorithms.fedu import CouplingAggregator
from hmtl.mtl.algorithms.networks import Sending
from hmtl.mtl.algorithms.personal_layers import LayerUsers
from hmtl.mtl.problem import Rows
from hmtl.mtl.sums import Terms

BLOCK = 2**22  # numbers in a block of models


class SharedSection(LayerUsers):
    """User side of the shared numbers; it trains the personal ones as well, for `PersonalSection`.

    `pending` [K, p + 1] are the personal numbers after training, and the number of steps on them.

    Attributes:
        active: the users who trained in this round.
    """

    active = NOBODY

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # passed on as they are
        self.pending = torch.cat([self.V, self.V.new_zeros(len(self.V), 1)], dim=1)

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor | Terms]:
        self.active, rows = super().local_update(round, idle)
        return self.active, rows

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        shared, personal = super()._train(round, users, rows, budgets)
        steps = budgets // len(self.phases)  # the first phase trains the personal numbers
        return shared, torch.cat([personal, steps[:, None].to(personal)], dim=1)

    def commit(self, users: Ids) -> None:
        self.sending.commit(users)

    def roll_back(self, users: Ids) -> None:
        pass  # personal numbers change when they are received


class PersonalSection(Users):
    """User side of the personal numbers, and of the learner as a whole.

    An IV is what `SharedSection` has trained, and a model is what the aggregator makes of it. Each section settles its
    own updates: a user whose shared update counted, but not its personal one, keeps its last personal numbers.
    """

    def __init__(self, shared: SharedSection, sending: Sending) -> None:
        super().__init__()
        self.shared = shared
        self.sending = sending
        self.numbers, self.row_bits, self.averages = sending.numbers, sending.row_bits, sending.averages

    @property
    def sections(self) -> tuple[Users, ...]:
        return self.shared, self

    @property
    def origin(self) -> Tensor:
        return self.shared.split.part(self.shared.model.start, self.shared.split.personal)

    def predictors(self, state: dict[str, Tensor]) -> Tensor:
        return self.shared.predictors({name: state[f"shared.{name}"] for name in ("W", "V")})

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor | Terms]:
        users = np.setdiff1d(self.shared.active, idle)
        trained, last = of_rows(self.shared.pending, users), of_rows(self.shared.V, users)
        return users, self.sending.encode(users, trained, last)

    def commit(self, users: Ids) -> None:
        self.sending.commit(users)

    def receive(self, users: Ids, models: Tensor) -> None:
        if len(users):
            self.shared.V = with_rows(self.shared.V, users, self.sending.decode(users, models))

    def measure(self) -> dict[str, Tensor]:
        return self.shared.measure()

    def blocks(self) -> Iterator[Tensor]:
        width = max(1, BLOCK // self.shared.problem.K)
        return iter(self.shared.V.split(width, dim=1))  # type: ignore[no-untyped-call]  # torch's split

    def local_work(self, round: int, user: int) -> None:
        self.shared.local_work(round, user)


class SectionedAggregator(Aggregator):
    """The aggregators of both sections, which share nothing; the communicator calls each of them."""

    def __init__(self, shared: Aggregator, personal: CouplingAggregator) -> None:
        super().__init__()
        self.shared = shared
        self.personal = personal

    @property
    def sections(self) -> tuple[Aggregator, ...]:
        return self.shared, self.personal

    def penalty(self, V: Tensor) -> Tensor:
        """Return the penalty of personal numbers V [K, p], a scalar."""
        return self.personal.structure.penalty(V)

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        raise NotImplementedError("Each section has an aggregator of its own.")
