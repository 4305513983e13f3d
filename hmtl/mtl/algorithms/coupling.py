"""How the regularizer of a problem couples numbers that users train: gradient steps on the penalty.

K users, n numbers each. A step is taken by the aggregator, for all users at once; or, where q sums over the users per
number suffice, by each user for itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hmtl.errors import ConfigError, RangeError
from hmtl.mtl.algorithms.base import Aggregator, Ids, MessageKind, no_sums, of_rows, with_rows
from hmtl.mtl.penalties import gradient_step, implicit_step
from hmtl.mtl.problem import Problem
from hmtl.mtl.regularizers import Regularizer, Relation, dense
from hmtl.mtl.solvers.networks import NetworkSolver
from hmtl.mtl.sums import Form, Grid, Terms, TermsByBlock, added, blocks, fitting

MAX_PARTS = 2**31  # of a step on the penalty


def parts_of(relative: float) -> int:
    """Return the number of parts in which a step is taken that is `relative`/λ_max(A) long."""
    if not relative < MAX_PARTS:
        raise RangeError(
            f"a gradient step on the regularizer is {relative:.3g} times as long as a stable one. Lower solver.step or "
            "the strength of the regularizer."
        )
    return 1 if relative < 2 else math.ceil(relative)


class PenaltySteps:
    """Gradient steps on ½ tr(W A Wᵀ) from sums: user k assumes that all others take steps as long as its own.

    Let A = aI + U C Uᵀ, s = Σ_l U_lᵀ w_l and G = (UᵀU)⁻¹. Steps of one length move s and each w_k − U_k G s
    independently. User k takes a step of length x in p equal parts, as an aggregator of all W would: p = 1 if
    x·λ_max(A) < 2, otherwise p = ⌈x·λ_max(A)⌉, so that the step is stable for any coupling:
        w_k ← κ (w_k − U_k G s) + U_k G N s,   κ = (1 − x·a/p)^p,   N = (I − (x/p)·(aI + UᵀU C))^p.
    As steps become short, p = 1 for all users, and models approach a stationary point of the same objective.

    U is scaled by a power of two, and C against it, so that terms fit on the grid whatever K is.

    Args:
        form: form of A, with all δ_k = a; see `Form.coupling`.
        solver: gives the step sizes μ_t.
        grid: grid of the terms.
    """

    def __init__(self, form: Form, solver: NetworkSolver, grid: Grid) -> None:
        scale = fitting(float(form.U.abs().sum(0).max()))
        self.form = form = Form(form.delta, form.U * scale, form.C / scale**2)
        self.rate = solver.rate
        self.grid = grid
        self.a = float(form.delta[0])
        gram = form.U.T @ form.U
        self._G = torch.linalg.inv(gram)
        self._slope = self.a * torch.eye(form.q).to(gram) + gram @ form.C
        self.steepest = max(self.a, float(torch.linalg.eigvals(self._slope).real.max()))

    def terms(self, W: Tensor, users: Tensor | slice = slice(None)) -> Tensor:
        """Return the terms [n, q, m] of models W [n, m] of these users in the sums, int64."""
        return self.grid.rounded(self.form.terms(W.double(), users)).view(len(W), self.form.q, -1)

    def sums(self, W: Tensor) -> Tensor:
        """Return the sums [1, q·m] of the terms of the models W [K, m] of all users, int64."""
        n, q, m = len(W), self.form.q, W.shape[1]
        return TermsByBlock(n, q, m, lambda rows, columns: self.terms(W[rows, columns], rows), W.device).sum()

    def models(self, W: Tensor, lengths: Tensor, sums: Tensor, users: Tensor | slice = slice(None)) -> Tensor:
        """Return the models [n, m] of these users after steps of `lengths` [n] from W [n, m], given sums [1, q·m]."""
        steps = {x: self._step(x) for x in set(lengths.tolist())}
        keep = W.new_tensor([steps[x][0] for x in lengths.tolist()], dtype=torch.float64)[:, None]
        shares = torch.stack([steps[x][1] for x in lengths.tolist()])  # [n, q, q]
        weights = (self.form.U[users, :, None] * shares).sum(1)
        values = self.grid.values(sums).view(self.form.q, -1)
        models = torch.empty_like(W, memory_format=torch.contiguous_format)
        for rows, columns in blocks(*W.shape):
            new = keep[rows] * W[rows, columns].double()
            for j in range(self.form.q):
                new.add_(weights[rows, j, None] * values[j, columns])
            models[rows, columns] = new
        return models

    def _step(self, x: float) -> tuple[float, Tensor]:
        """Return κ, and G (N − κI) [q, q], of a step of length x."""
        parts = parts_of(x * self.steepest)
        keep, eye = (1 - x / parts * self.a) ** parts, torch.eye(self.form.q).to(self._G)
        N = torch.linalg.matrix_power(eye - x / parts * self._slope, parts)
        return keep, self._G @ (N - keep * eye)


class PenaltyDescent:
    """Gradient steps on the penalty ½ tr(Wᵀ A W), for any A: w_k ← w_k − x_k Σ_l A_kl w_l, all users at once.

    x_k is the rate of the round times the user's number of local steps. A step that is so long that models would
    diverge is taken in equal parts.

    Args:
        regularizer, Omega: define A.

    Attributes:
        A: coupling [K, K].
        steepest: largest eigenvalue of A.

    Raises:
        ConfigError: A is not positive definite.
    """

    def __init__(self, regularizer: Regularizer, Omega: Tensor) -> None:
        regularizer.inverse_coupling(Omega)  # raises if A is not positive definite
        self.A = regularizer.coupling(Omega)
        self.steepest = float(torch.linalg.eigvalsh(self.A)[-1])

    def penalty(self, W: Tensor) -> Tensor:
        """Return the penalty of models W [K, m], a float64 scalar."""
        W = W.double()  # large terms cancel for similar models
        return 0.5 * torch.dot(W.flatten(), (self.A @ W).flatten())

    def all_models(self, W: Tensor, steps: Tensor, rate: float) -> Tensor:
        """Return the models of all users from W [K, m] after these numbers of local steps [K]."""
        lengths = rate * steps.to(self.A)
        return gradient_step(self.A, W, lengths, parts_of(float(lengths.max()) * self.steepest))


class LearnedPenalty(nn.Module):
    """Steps on the penalty ½ tr(W A(Ω) Wᵀ), with the Ω that is best for the models from which a step starts.

    They are implicit, w′_k = w_k − x_k Σ_l A_kl w′_l with x_k as in `PenaltyDescent`, since the largest eigenvalue of a
    learned A may be 100 times the smallest. Ω is learned in every round: this moves no model, unlike in MOCHA.

    Args:
        regularizer: defines A, and learns Ω.
        K: number of users.
        m: numbers in a model.

    Attributes:
        Omega: Ω, whose tensors are buffers.
    """

    Omega: Relation

    def __init__(self, regularizer: Regularizer, K: int, m: int) -> None:
        super().__init__()
        self.regularizer = regularizer
        Omega = regularizer.start(K, m)
        if isinstance(Omega, Tensor):
            self.register_buffer("Omega", Omega)
        else:
            self.Omega = Omega

    def penalty(self, W: Tensor) -> Tensor:
        """Return the penalty of models W [K, m], a float64 scalar."""
        penalty: Tensor = self.regularizer(W.double().T, self.Omega)
        return penalty

    def all_models(self, W: Tensor, steps: Tensor, rate: float) -> Tensor:
        """Learn Ω, and return the models of all users from W [K, m] after these numbers of local steps [K]."""
        if not W.isfinite().all():
            raise RangeError("the models are not finite: training diverges. Lower solver.step, or scale the data.")
        self.Omega = self.regularizer.update_omega(W.double().T, self.Omega)
        form = self.regularizer.form(self.Omega)
        A = self.regularizer.coupling(dense(self.Omega)) if form is None else form.dense()
        return implicit_step(A, W, rate * steps)


Descent = PenaltyDescent | LearnedPenalty


class SendModels(nn.Module):
    """What users send and receive if the aggregator takes the steps: numbers [n], and how many steps led to them."""

    row_bits = (0, 0, 0)

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers

    def encode(self, users: Ids, new: Tensor, steps: Tensor) -> Tensor | Terms:
        """Return the rows of users who came to `new` [b, n] by these numbers of steps [b]."""
        return torch.cat([new, steps[:, None].to(new)], dim=1)

    def commit(self, users: Ids) -> None:
        """Record that what these users encoded last reached an aggregator."""

    def decode(self, users: Ids, rows: Tensor) -> Tensor:
        """Return the numbers [b, n] of these users from the rows that they received."""
        return rows


class SendTerms(SendModels):
    """Users send the changes of their terms, receive the sums, and take their own gradient steps on the penalty.

    A model follows from the sums and what the user sent last, so a user who took no part in a round gets one, too.

    Buffers: `sent` [n, m], the models that counted last, and `lengths` [n], the lengths of their steps on the penalty;
    `pending` and `pending_lengths`, the same for updates that may still count; `rounds`, t, which arrives with the
    sums. `users` are the numbers of these users in the network [n].
    """

    sent: Tensor
    lengths: Tensor
    pending: Tensor
    pending_lengths: Tensor
    rounds: Tensor

    def __init__(self, start: Tensor, steps: PenaltySteps, users: Ids) -> None:
        m = start.shape[1]
        super().__init__(steps.form.q * m)
        self.row_bits = 8 * m * start.element_size(), 64, 0
        self.m = m
        self.steps = steps
        self.users = users
        self.register_buffer("sent", start)
        self.register_buffer("pending", start)
        self.register_buffer("lengths", torch.zeros(len(start), dtype=torch.float64))
        self.register_buffer("pending_lengths", torch.zeros(len(start), dtype=torch.float64))
        self.register_buffer("rounds", torch.tensor(0))

    def encode(self, users: Ids, new: Tensor, steps: Tensor) -> Terms:
        old, ids = of_rows(self.sent, users), torch.from_numpy(self.users[users])
        lengths = self.steps.rate(int(self.rounds)) * steps.double().cpu()
        self.pending = with_rows(self.pending, users, new)
        self.pending_lengths = with_rows(self.pending_lengths, users, lengths)

        def changes(rows: slice, columns: slice) -> Tensor:
            now, before = (self.steps.terms(W[rows, columns], ids[rows]) for W in (new, old))
            return now.sub_(before)

        return TermsByBlock(len(users), self.steps.form.q, self.m, changes, new.device)

    def commit(self, users: Ids) -> None:
        self.sent = with_rows(self.sent, users, of_rows(self.pending, users))
        self.lengths = with_rows(self.lengths, users, of_rows(self.pending_lengths, users))

    def decode(self, users: Ids, rows: Tensor) -> Tensor:
        self.rounds = rows[0, -1].cpu()
        ids = torch.from_numpy(self.users[users])
        return self.steps.models(of_rows(self.sent, users), self.lengths[users], rows[:1, : self.numbers], ids)


class CoupleAll(Aggregator):
    """Aggregator side for any coupling.

    It keeps the last models [K, m], which stand in for the IVs of users who were not heard, and Ω if it is learned.
    """

    models: Tensor
    rounds: Tensor

    def __init__(self, start: Tensor, descent: Descent, solver: NetworkSolver) -> None:
        super().__init__()
        self.register_buffer("models", start)
        self.register_buffer("rounds", torch.tensor(0))
        self.structure = descent
        self.rate = solver.rate

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        m = self.models.shape[1]
        steps = torch.zeros(len(self.models), dtype=torch.float64, device=ivs.device)
        steps[users] = ivs[:, m].double()
        W = with_rows(self.models, users, ivs[:, :m].to(self.models))
        self.models = self.structure.all_models(W, steps, self.rate(int(self.rounds)))
        self.rounds = self.rounds + 1
        return self.models

    def agree(self, users: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"coupled": self.models}

    def figure_state(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.named_buffers() if name.startswith("structure.Omega")}


class CoupleBySums(Aggregator):
    """The base of both aggregator sides: the steps on the penalty, and the buffer `rounds`, the number of updates."""

    rounds: Tensor

    def __init__(self, steps: PenaltySteps) -> None:
        super().__init__()
        self.steps = steps
        self.structure = steps.form  # computes the penalty
        self.register_buffer("rounds", torch.tensor(0))


class CoupleModels(CoupleBySums):
    """Aggregator side for IVs: takes the steps of `SendTerms` for all users.

    Buffers: `sent` [K, m], what users sent last (at the start, their first models), and `lengths` [K], the lengths of
    their steps on the penalty.
    """

    sent: Tensor
    lengths: Tensor

    def __init__(self, start: Tensor, steps: PenaltySteps) -> None:
        super().__init__(steps)
        self.register_buffer("sent", start)
        self.register_buffer("lengths", torch.zeros(len(start), dtype=torch.float64))

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        m = self.sent.shape[1]
        self.sent = with_rows(self.sent, users, ivs[:, :m].to(self.sent))
        lengths = self.steps.rate(int(self.rounds)) * ivs[:, m].double().cpu()
        self.lengths = with_rows(self.lengths, users, lengths)
        self.rounds = self.rounds + 1
        return self._models()

    def agree(self, users: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"coupled": self._models()}

    def _models(self) -> Tensor:
        return self.steps.models(self.sent, self.lengths, self.steps.sums(self.sent))


class CoupleTerms(CoupleBySums):
    """Aggregator side for terms: keeps the sums S, int64 [1, q·m], and t, both of which go to all users."""

    S: Tensor

    def __init__(self, start: Tensor, steps: PenaltySteps) -> None:
        super().__init__(steps)
        self.register_buffer("S", steps.sums(start))

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        self.S = self.steps.grid.added(self.S, added(ivs).to(self.S.device))
        self.rounds = self.rounds + 1
        return torch.cat([self.S, self.rounds.to(self.S).view(1, 1)], dim=1)

    def agree(self, users: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sent, lengths = users["coupling.sent"], users["coupling.lengths"]
        self.S = self.steps.sums(sent)
        return {"coupled": self.steps.models(sent, lengths, self.S), "coupling.rounds": self.rounds}


CouplingAggregator = CoupleAll | CoupleModels | CoupleTerms


@dataclass(frozen=True, eq=False)
class PenaltyCoupling:
    """How the regularizer of a problem couples numbers that users train.

    Raises:
        ConfigError: the regularizer needs more than the messages contain.
    """

    problem: Problem
    solver: NetworkSolver

    def sides(self, start: Tensor, messages: MessageKind) -> tuple[SendModels, CouplingAggregator]:
        """Return what users send and receive, and the aggregator, for numbers that start at `start` [n]."""
        self.solver.rate(0)  # raises if the solver has no step size
        problem, start = self.problem, start.expand(self.problem.K, -1)
        form = form_of(problem)
        if form is None:
            descent = self._descent(problem.regularizer, start.shape[1])
            if messages == "ivs":
                return SendModels(start.shape[1]), CoupleAll(start, descent, self.solver)
            if isinstance(descent, LearnedPenalty) or (descent.A - descent.A.diag().diag()).any():
                raise no_sums(f"FedU with {type(problem.regularizer).__name__}")
            raise ConfigError(
                "This regularizer does not couple the models, so there are no sums. Choose regularizer=mean, or "
                "algorithm=local_networks, which sends nothing."
            )
        steps = PenaltySteps(form, self.solver, problem.grid)
        if messages == "ivs":
            return SendModels(start.shape[1]), CoupleModels(start, steps)
        return SendTerms(start[problem.users], steps, problem.users), CoupleTerms(start, steps)

    def take(self, aggregator: CouplingAggregator, facts: Tensor) -> None:
        """Prepare the regularizer of an aggregator for the users who reported these facts [K, f]."""
        if isinstance(aggregator, CoupleAll) and facts.shape[1]:
            regularizer = self.problem.regularizer.prepared(facts).to(aggregator.models.device)
            aggregator.structure = self._descent(regularizer, aggregator.models.shape[1])

    def _descent(self, regularizer: Regularizer, n: int) -> Descent:
        if regularizer.learns:
            return LearnedPenalty(regularizer, self.problem.K, n).to(self.problem.s.device)
        Omega = regularizer.start_omega(self.problem.K).to(self.problem.s)
        return PenaltyDescent(regularizer, Omega)


def form_of(problem: Problem) -> Form | None:
    """Return the form of A if coupling steps need only sums over all users, otherwise None."""
    regularizer = problem.regularizer
    if regularizer.learns or problem.facts().shape[1]:
        return None
    form = regularizer.form(regularizer.start(problem.K, problem.size).to(problem.s))
    return form if form is not None and form.q and bool((form.delta == form.delta[0]).all()) else None
