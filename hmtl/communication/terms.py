"""Adapters between rows and sums: terms are made of rows at the users, or at the aggregator on their behalf.

K users; L words in a row of terms.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.sides import AggregatorSide, HandedRows, MeaningForAll, RowMeaning, UserSide
from hmtl.io.arrays import NOBODY, Ids


@dataclass(frozen=True)
class Words:
    """The meaning of rows that are terms already: everybody gets their sum.

    Attributes:
        words: L.
        further, answers: words beside terms, and beside sums.
        common: the type in which everybody gets the sum; None: as it is.
    """

    words: int
    further: int = 0
    answers: int = 0
    common: torch.dtype | None = None

    def terms(self, round: int, users: Ids, rows: HandedRows) -> HandedRows:
        return rows

    def commit(self, users: Ids) -> None:
        """Keep nothing."""

    def models(self, users: Ids, row: Tensor) -> Tensor:
        return row.to(self.common or row.dtype).expand(len(users), -1)


class TermsAtUsers:
    """A user side whose rows are terms, and whose models follow from sums.

    Args:
        inner: the user side.
        meaning: makes terms of its rows.
        sums: whether users receive sums; otherwise a model that is the same for all of them.
    """

    def __init__(self, inner: UserSide, meaning: RowMeaning, sums: bool) -> None:
        self.inner, self.meaning, self.sums = inner, meaning, sums

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, HandedRows]:
        users, rows = self.inner.local_update(round, idle)
        return users, self.meaning.terms(round, users, rows)

    def commit(self, users: Ids) -> None:
        self.inner.commit(users)
        self.meaning.commit(users)

    def roll_back(self, users: Ids) -> None:
        self.inner.roll_back(users)

    def receive(self, users: Ids, models: Tensor) -> Tensor | None:
        """Take a row of sums, once for each of these users, or the model that follows from it for all of them."""
        return self.inner.receive(users, self.meaning.models(users, models[:1]) if self.sums else models)


class TermsAtAggregator:
    """An aggregator of sums that gets rows: it makes terms of them as their users would, and models of its sums.

    Args:
        inner: the aggregator.
        meaning: makes terms of rows.
        K: number of users.
    """

    def __init__(self, inner: AggregatorSide, meaning: MeaningForAll, K: int) -> None:
        self.inner, self.meaning, self.K = inner, meaning, K
        self.state_dict, self.load_state_dict = inner.state_dict, inner.load_state_dict

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        return self.meaning.models(np.arange(self.K), self.inner.update(users, self.meaning.total_of(users, ivs)))


class ModelAtAggregator:
    """An aggregator of sums that sends the model that follows from them for all users, which may take fewer bits.

    Args:
        inner: the aggregator.
        meaning: makes the model of its sums.
    """

    def __init__(self, inner: AggregatorSide, meaning: RowMeaning) -> None:
        self.inner, self.meaning = inner, meaning
        self.state_dict, self.load_state_dict = inner.state_dict, inner.load_state_dict

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        return self.meaning.models(np.arange(1), self.inner.update(users, ivs))
