"""Networks trained by gradients where users need of each other no more than a sum; each makes its own model of it.

K users, m parameters of a network, q sums for each of them. Terms are int64 [n, q·m]; one row of sums is for all.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hmtl.mtl.algorithms.base import NOBODY, Aggregator, Ids, Users, of_rows, with_rows
from hmtl.mtl.algorithms.gradients import ModelUsers
from hmtl.mtl.numbers import identity
from hmtl.mtl.sums import Form, Grid, Terms, blocks, some


class SummingModels(Users):
    """User side: `inner` as it is, and between it and the messages what makes terms of IVs and models of sums."""

    sums = True

    def __init__(self, inner: ModelUsers, grid: Grid) -> None:
        self.inner, self.grid, self.numbers = inner, grid, inner.numbers

    @property
    def models(self) -> Tensor:
        """What the users predict with, [K, m]."""
        return self.inner.models

    @property
    def row_bits(self) -> tuple[int, int, int]:
        return 8 * self.inner.numbers * self.inner.W.element_size(), 64 * self.inner.tells_steps, 0

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        users, terms = self.local_terms(round, idle)
        return users, terms[torch.arange(len(users))]

    def local_terms(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Terms]:
        """As `local_update`, but terms are made as a relay asks for them, until the update is settled: users' work."""
        users, ivs = self.inner.local_update(round, idle)
        return users, self._terms(users, ivs).by_others()

    @abstractmethod
    def _terms(self, users: Ids, ivs: Tensor) -> Terms:
        """Terms of these users' IVs [n, m + e]."""

    def commit(self, users: Ids) -> None:
        self.inner.commit(users)

    def roll_back(self, users: Ids) -> None:
        self.inner.roll_back(users)

    def measure(self) -> dict[str, Tensor]:
        return self.inner.measure()

    def blocks(self) -> Iterator[Tensor]:
        return self.inner.blocks()

    def predictors(self, state: dict[str, Tensor]) -> Tensor:
        return self.inner.predictors(state)

    def local_work(self, round: int, user: int) -> None:
        self.inner.local_work(round, user)

    def state_dict(self) -> dict[str, Tensor]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.inner.load_state_dict(state)


class Average:
    """w = start + (β/N)·S, N = Σ_k n_k, of all that users sent so far: S, a sum of terms n_k (w_k − w) on the grid.

    Who sends nothing counts with w, the last model.

    Args:
        start: the users' first model [m].
        counts: n_k of all users [K, 1]. Users know their own alone, and N.
        beta: β.
    """

    def __init__(self, start: Tensor, counts: Tensor, beta: float, grid: Grid) -> None:
        self.start, self.beta, self.grid = start, beta, grid
        self.learn(counts)

    def learn(self, counts: Tensor) -> None:
        self.counts, self.total = counts.double().to(self.start.device), float(counts.sum())

    def terms(self, users: Ids, new: Tensor, last: Tensor) -> Terms:
        """Of models [n, m] that users made of the last ones, [n, m], or of the last one of all, [1, m]."""
        counts, last = self.counts[users], last.expand(len(new), -1)

        def make(at: Tensor, columns: slice) -> Tensor:
            apart = some(new, at, columns).double() - some(last, at, columns)
            return self.grid.rounded(apart.mul_(counts[at]))[:, None]

        return Terms((len(new), 1, new.shape[1]), make, new.device)

    def models(self, sums: Tensor) -> Tensor:
        """w of each row of sums, [n, m]."""
        return (self.start.double() + self.beta / self.total * self.grid.values(sums)).to(self.start)


class AveragingUsers(SummingModels):
    """User side of a mean."""

    def __init__(self, inner: ModelUsers, average: Average) -> None:
        super().__init__(inner, average.grid)
        self.average = average

    def _terms(self, users: Ids, ivs: Tensor) -> Terms:
        return self.average.terms(self.inner.problem.users[users], ivs, of_rows(self.inner.W, users))

    def receive(self, users: Ids, models: Tensor) -> None:
        made = self.average.models(models[:1])  # the sums are the same for all
        self.inner.receive(users, made.expand(len(users), -1))

    def learn(self, users: Ids, extras: Tensor) -> None:
        """Take N, [n, 1]."""
        self.average.total = float(extras[0, 0])


class AveragingSums(Aggregator):
    """Aggregator side of a mean: S, int64 [1, m]."""

    def __init__(self, m: int, grid: Grid, device: torch.device) -> None:
        self.grid, self.S = grid, torch.zeros(1, m, dtype=torch.int64, device=device)

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        """Sums of some users' terms each, together those of all who were heard, to the one row for everybody."""
        self.S = self.grid.added(self.S, ivs.sum(0, keepdim=True).to(self.S.device))
        return self.S

    def prepare(self, facts: Tensor) -> Tensor:
        """The users' n_k, [K, 1], to N for each of them."""
        return facts.sum(0).expand(len(facts), 1)

    def state_dict(self) -> dict[str, Tensor]:
        return {"S": self.S.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.S = state["S"].to(self.S, copy=True)


class Pull:
    """Steps of users down the penalty ½ tr(W A Wᵀ), each as if all others made steps as long as its own.

    Let A = aI + U C Uᵀ, s = Σ_l U_lᵀ w_l and G = (UᵀU)⁻¹. Then steps of one length move s, and each w_k − U_k G s, by
    themselves. User k makes its step, of length x, in p equal parts: one where x·λ_max(A) < 2, which is the step of an
    aggregator of all W makes, and ⌈x·λ_max(A)⌉ elsewhere, so that no coupling is too strong:
        w_k ← κ (w_k − U_k G s) + U_k G N s,   κ = (1 − x·a/p)^p,   N = (I − (x/p)·(aI + UᵀU C))^p.
    As steps become short, all have one part, and models approach a stationary point of the same objective.

    Args:
        form: of A, see `Form.coupling`, all δ_k = a.
        steepest: λ_max(A).
    """

    def __init__(self, form: Form, steepest: float, grid: Grid) -> None:
        self.form, self.steepest, self.grid, self.a = form, steepest, grid, float(form.delta[0])
        gram = form.U.T @ form.U
        self._G, self._slope = torch.linalg.inv(gram), self.a * identity(gram) + gram @ form.C

    def terms(self, W: Tensor, users: Tensor | slice = slice(None)) -> Tensor:
        """What models [n, m] of these users are in the sums, int64 [n, q·m]."""
        return self.grid.rounded(self.form.terms(W.double(), users))

    def sums(self, W: Tensor) -> Tensor:
        """What the models [K, m] of all users add up to, int64 [1, q·m]; their terms are not there all at once."""
        everybody = torch.arange(len(W), device=W.device)

        def make(at: Tensor, columns: slice) -> Tensor:
            return self.terms(some(W, at, columns), at).view(len(at), self.form.q, -1)

        return Terms((len(W), self.form.q, W.shape[1]), make, W.device).added(everybody)

    def changes(self, new: Tensor, old: Tensor, users: Tensor) -> Terms:
        """By how much the terms of these users change, [n, q·m], where their models [n, m] do."""

        def make(at: Tensor, columns: slice) -> Tensor:
            now, before = (self.terms(some(W, at, columns), users[at]) for W in (new, old))
            return now.sub_(before).view(len(at), self.form.q, -1)

        return Terms((len(new), self.form.q, new.shape[1]), make, new.device)

    def models(self, W: Tensor, lengths: Tensor, sums: Tensor, users: Tensor | slice = slice(None)) -> Tensor:
        """Models [n, m] of these users after steps of `lengths` [n], from W [n, m] and sums, int64 [n or 1, q·m]."""
        found = {x: self._step(x) for x in set(lengths.tolist())}
        kept, shares = zip(*(found[x] for x in lengths.tolist()), strict=True)
        keep, share = W.new_tensor(kept, dtype=torch.float64)[:, None], torch.stack(shares)  # [n, 1], [n, q, q]
        weights = (self.form.U[users, :, None] * share).sum(1)
        values = self.grid.values(sums[:1] if sums.stride(0) == 0 else sums).view(-1, self.form.q, W.shape[1])
        made, values = torch.empty_like(W, memory_format=torch.contiguous_format), values.expand(len(W), -1, -1)
        for rows, columns in blocks(*W.shape):
            new = keep[rows] * W[rows, columns].double()
            for j in range(self.form.q):
                new.add_(weights[rows, j, None] * values[rows, j, columns])
            made[rows, columns] = new
        return made

    def _step(self, x: float) -> tuple[float, Tensor]:
        """κ, and G (N − κI) [q, q]."""
        parts = 1 if x * self.steepest < 2 else math.ceil(x * self.steepest)
        keep, eye = (1 - x / parts * self.a) ** parts, identity(self._G)
        N = torch.linalg.matrix_power(eye - x / parts * self._slope, parts)
        return keep, self._G @ (N - keep * eye)


class PullingUsers(SummingModels):
    """User side of FedU: what each user `sent` last [K, m] that counted, and the lengths [K] of the steps behind it.

    What it sends is what its term has become minus what it was. A model is made of what was sent last and the sums, as
    often as sums come: also for a user who took no part in the round.

    Args:
        rate: μ_t; t is counted by the aggregator, which tells it with the sums.
    """

    state = ("sent", "lengths", "pending", "pending_lengths", "rounds")

    def __init__(self, inner: ModelUsers, pull: Pull, rate: Callable[[int], float]) -> None:
        super().__init__(inner, pull.grid)
        self.pull, self.rate = pull, rate
        self.sent = self.pending = inner.W
        self.lengths = self.pending_lengths = torch.zeros(len(inner.W), dtype=torch.float64)
        self.numbers, self.rounds = pull.form.q * inner.numbers, torch.tensor(0)

    def _terms(self, users: Ids, ivs: Tensor) -> Terms:
        m, ids = self.inner.numbers, self._numbers(users)
        W = ivs[:, :m]
        self.pending = with_rows(self.pending, users, W)
        lengths = self.rate(int(self.rounds)) * ivs[:, m].double().cpu()
        self.pending_lengths = with_rows(self.pending_lengths, users, lengths)
        return self.pull.changes(W, of_rows(self.sent, users), ids)

    def commit(self, users: Ids) -> None:
        super().commit(users)
        self.sent = with_rows(self.sent, users, of_rows(self.pending, users))
        self.lengths = with_rows(self.lengths, users, of_rows(self.pending_lengths, users))

    def receive(self, users: Ids, models: Tensor) -> None:
        if not len(users):
            return
        self.rounds = models[0, -1].cpu()
        sums = models[:, : self.numbers]
        made = self.pull.models(of_rows(self.sent, users), self.lengths[users], sums, self._numbers(users))
        self.inner.receive(users, made)

    def _numbers(self, users: Ids) -> Tensor:
        """Of these users in the network, where the form is that of all."""
        return torch.from_numpy(self.inner.problem.users[users])

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {name: getattr(self, name).clone() for name in self.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        for name in self.state:
            setattr(self, name, state[name].to(getattr(self, name), copy=True))


class PullingSums(Aggregator):
    """Aggregator side of FedU: sums of what users sent last, int64 [1, q·m], and t, which goes out with them."""

    state = ("S", "rounds")

    def __init__(self, start: Tensor, pull: Pull) -> None:
        self.structure, self.grid = pull.form, pull.grid
        self.S, self.rounds = pull.sums(start), torch.tensor(0)

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        """Sums of some users' terms each, together those of all who were heard, to the one row for everybody."""
        self.S = self.grid.added(self.S, ivs.sum(0, keepdim=True).to(self.S.device))
        self.rounds = self.rounds + 1
        return torch.cat([self.S, self.rounds.to(self.S).view(1, 1)], dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in self.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].to(getattr(self, name), copy=True))
