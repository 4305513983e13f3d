"""Averages over users whose bits do not depend on who adds, and what a learner's server makes of them.

K users, n numbers; p_k are the users' weights, and P their sum. The average is kept as a sum of terms on a grid (see
`hmtl.mtl.sums`), w = start + S/P, which has the same bits whether an aggregator adds the terms of all IVs or relays add
the terms on the way. Weights are scaled by 2^-⌈log2 Σ p⌉, so that P ≤ 1, and no sum overflows while numbers change by
at most 2^20 in a round, whatever K and the weights are. If only some users count in a round, and their weights sum to
P_t, aggregators multiply the sum of their terms by P/P_t.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.io.arrays import Ids
from hmtl.mtl.algorithms.base import Aggregator
from hmtl.mtl.algorithms.meaning import Meaning
from hmtl.mtl.algorithms.weights import Weights
from hmtl.mtl.learners.base import Learner, Numbers, Section
from hmtl.mtl.privacy import Privacy
from hmtl.mtl.sums import Grid, LazyRows, RowsByUsers, WeightedChanges, blocks, fitting


@dataclass(frozen=True, eq=False)
class Average:
    """w = start + S/P, where S is the sum over rounds of (P/P_t)·Σ_k p_k (w_k − w) over the users who count.

    Attributes:
        sections: the sections that are averaged, by name; those over all users come last.
        grid: grid of the terms.
    """

    sections: Mapping[str, Section]
    grid: Grid

    @cached_property
    def start(self) -> Tensor:
        """All sections before the first round [n]."""
        first, *rest = (section.start for section in self.sections.values())
        return torch.cat([first, *rest]) if rest else first

    @cached_property
    def over_all(self) -> int:
        """How many of the numbers, the last ones, are averages over all users."""
        return sum(len(section.start) for section in self.sections.values() if section.over_all)

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the sections of rows [..., n] by name."""
        sizes = [len(section.start) for section in self.sections.values()]
        return dict(zip(self.sections, torch.split(rows, sizes, dim=-1), strict=True))

    def terms(self, new: Tensor, last: Tensor, weights: Tensor, total: float) -> WeightedChanges:
        """Return the terms of numbers [b, n] trained from `last` [b, n], for weights [b, 1] whose sum is `total`."""
        return WeightedChanges(self.grid, new, last, weights * fitting(total))

    def value(self, S: Tensor, total: float) -> Tensor:
        """Return w [1, n] from the sums [1, n], in the type of the model."""
        value, factor = torch.empty_like(self.start), 1 / (total * fitting(total))
        for _, columns in blocks(1, len(value)):
            value[columns] = self.grid.values(S[0, columns]).mul_(factor).add_(self.start[columns])
        return value[None]


class WeightedMean(Meaning):
    """The meaning of rows that are averaged: a row is the model that a user trained from the last average.

    Args:
        average: what is averaged.
        weights: the weights of these users.
        last: returns the averages from which these users trained [n, m].
        ids: the numbers of these users in the network [n].
        privacy: how terms are clipped and get noise; None: they do not.
    """

    def __init__(
        self, average: Average, weights: Weights, last: Callable[[Ids], Tensor], ids: Ids, privacy: Privacy | None
    ) -> None:
        super().__init__()
        self.average, self.weights, self.last, self.ids, self.privacy = average, weights, last, ids, privacy
        self.words, self.common, self.private = len(average.start), average.start.dtype, privacy is not None

    def terms(self, round: int, users: Ids, rows: Tensor | LazyRows) -> Tensor | LazyRows:
        def made(some: slice) -> LazyRows:
            return self._changes(users[some], rows[some])

        everybody, at_once = slice(0, len(users)), getattr(rows, "at_once", len(users))
        terms: Tensor | LazyRows = (
            RowsByUsers((len(users), self.words), torch.int64, rows.device, made, at_once)
            if at_once < len(users)
            else made(everybody)
        )
        if self.privacy:
            terms = self.privacy.protected(self.average.grid, round, self.ids[users], terms[:])
        return terms

    def total_of(self, users: Ids, rows: Tensor) -> Tensor:
        return self._changes(users, rows.to(self.average.start.device)).sum()

    def models(self, users: Ids, row: Tensor) -> Tensor:
        return self.average.value(row, self.weights.total).expand(len(users), -1)

    def _changes(self, users: Ids, rows: Tensor) -> WeightedChanges:
        return self.average.terms(rows, self.last(users), self.weights.own[users], self.weights.total)


class AverageAggregator(Aggregator):
    """Keeps S, and lets the learner's server turn the mean change of a round into its next value.

    Args:
        average: what is averaged.
        learner: what the server does.
        weights: of all users.
        privacy: how users protect their terms; None: they do not.

    Attributes:
        S: the sums, int64 [1, n].
        memory: what the server remembers, by name, float64.
    """

    S: Tensor

    def __init__(self, average: Average, learner: Learner, weights: Weights, privacy: Privacy | None) -> None:
        super().__init__()
        self.average, self.learner, self.privacy = average, learner, privacy
        self.weights = weights
        self.register_buffer("S", torch.zeros_like(average.start, dtype=torch.int64)[None])
        self.memory = torch.nn.Module()
        for name, value in learner.memory().items():
            self.memory.register_buffer(name, value.double())

    def make_meaning(self) -> WeightedMean:
        K = len(self.weights.own)
        return WeightedMean(
            self.average, self.weights, lambda users: self.value().expand(len(users), -1), np.arange(K), self.privacy
        )

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        total, present = self.weights.total, float(self.weights.own[users].sum())
        factor = None
        if 0 < present < total:
            factor = torch.ones_like(self.average.start, dtype=torch.float64)
            factor[: len(factor) - self.average.over_all] = total / present
        self.S = self.average.grid.added(self.S, *self._step(ivs.to(self.S.device), factor))
        return self.S

    def _step(self, terms: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return by how much S moves, and a factor to this, given the sum of the terms [1, n] and its factor."""
        memory = dict(self.memory.named_buffers())
        state = _Lazy(lambda: self.average.split(self.values()), **memory)
        mean = _Lazy(lambda: self.average.split(self._mean(terms[0], factor)))
        moves = self.learner.server(state, mean)
        for name, old in memory.items():
            setattr(self.memory, name, getattr(state, name).to(old))
        if moves is mean and not mean.was_read:
            return terms, factor
        moved = vars(moves) if isinstance(moves, Numbers) else moves
        for name, section in self.average.sections.items():
            if not isinstance(moved, Mapping) or getattr(moved.get(name), "shape", None) != section.start.shape:
                raise ConfigError(
                    f"{type(self.learner).__name__}.server does not return {len(section.start)} numbers for section "
                    f"{name}. Return a dictionary of them by name, or `mean`."
                )
        step = torch.cat([moved[name] for name in self.average.sections], dim=-1)[None]
        return self.average.grid.rounded(step * self._scale), None

    def _mean(self, terms: Tensor, factor: Tensor | None) -> Tensor:
        """Return the mean change [n], float64, given the sum of the terms [n]."""
        change = self.average.grid.values(terms)
        return change.mul_(1 / self._scale if factor is None else factor / self._scale)

    @property
    def _scale(self) -> float:
        """P."""
        return self.weights.total * fitting(self.weights.total)

    def values(self) -> Tensor:
        """Return w [n], float64."""
        return self.average.grid.values(self.S[0]).div_(self._scale).add_(self.average.start)

    def value(self) -> Tensor:
        """Return w [1, n]."""
        return self.average.value(self.S, self.weights.total)

    def answer(self, facts: Tensor) -> Tensor:
        """Take the users' weights, [K, 1], in the set-up, and return their sum to each user, [K, 1]."""
        self.weights.own = facts.to(self.weights.own)
        self.weights.total = float(self.weights.own.sum())
        return facts.sum(0).expand(len(facts), 1)


class _Lazy(Numbers):
    """Sections that are computed when a server reads one of them.

    Args:
        compute: returns them by name.
        known: further numbers by name.

    Attributes:
        was_read: whether they have been computed, and may have been changed.
    """

    def __init__(self, compute: Callable[[], dict[str, Tensor]], **known: Tensor) -> None:
        super().__init__(**known)
        self._compute, self.was_read = compute, False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self.was_read = True
        vars(self).update({key: each for key, each in self._compute().items() if key not in vars(self)})
        if name not in vars(self):
            raise ConfigError(f"`server` reads {name}, which is neither a section nor in `memory`. Return it there.")
        return vars(self)[name]
