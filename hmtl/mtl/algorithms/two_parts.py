"""Rows with two parts: numbers that are averaged, and numbers that the regularizer couples.

K users, n of them in a process. A row has a averaged numbers, c coupled ones, and how many local steps led to these; a
model has a + c numbers. If both parts need only sums, so does the whole; otherwise the aggregator gets every row.
"""

import numpy as np
import torch
from torch import Tensor

from hmtl.io.arrays import Ids
from hmtl.mtl.algorithms.averages import AverageAggregator, WeightedMean
from hmtl.mtl.algorithms.base import Aggregator
from hmtl.mtl.algorithms.coupled_steps import Coupler, SummedCoupler, SumsOfSteps
from hmtl.mtl.algorithms.meaning import Meaning
from hmtl.mtl.sums import HELD, LazyRows, RowsByUsers


class MeaningOfTwoParts(Meaning):
    """What rows mean if both of their parts need only sums.

    Args:
        mean: what the averaged numbers mean.
        coupled: what the coupled numbers mean.
    """

    def __init__(self, mean: WeightedMean, coupled: SumsOfSteps) -> None:
        super().__init__()
        self.mean, self.coupled = mean, coupled
        self.words, self.answers = mean.words + coupled.words, coupled.answers

    def terms(self, round: int, users: Ids, rows: Tensor | LazyRows) -> LazyRows:
        a, whole = self.mean.words, rows[:]
        parts = self.mean.terms(round, users, whole[:, :a]), self.coupled.terms(round, users, whole[:, a:])

        def joined(some: slice) -> Tensor:
            return torch.cat([part[some].cpu() for part in parts], dim=1)

        at_once = max(1, HELD // max(1, self.words))
        return RowsByUsers((len(users), self.words), torch.int64, torch.device("cpu"), joined, at_once)

    def total_of(self, users: Ids, rows: Tensor) -> Tensor:
        a = self.mean.words
        totals = self.mean.total_of(users, rows[:, :a]), self.coupled.total_of(users, rows[:, a:])
        return torch.cat([total.cpu() for total in totals], dim=1)

    def commit(self, users: Ids) -> None:
        self.coupled.commit(users)

    def models(self, users: Ids, row: Tensor) -> Tensor:
        a = self.mean.words
        averaged, coupled = self.mean.models(users, row[:, :a]), self.coupled.models(users, row[:, a:])
        return torch.cat([averaged, coupled.to(averaged)], dim=1)


class AggregatorOfTwoParts(Aggregator):
    """Averages one part of each row, and couples the other.

    Args:
        averages: the aggregator of the averaged numbers.
        coupler: the aggregator of the coupled numbers.
    """

    def __init__(self, averages: AverageAggregator, coupler: Coupler | SummedCoupler) -> None:
        super().__init__()
        self.averages, self.coupler = averages, coupler
        self.mean = averages.make_meaning()

    def make_meaning(self) -> MeaningOfTwoParts | None:
        if isinstance(self.coupler, SummedCoupler):
            return MeaningOfTwoParts(self.mean, self.coupler.make_meaning())
        return None

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        a = self.mean.words
        averaged, coupled = ivs[:, :a], ivs[:, a:]
        if isinstance(self.coupler, SummedCoupler):
            sums = self.averages.update(users, averaged), self.coupler.update(users, coupled)
            return torch.cat(sums, dim=1)
        mean = self.averages.update(users, self.mean.total_of(users, averaged))
        models = self.coupler.update(users, coupled)
        return torch.cat([self.mean.models(np.arange(len(models)), mean).to(models), models], dim=1)

    def figure_state(self) -> dict[str, Tensor]:
        return {f"coupler.{name}": value for name, value in self.coupler.figure_state().items()}
