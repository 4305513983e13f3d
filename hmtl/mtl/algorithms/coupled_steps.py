"""How the regularizer of a problem couples numbers that users train: gradient steps on the penalty ½ tr(Wᵀ A W).

K users, m numbers each; W [K, m]. A step has the length x_k, the rate of the round times the user's number of local
steps. An aggregator takes it, for all users at once; or, where q sums over the users per number suffice, each user
takes its own, see `SumsOfSteps`.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from hmtl.errors import RangeError
from hmtl.io.arrays import Ids
from hmtl.mtl.algorithms.base import Aggregator
from hmtl.mtl.algorithms.held_rows import of_rows, with_rows
from hmtl.mtl.algorithms.meaning import SumsOfVectors
from hmtl.mtl.problem import Problem
from hmtl.mtl.regularizers import Regularizer
from hmtl.mtl.solvers.networks import NetworkSolver
from hmtl.mtl.sums import Grid, blocks, fitting
from hmtl.mtl.symmetric import LowRank, Symmetric

MAX_PARTS = 2**31  # of a step on the penalty


def parts_of(relative: float) -> int:
    """Return the number of parts in which a step is taken that is `relative`/λ_max(A) long."""
    if not relative < MAX_PARTS:
        raise RangeError(
            f"a gradient step on the regularizer is {relative:.3g} times as long as a stable one. Lower solver.step or "
            "the strength of the regularizer."
        )
    return 1 if relative < 2 else math.ceil(relative)


class StepsBySums:
    """Steps from sums: user k assumes that all others take steps as long as its own.

    Let A = aI + U C Uᵀ, s = Σ_l U_lᵀ w_l and G = (UᵀU)⁻¹. Steps of one length move s and each w_k − U_k G s
    independently. User k takes a step of length x in p equal parts, as an aggregator of all W would: p = 1 if
    x·λ_max(A) < 2, otherwise p = ⌈x·λ_max(A)⌉, so that the step is stable for any coupling:
        w_k ← κ (w_k − U_k G s) + U_k G N s,   κ = (1 − x·a/p)^p,   N = (I − (x/p)·(aI + UᵀU C))^p.
    As steps become short, p = 1 for all users, and models approach a stationary point of the same objective.

    U is scaled by a power of two, and C against it, so that terms fit on the grid whatever K is.

    Args:
        A: the coupling.
        grid: grid of the terms.
    """

    def __init__(self, A: Symmetric, grid: Grid) -> None:
        scale = fitting(float(A.U.abs().sum(0).max()))
        self.A = A = LowRank(A.delta, A.U * scale, A.C / scale**2)
        self.grid = grid
        self.a = float(A.delta)
        gram = A.U.T @ A.U
        self._G = torch.linalg.inv(gram)
        self._slope = self.a * torch.eye(A.q).to(gram) + gram @ A.C
        self.steepest = max(self.a, float(torch.linalg.eigvals(self._slope).real.max()))

    def terms(self, W: Tensor, users: Tensor | slice = slice(None)) -> Tensor:
        """Return the terms [n, q, m] of models W [n, m] of these users in the sums, int64."""
        return self.grid.rounded(self.A.terms(W.double(), users)).view(len(W), self.A.q, -1)

    def sums(self, W: Tensor) -> Tensor:
        """Return the sums [1, q·m] of the terms of the models W [K, m] of all users, int64."""
        sums = W.new_zeros(self.A.q, W.shape[1], dtype=torch.int64)
        for rows, columns in blocks(*W.shape):
            sums[:, columns] += self.terms(W[rows, columns], rows).sum(0)
        return sums.view(1, -1)

    def models(self, W: Tensor, lengths: Tensor, sums: Tensor, users: Tensor | slice = slice(None)) -> Tensor:
        """Return the models [n, m] of these users after steps of `lengths` [n] from W [n, m], given sums [1, q·m]."""
        steps = {x: self._step(x) for x in set(lengths.tolist())}
        keep = W.new_tensor([steps[x][0] for x in lengths.tolist()], dtype=torch.float64)[:, None]
        shares = torch.stack([steps[x][1] for x in lengths.tolist()])  # [n, q, q]
        weights = (self.A.U[users, :, None] * shares).sum(1)
        values = self.grid.values(sums).view(self.A.q, -1)
        models = torch.empty_like(W, memory_format=torch.contiguous_format)
        for rows, columns in blocks(*W.shape):
            new = keep[rows] * W[rows, columns].double()
            for j in range(self.A.q):
                new.add_(weights[rows, j, None] * values[j, columns])
            models[rows, columns] = new
        return models

    def _step(self, x: float) -> tuple[float, Tensor]:
        """Return κ, and G (N − κI) [q, q], of a step of length x."""
        parts = parts_of(x * self.steepest)
        keep, eye = (1 - x / parts * self.a) ** parts, torch.eye(self.A.q).to(self._G)
        N = torch.linalg.matrix_power(eye - x / parts * self._slope, parts)
        return keep, self._G @ (N - keep * eye)


class StepsOfAll(nn.Module):
    """Steps for any A: w_k ← w_k − x_k Σ_l A_kl w_l, all users at once, in equal parts if models would diverge.

    If Ω is learned, it is the best for the models from which a step starts. Then steps are implicit,
    w′_k = w_k − x_k Σ_l A_kl w′_l, since the largest eigenvalue of A may be 100 times the smallest. Ω is learned in
    every round: this moves no model, unlike in MOCHA.

    Args:
        regularizer: defines A, and may learn Ω.
        K: number of users.
        m: numbers in a model.

    Raises:
        ConfigError: A is not positive definite.
    """

    regularizer: Regularizer
    Omega: Symmetric

    def __init__(self, regularizer: Regularizer, K: int, m: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.Omega = regularizer.start(K, m).to(device)
        self.take(regularizer)

    def take(self, regularizer: Regularizer) -> None:
        """Take another regularizer, which learns Ω if the last one did."""
        regularizer.inverse(self.Omega)  # raises if A is not positive definite
        object.__setattr__(self, "regularizer", regularizer)  # no part of this module's state

    @property
    def A(self) -> Symmetric:
        """The present coupling."""
        return self.regularizer.coupling(self.Omega)

    def all_models(self, W: Tensor, lengths: Tensor) -> Tensor:
        """Return the models of all users after steps of `lengths` [K] from W [K, m]."""
        W = W.contiguous()  # or else the bits of products would depend on where W comes from
        x, eye = lengths.to(W.device)[:, None], self.Omega.eye
        if self.regularizer.learns:
            if not W.isfinite().all():
                raise RangeError("the models are not finite: training diverges. Lower solver.step, or scale the data.")
            self.Omega = self.regularizer.update_omega(W.double().T, self.Omega)
            mixing = torch.linalg.inv(eye + x * self.A.dense())
        else:
            A = self.A.dense()
            parts = parts_of(float(x.max() * torch.linalg.eigvalsh(A)[-1]))
            mixing = torch.linalg.matrix_power(eye - x / parts * A, parts)
        return torch.mm(mixing.to(W), W)


class SumsOfSteps(SumsOfVectors):
    """What models mean if q sums over users suffice: everybody takes its own step, from its own model and the sums.

    A row is a model, and how many local steps led to it. A model follows from the sums and what the user sent last, so
    a user who took no part in a round gets one, too. The number of rounds t comes down beside the sums.

    Buffers: those of `SumsOfVectors`; `lengths` [n], the lengths of the steps from what was sent, and
    `pending_lengths`, the same for what is pending; `rounds`, t.

    Args:
        steps: the steps.
        solver: its rate gives their lengths.
        start: the models before the first round [n, m].
        ids: the numbers of these users in the network.
    """

    lengths: Tensor
    pending_lengths: Tensor
    rounds: Tensor
    answers = 1

    def __init__(self, steps: StepsBySums, solver: NetworkSolver, start: Tensor, ids: Ids) -> None:
        super().__init__(steps.A, steps.grid, start, ids)
        self.steps, self.rate = steps, solver.rate
        for name in ("lengths", "pending_lengths"):
            self.register_buffer(name, torch.zeros(len(start), dtype=torch.float64))
        self.register_buffer("rounds", torch.tensor(0))

    def moved(self, users: Ids, rows: Tensor) -> Tensor:
        lengths = self.rate(int(self.rounds)) * rows[:, self.m].double().cpu()
        self.pending_lengths = with_rows(self.pending_lengths, users, lengths)
        return rows[:, : self.m].to(self.sent)

    def total_of(self, users: Ids, rows: Tensor) -> Tensor:
        total = super().total_of(users, rows)
        self.lengths = self.pending_lengths
        return total

    def commit(self, users: Ids) -> None:
        super().commit(users)
        self.lengths = with_rows(self.lengths, users, of_rows(self.pending_lengths, users))

    def models(self, users: Ids, row: Tensor) -> Tensor:
        self.rounds = row[0, -1].cpu()
        sent, sums = of_rows(self.sent, users), row[:1, : self.words]
        return self.steps.models(sent, self.lengths[torch.from_numpy(users)], sums, self.indices(users))


class Coupler(Aggregator):
    """Aggregator side if it needs all rows: takes the steps of all users.

    Buffers: `sent` [K, m], the last models, from which users who are not heard take no step; `rounds`, t.
    """

    sent: Tensor
    rounds: Tensor

    def __init__(self, start: Tensor, steps: StepsOfAll, solver: NetworkSolver) -> None:
        super().__init__()
        self.steps = steps
        self.rate = solver.rate
        self.register_buffer("rounds", torch.tensor(0))
        self.register_buffer("sent", start)

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        m = self.sent.shape[1]
        W = with_rows(self.sent, users, ivs[:, :m].to(self.sent))
        lengths = torch.zeros(len(W), dtype=torch.float64)
        lengths[torch.from_numpy(users)] = self.rate(int(self.rounds)) * ivs[:, m].double().cpu()
        self.sent, self.rounds = self.steps.all_models(W, lengths), self.rounds + 1
        return self.sent

    def figure_state(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.named_buffers() if "Omega" in name}


class SummedCoupler(Aggregator):
    """Aggregator side if sums suffice: keeps the sums S, int64 [1, q·m], and the number of rounds t; both go down."""

    S: Tensor
    rounds: Tensor

    def __init__(self, start: Tensor, steps: StepsBySums, solver: NetworkSolver) -> None:
        super().__init__()
        self.start, self.steps, self.solver = start, steps, solver
        self.register_buffer("rounds", torch.tensor(0))
        self.register_buffer("S", steps.sums(start))

    def make_meaning(self) -> SumsOfSteps:
        return self.meaning_of(np.arange(len(self.start)))

    def meaning_of(self, users: Ids) -> SumsOfSteps:
        """Return what the rows of these users mean."""
        return SumsOfSteps(self.steps, self.solver, self.start[:1].expand(len(users), -1), users)

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        self.S = self.steps.grid.added(self.S, ivs.to(self.S.device))
        self.rounds = self.rounds + 1
        return torch.cat([self.S, self.rounds.to(self.S).view(1, 1)], dim=1)


def coupler_of(problem: Problem, solver: NetworkSolver, start: Tensor) -> Coupler | SummedCoupler:
    """Return the aggregator of coupled numbers that start at `start` [n].

    Raises:
        ConfigError: the solver has no step size.
    """
    solver.rate(0)
    start, A = start.expand(problem.K, -1), problem.known(problem.regularizer.coupling)
    if A is not None and A.q:
        return SummedCoupler(start, StepsBySums(A, problem.grid), solver)
    return Coupler(start, StepsOfAll(problem.regularizer, problem.K, start.shape[1], problem.s.device), solver)
