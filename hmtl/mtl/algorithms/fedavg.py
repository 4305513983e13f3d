"""FedAvg: one network for all users, the average of the networks that they train.

K users, m parameters; n_k are the users' weights, and N their sum. The average is kept as a sum of terms on a grid (see
`hmtl.mtl.sums`), w = start + (β/P)·S, which has the same bits whether an aggregator adds the terms of all IVs or relays
add the terms on the way. The term of a change of w_k has the factor p_k = n_k / 2^⌈log2 N⌉. As P = Σ_k p_k ≤ 1, no sum
overflows while numbers change by at most 2^20 in a round, whatever K and n_k are. If only some users count in a round,
and their n_k sum to N_t, aggregators multiply the sum of their terms by N/N_t.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hmtl.mtl.algorithms.base import Aggregator, Ids, MessageKind, Users, with_rows
from hmtl.mtl.algorithms.networks import LocalTraining, NetworkAlgorithm, NetworkUsers, Sending
from hmtl.mtl.algorithms.setup_exchange import SetupAggregator, SetupUsers
from hmtl.mtl.problem import Problem, Rows
from hmtl.mtl.sums import Grid, Terms, WeightedChanges, added, blocks, fitting


@dataclass(frozen=True, eq=False)
class Average:
    """w = start + (β/P)·S, where S is the sum over rounds of (N/N_t)·Σ_k p_k (w_k − w) over the users who count.

    Attributes:
        start: first model [m].
        beta: β, how far w moves towards the mean of the users' models; 1 is all the way.
        grid: grid of the terms.
        of_all: how many of the m numbers, the last ones, are averages over all users: of an absent user, the last
            average counts, and there is no factor N/N_t.
    """

    start: Tensor
    beta: float
    grid: Grid
    of_all: int = 0

    def terms(self, new: Tensor, last: Tensor, counts: Tensor, total: float) -> Terms:
        """Return the terms of models [n, m] trained from `last` [n, m], for n_k [n, 1] and N."""
        return WeightedChanges(self.grid, new, last, counts * fitting(total))

    def model(self, S: Tensor, total: float) -> Tensor:
        """Return w [1, m] from the sums [1, m] and N."""
        model, factor = torch.empty_like(self.start), self.beta / (total * fitting(total))
        for _, columns in blocks(1, len(model)):
            model[columns] = self.grid.values(S[0, columns]).mul_(factor).add_(self.start[columns])
        return model[None]

    def added(self, S: Tensor, terms: Tensor, present: float, total: float) -> Tensor:
        """Return S after a round, from the sum of the terms [1, m] of users whose n_k sum to `present`, and N.

        `terms` may be overwritten.
        """
        if not 0 < present < total:
            return self.grid.added(S, terms)
        factor = torch.ones_like(self.start, dtype=torch.float64)
        factor[: len(factor) - self.of_all] = total / present
        return self.grid.added(S, terms, factor)


class SendAverageTerms(Sending):
    """Users send terms, and receive the model, or S, of which they compute it.

    `counts` are n_k of these users [n, 1], `total` is N.
    """

    def __init__(self, average: Average, counts: Tensor, total: float) -> None:
        super().__init__(len(average.start), (8 * average.start.nbytes, 0, 0))
        self.average, self.averages = average, average.start.dtype
        self.counts = counts
        self.total = total

    def encode(self, users: Ids, ivs: Tensor, last: Tensor) -> Terms:
        return self.average.terms(ivs, last, self.counts[users], self.total)

    def decode(self, users: Ids, rows: Tensor) -> Tensor:
        model = rows[:1] if rows.is_floating_point() else self.average.model(rows[:1], self.total)
        return model.expand(len(users), -1)  # all rows are the same

    def take(self, users: Ids, numbers: Tensor) -> None:
        """Take N, [n, 1]."""
        self.total = float(numbers[0, 0])


class AverageTerms(Aggregator):
    """Aggregator of terms, or of the sum of these users' terms: returns S, int64 [1, m]; `counts` are n_k [K, 1]."""

    S: Tensor

    def __init__(self, average: Average, counts: Tensor) -> None:
        super().__init__()
        self.average = average
        self.counts = counts
        self.register_buffer("S", torch.zeros_like(average.start, dtype=torch.int64)[None])

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        terms, (present, total) = added(ivs), (float(n.sum()) for n in (self.counts[users], self.counts))
        self.S = self.average.added(self.S, terms.to(self.S.device), present, total)
        return self.S

    def averaged(self, sums: Tensor) -> Tensor:
        return self.average.model(sums, float(self.counts.sum()))

    def agree(self, users: Mapping[str, Tensor]) -> dict[str, Tensor]:
        m, total = len(self.average.start) - self.average.of_all, float(self.counts.sum())
        if self.average.of_all:  # of what the users keep in V
            kept = self.average.grid.rounded(users["V"], self.counts * fitting(total)).sum(0, keepdim=True)
            self.S = torch.cat([self.S[:, :m], kept.to(self.S)], dim=1)
        return {"W": self.average.model(self.S, total).expand(len(self.counts), -1)}

    def answer(self, facts: Tensor) -> Tensor:
        """Take n_k, [K, 1], in the set-up, and return N to each user, [K, 1]."""
        self.counts = facts.to(self.counts)
        return facts.sum(0).expand(len(facts), 1)


class AverageModels(AverageTerms):
    """Aggregator of IVs: adds their terms and returns the models."""

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        total = float(self.counts.sum())
        last = self.average.model(self.S, total).expand(len(users), -1)
        super().update(users, self.average.terms(ivs.to(self.S.device), last, self.counts[users], total).sum())
        return self.average.model(self.S, total).expand(len(self.counts), -1)

    def answer(self, facts: Tensor) -> Tensor:
        """Take n_k, [K, 1], in the set-up; the users need no answer, [K, 0]."""
        return super().answer(facts)[:, :0]


class AveragedUsers(NetworkUsers):
    """User side: users train the average; `trained` [K, m] are the models that this led to in the last round.

    `trained` is what the users hold before they receive the next average: the last one, tuned to their own rows.
    """

    def __init__(self, local: LocalTraining, sending: Sending, pull: float = 0.0) -> None:
        super().__init__(local, sending, pull)
        self.trained = self.W

    @property
    def personal(self) -> bool:
        return not self.state_dict().keys() <= {"W", "kept"}

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        models = super()._train(round, users, rows, budgets)
        return (*models, *models)

    def _hold(self, users: Ids, own: list[Tensor]) -> None:
        self.trained = with_rows(self.W, users, own[0][users])

    def measure(self) -> dict[str, Tensor]:
        """As `NetworkUsers.measure`, and the measures of `trained` on test rows, [K] each."""
        return super().measure() | self.measured_on("test", self.trained, "tuned_")


class FedAvg(NetworkAlgorithm):
    """One network for all users, w = Σ_k n_k w_k / Σ_k n_k. It does not use the regularizer of the problem.

    Args, Raises: as in `NetworkAlgorithm`. Both sums are over the users whose update counted in the round. With
    `privacy`, n_k = 1 for all: a number of rows would tell about a user, and one bound holds for the terms of all.

    Ref: McMahan et al. 2017.
    """

    regularized = False
    averaged = True
    beta = 1.0

    @classmethod
    def sums_needed(cls, problem: Problem) -> int:
        return 1

    def _sides(self, messages: MessageKind) -> tuple[Users, Aggregator]:
        average, weights = Average(self._start, self.beta, self.problem.grid, self._of_all), self._weights()
        if messages == "ivs":
            return self._users(Sending(len(average.start))), AverageModels(average, weights)
        sending = SendAverageTerms(average, weights[self.problem.users], float(weights.sum()))
        return self._users(sending), AverageTerms(average, weights)

    @property
    def bounded(self) -> bool:
        return True

    @property
    def common(self) -> Tensor | None:
        if not isinstance(self.users, AveragedUsers):
            return None
        assert isinstance(self.aggregator, AverageTerms)
        return self._average_of(self.aggregator)

    def _average_of(self, aggregator: AverageTerms) -> Tensor:
        """Return what an aggregator holds as the average, [a]."""
        return aggregator.average.model(aggregator.S, float(aggregator.counts.sum()))[0]

    @property
    def _start(self) -> Tensor:
        """What is averaged, before the first round [a]."""
        return self.model.start

    @property
    def _of_all(self) -> int:
        """How many of these numbers, the last ones, are averages over all users, see `Average`."""
        return 0

    def _users(self, sending: Sending) -> NetworkUsers:
        return AveragedUsers(self._local, sending)

    def _weights(self) -> Tensor:
        """Return the weights of the users in the average [K, 1]: their numbers of training rows."""
        counts = torch.tensor(self.problem.counts)[:, None].to(self.problem.s)
        return torch.ones_like(counts) if self.privacy else counts

    def setup(self) -> tuple[SetupUsers, SetupAggregator] | None:
        if self.privacy:
            return None  # all users weigh the same
        users, aggregator = self.users.sections[0], self.aggregator.sections[0]
        assert isinstance(users, NetworkUsers)
        assert isinstance(aggregator, AverageTerms)
        own = self._weights()[self.problem.users]
        return SetupUsers(own, users.sending.take), SetupAggregator(aggregator.answer, self.problem.K)

    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        return super()._objective(measured, blocks) | self.problem.figures("tuned_test", measured)
