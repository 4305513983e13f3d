"""Figures that are sums over users, for `metrics=sums`: no measure of a single user is known to anybody else.

Terms of figures travel in a round of sums of their own, over the same hosts, relays and server as the learner's, after
each round that is evaluated, and are counted apart. `docs/guide/privacy.md` lists what hosts send.

L numbers in a user's terms of figures.
"""

import logging
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hmtl.communication import Communicator
from hmtl.communication.terms import Words
from hmtl.io.arrays import NOBODY, Ids
from hmtl.io.row_layout import RowLayout
from hmtl.mtl import Aggregator, Algorithm, Users
from hmtl.topology import Moving, Topology
from hmtl.training.engine import Engine, Shapes

log = logging.getLogger(__name__)


class FigureUsers(Users):
    """User side of figures. All users measure, and keep nothing.

    Args:
        algorithm: what they measure.
        contacts: who hears whom; None: every user sends its terms. Otherwise the user of a host that most relays hear
            sends the sum of the terms of all users of this host, so that relays see no terms of one user.
        numbers: L.
    """

    def __init__(self, algorithm: Algorithm, contacts: Topology | Moving | None, numbers: int) -> None:
        super().__init__()
        self.algorithm, self.contacts, self.row_layout = algorithm, contacts, RowLayout.zeros(numbers)

    def hold_meaning(self) -> Words:  # type: ignore[override]  # rows are terms
        return Words(self.row_layout.numbers)

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        terms, users = self.algorithm.terms_of_figures().values(), self.algorithm.problem.users
        rows = torch.cat([each.flatten(1) for each in terms], dim=1)
        if self.contacts is None:
            return np.arange(len(users)), rows
        nearest = self.contacts.at(round).degrees[users].argmax()
        return np.array([nearest]), rows.sum(0, keepdim=True)

    def receive(self, users: Ids, models: Tensor) -> None:
        pass


class FigureAggregator(Aggregator):
    """Aggregator side of figures, which keeps the sum and tells users nothing.

    Args:
        numbers: L.

    Attributes:
        users: whose terms are in the sum; nobody if it is unknown.
        total: the sum of terms, int64 [L].
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.users, self.total = NOBODY, torch.empty(0, dtype=torch.int64)

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        self.users, self.total = users, ivs[0].clone()
        return torch.zeros_like(ivs)

    @property
    def learned(self) -> dict[str, Tensor]:
        """The users and the sum."""
        return {"users": torch.from_numpy(self.users), "total": self.total}

    def take(self, learned: dict[str, Tensor]) -> None:
        """Take what another node's aggregator learned."""
        self.users, self.total = learned["users"].numpy(), learned["total"]


def figure_sides(
    algorithm: Algorithm, communicator: Communicator, numbers: int
) -> tuple[Communicator, FigureUsers, FigureAggregator]:
    """Return what plays rounds of figures with L `numbers`, and both sides of them."""
    secure = communicator.recipe.secure
    recipe = replace(communicator.recipe, wire=None, secure=secure and replace(secure, sampled=None))
    player = Communicator(communicator.contacts, communicator.network, recipe, communicator.make_links)
    player.name = "figures"
    contacts = None if secure else communicator.contacts
    return player, FigureUsers(algorithm, contacts, numbers), FigureAggregator(numbers)


class SumsOfFigures:
    """The figures of a learner as sums.

    Args:
        algorithm: the learner.
        communicator: carries its sums.
        engine: knows which figures there are.
    """

    def __init__(self, algorithm: Algorithm, communicator: Communicator, engine: Engine) -> None:
        self._algorithm, self._communicator, self._engine = algorithm, communicator, engine
        self._shapes: Shapes = {}
        self._sides: tuple[Communicator, FigureUsers, FigureAggregator] | None = None

    def measure(self, round: int) -> dict[str, float]:
        """Play a round of figures, and return those of the users whose terms reached the server."""
        self._shapes = self._shapes or self._engine.figure_shapes(self._algorithm)
        lengths = [shape.numel() for shape in self._shapes.values()]
        self._sides = self._sides or figure_sides(self._algorithm, self._communicator, sum(lengths))
        player, users, aggregator = self._sides
        aggregator.users = NOBODY
        player.round(round, users, aggregator)
        if not len(aggregator.users):
            log.warning("figures of this round are unknown: no sum of them arrived, or it cannot be unmasked")
            return {}
        parts = zip(self._shapes.items(), torch.split(aggregator.total, lengths), strict=True)
        return self._algorithm.figures_of_sums({name: part.view(shape) for (name, shape), part in parts})
