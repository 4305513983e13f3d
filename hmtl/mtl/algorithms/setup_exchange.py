"""The exchange before the first round: facts about each user go up, and numbers that follow from all facts come down.

K users, f facts about each.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hmtl.data import Task
from hmtl.data.preprocessing import pooled
from hmtl.errors import ProcessLost
from hmtl.io.arrays import NOBODY, Ids
from hmtl.io.row_layout import RowLayout
from hmtl.mtl.algorithms.base import Aggregator, Users


class SetupUsers(Users):
    """User side of a set-up.

    Args:
        facts: facts about each user [K, f].
        told: e, how many numbers a user receives.
        take: called with users and the answers that they received [n, e].
    """

    def __init__(
        self, facts: Tensor, told: int, take: Callable[[Ids, Tensor], None] = lambda users, answers: None
    ) -> None:
        super().__init__()
        self.row_layout = RowLayout.zeros(0, further=facts.shape[1], answers=(told,))
        self.facts = facts.double()
        self.take = take

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        users = np.setdiff1d(np.arange(len(self.facts)), idle)
        return users, self.facts[users]

    def receive(self, users: Ids, models: Tensor) -> None:
        self.take(users, models)


class SetupAggregator(Aggregator):
    """Aggregator side of a set-up.

    Args:
        answer: returns the answers [K, e] to the facts [K, f] of all users.
        K: number of users.

    Attributes:
        learned: the facts that were answered last, [K, f].
    """

    def __init__(self, answer: Callable[[Tensor], Tensor], K: int) -> None:
        super().__init__()
        self.answer = answer
        self.K = K
        self.learned = torch.empty(0, 0)

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        if len(users) < self.K:
            raise ProcessLost(
                f"A set-up needs the facts of all K={self.K} users, but only {len(users)} were heard.",
                "Start all processes again, with a larger engine.seconds if some were late.",
            )
        self.learned = ivs
        return self.answer(ivs)

    def take(self, facts: Tensor) -> None:
        """Take what another node's aggregator learned."""
        self.update(np.arange(len(facts)), facts)


def _same(row: Tensor, facts: Tensor) -> Tensor:
    """Return the row [1, e] for each of the users who sent facts [K, f]."""
    return row.expand(len(facts), -1)


def preprocessing_setups(tasks: Sequence[Task]) -> list[tuple[Users, Aggregator]]:
    """Return the two sides of each exchange for preprocessing over the rows of all users.

    Users send what the features of raw tables are fitted to, see `hmtl.data.table_features.fit`, and the moments of
    their rows, see `hmtl.data.Preprocessing`; they receive what follows for all rows. The tasks are already fitted:
    playing the exchanges leaves them unchanged, and counts the bits.
    """
    here = [task for task in tasks if task.is_local]
    seen = here or tasks[:1]
    exchanges: list[tuple[Tensor, int, Callable[[Tensor], Tensor]]] = []
    if tables := [task.table for task in seen if task.table]:
        told = map(torch.stack, zip(*(table.told for table in tables), strict=True))
        answers = zip(told, tables[0].answers, strict=True)
        exchanges = [(facts, row.shape[1], partial(_same, row)) for facts, row in answers]
    raws = [task.raw for task in seen]
    moments = tasks[0].preprocessing.shared_moments([raw.x_train for raw in raws], [raw.y_train for raw in raws])
    widths = [part.shape[1] for part in moments]

    def answer(facts: Tensor) -> Tensor:
        return torch.cat([pooled(part) for part in torch.split(facts, widths, dim=1)], dim=1)

    if moments:
        exchanges.append((torch.cat(moments, dim=1), sum(widths), answer))
    return [
        (SetupUsers(facts if here else torch.empty(0, facts.shape[1]), told), SetupAggregator(pool, len(tasks)))
        for facts, told, pool in exchanges
    ]
