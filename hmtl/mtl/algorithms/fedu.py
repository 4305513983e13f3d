"""FedU: a network for each user, coupled by the regularizer.

K users, m parameters. `fedu_sums` has the two sides for a coupling that needs only sums over the users.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hmtl.errors import ConfigError, RangeError
from hmtl.mtl.algorithms.base import Aggregator, Ids, MessageKind, Users, no_sums, with_rows
from hmtl.mtl.algorithms.fedu_sums import (
    CoupleBySums,
    CoupleModels,
    CoupleTerms,
    PenaltySteps,
    SendCouplingTerms,
    parts_of,
)
from hmtl.mtl.algorithms.networks import NetworkAlgorithm, NetworkUsers, Sending
from hmtl.mtl.algorithms.setup_exchange import SetupAggregator, SetupUsers
from hmtl.mtl.penalties import gradient_step, implicit_step
from hmtl.mtl.problem import Problem, Rows
from hmtl.mtl.regularizers import Regularizer, Relation, dense
from hmtl.mtl.solvers.networks import NetworkSolver
from hmtl.mtl.sums import Form

BLOCK = 2**22  # numbers in a block of models


class FedUUsers(NetworkUsers):
    """User side: the last column of IVs [n, m + 1] is the number of local steps."""

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        (models,) = super()._train(round, users, rows, budgets)
        return (torch.cat([models, budgets[:, None].to(models)], dim=1),)

    def blocks(self) -> Iterator[Tensor]:
        width = max(1, BLOCK // self.problem.K)
        return iter(self.W.split(width, dim=1))  # type: ignore[no-untyped-call]  # torch's split


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


class FedUAggregator(Aggregator):
    """Aggregator side for any coupling.

    It keeps the last models [K, m], which stand in for the IVs of users who were not heard, and Ω if it is learned.
    """

    models: Tensor
    rounds: Tensor

    def __init__(self, start: Tensor, descent: Descent, solver: NetworkSolver) -> None:
        super().__init__()
        self.register_buffer("models", start)
        self.register_buffer("rounds", torch.tensor(0))
        self.descent = descent
        self.rate = solver.rate

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        m = self.models.shape[1]
        steps = torch.zeros(len(self.models), dtype=torch.float64, device=ivs.device)
        steps[users] = ivs[:, m].double()
        W = with_rows(self.models, users, ivs[:, :m].to(self.models))
        self.models = self.descent.all_models(W, steps, self.rate(int(self.rounds)))
        self.rounds = self.rounds + 1
        return self.models

    def agree(self, users: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"W": self.models}

    def figure_state(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.named_buffers() if name.startswith("descent.Omega")}

    @property
    def structure(self) -> Descent:
        """What computes the penalty."""
        return self.descent


CouplingAggregator = FedUAggregator | CoupleModels | CoupleTerms


def relation_of(aggregator: CouplingAggregator) -> Relation | None:
    """Return the Ω that the aggregator has learned, or None if the coupling is fixed."""
    return aggregator.structure.Omega if isinstance(aggregator.structure, LearnedPenalty) else None


@dataclass(frozen=True, eq=False)
class PenaltyCoupling:
    """How the regularizer of a problem couples numbers that users train by SGD.

    Raises:
        ConfigError: the regularizer needs more than the messages contain.
    """

    problem: Problem
    solver: NetworkSolver

    def sides(self, start: Tensor, messages: MessageKind) -> tuple[Sending, CouplingAggregator]:
        """Return what users send and receive, and the aggregator, for numbers that start at `start` [m]."""
        self.solver.rate(0)  # raises if the solver has no step size
        problem, start = self.problem, start.expand(self.problem.K, -1)
        form, sending = form_of(problem), Sending(start.shape[1])
        if form is None:
            descent = self._descent(problem.regularizer, start.shape[1])
            if messages == "ivs":
                return sending, FedUAggregator(start, descent, self.solver)
            if isinstance(descent, LearnedPenalty) or (descent.A - descent.A.diag().diag()).any():
                raise no_sums(f"FedU with {type(problem.regularizer).__name__}")
            raise ConfigError(
                "This regularizer does not couple the models, so there are no sums. Choose regularizer=mean, or "
                "algorithm=local_networks, which sends nothing."
            )
        steps = PenaltySteps(form, self.solver, problem.grid)
        if messages == "ivs":
            return sending, CoupleModels(start, steps)
        return SendCouplingTerms(start[problem.users], steps, problem.users), CoupleTerms(start, steps)

    def setup(self, aggregator: Aggregator) -> tuple[SetupUsers, SetupAggregator] | None:
        """Return the two sides of the exchange before the first round; None if `aggregator` needs none."""
        facts = self.problem.facts()
        if not isinstance(aggregator, FedUAggregator) or not facts.shape[1]:
            return None

        def answer(facts: Tensor) -> Tensor:
            regularizer = self.problem.regularizer.prepared(facts).to(aggregator.models.device)
            aggregator.descent = self._descent(regularizer, aggregator.models.shape[1])
            return facts[:, :0]

        return SetupUsers(facts), SetupAggregator(answer, self.problem.K)

    def _descent(self, regularizer: Regularizer, m: int) -> Descent:
        if regularizer.learns:
            return LearnedPenalty(regularizer, self.problem.K, m).to(self.problem.s.device)
        Omega = regularizer.start_omega(self.problem.K).to(self.problem.s)
        return PenaltyDescent(regularizer, Omega)


class FedU(NetworkAlgorithm):
    """R_k SGD steps at user k, then w_k ← w_k − μ_t·R_k·Σ_l A_kl w_l at the aggregator, for all users at once.

    With A = ηL, that is w_k − μ_t·R_k·η·Σ_l a_kl (w_k − w_l). Steps of both kinds weigh the same for any minibatches
    and numbers of steps, so models approach a stationary point of P as μ_t falls. If μ_t·R_k times the largest
    eigenvalue of A is at least 2, the step is taken in as many parts as stability needs.

    If the regularizer needs only sums, each user takes its own coupling step from what all users sent last (see
    `PenaltySteps`); for a user who was not heard, what it sent last still counts.

    If the regularizer learns Ω, the aggregator learns it from the users' models in each round, and takes implicit steps
    (see `LearnedPenalty`).

    Args, Raises: as in `NetworkAlgorithm`.

    Ref: Dinh et al. 2021, algorithm 1.
    """

    vectors = ("W",)
    aggregator: CouplingAggregator

    @classmethod
    def sums_needed(cls, problem: Problem) -> int:
        form = form_of(problem)
        return form.q if form is not None else 0

    def _sides(self, messages: MessageKind) -> tuple[Users, Aggregator]:
        self.model.check_no_buffers("FedU")
        coupling = PenaltyCoupling(self.problem, self.solver)
        sending, aggregator = coupling.sides(self.model.start, messages)
        return FedUUsers(self._local, sending), aggregator

    def setup(self) -> tuple[Users, Aggregator] | None:
        return PenaltyCoupling(self.problem, self.solver).setup(self.aggregator)

    @property
    def relation(self) -> Relation | None:
        return relation_of(self.aggregator)

    @torch.no_grad()
    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        penalty = sum(self.aggregator.structure.penalty(block) for block in blocks)
        return {"primal": float(measured["losses"].sum() + penalty)}

    def _objective_terms(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(self.aggregator, CoupleBySums)  # users send terms
        assert isinstance(self.users, FedUUsers)
        steps, W, users = self.aggregator.steps, self.users.W, torch.from_numpy(self.problem.users)
        squares = steps.form.squares(W, users)
        return super()._objective_terms(own) | {"W squares": squares, "W": steps.terms(W, users).flatten(1)}

    def _objective_of_sums(self, sums: dict[str, Tensor]) -> dict[str, float]:
        assert isinstance(self.aggregator, CoupleBySums)  # users send terms
        form = self.aggregator.steps.form
        return {"primal": float(sums["losses"] + form.value(sums["W squares"], form.by_sum(sums["W"])))}


def form_of(problem: Problem) -> Form | None:
    """Return the form of A if coupling steps need only sums over all users, otherwise None."""
    regularizer = problem.regularizer
    if regularizer.learns or problem.facts().shape[1]:
        return None
    form = regularizer.form(regularizer.start(problem.K, problem.size).to(problem.s))
    return form if form is not None and form.q and bool((form.delta == form.delta[0]).all()) else None
