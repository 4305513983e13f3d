"""FedU: any network, one per user, coupled by the regularizer."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.errors import ConfigError, RangeError
from hmtl.mtl.algorithms.base import Aggregator, Ids, Users, no_sums, with_rows
from hmtl.mtl.algorithms.gradient_sums import Pull, PullingSums, PullingUsers
from hmtl.mtl.algorithms.gradients import ByGradients, Mixing, ModelUsers, told_nothing
from hmtl.mtl.algorithms.setup import SetupAggregator, SetupUsers
from hmtl.mtl.regularizers import Regularizer
from hmtl.mtl.structure import Dense, Sparse, by_entries

MOST_PARTS = 2**31  # of a step down the regularizer


class FedU(ByGradients):
    """R_k gradient steps at user k, then w_k ← w_k − μ_t·R_k·Σ_l A_kl w_l at the aggregator, all users at once.

    With A = ηL that is w_k − μ_t·R_k·η·Σ_l a_kl (w_k − w_l). A step of either kind weighs the same, however large the
    minibatches and whoever did how many, so that as μ_t falls the models approach a stationary point of P. A step so
    long that the models would diverge, μ_t·R_k times A's largest eigenvalue ≥ 2, is made in as many parts as it takes.

    Where the regularizer has sums, users make their own coupling steps from what all sent last, see `Pull`, and a user
    who was not heard counts with that.

    Args, Raises: as in `ByGradients`; the regularizer must not learn Ω.

    Ref: Dinh et al. 2021, algorithm 1.
    """

    aggregator: "Coupling | Pulling | PullingSums"

    def _users(self) -> ModelUsers:
        return ModelUsers(self.problem, self.solver, self.model, self.seed, self.participation, tells_steps=True)

    def _aggregator(self, start: Tensor) -> "Coupling | Pulling":
        steps = int(self._steps().max())
        coupling = Coupling(start, self.problem.regularizer, self.solver.rate, steps, self.participation.complete)
        pull = self._pull(coupling)
        return coupling if pull is None else Pulling(start, pull, self.solver.rate)

    def _pull(self, coupling: "Coupling") -> Pull | None:
        """How models are made of sums, on any side; None where that takes all IVs, or none."""
        form = self.problem.regularizer.form(torch.empty_like(coupling.A))
        if form is None or not form.q or (form.delta != form.delta[0]).any() or self.problem.facts().shape[1]:
            return None
        return Pull(form, coupling.steepest, self.problem.grid)

    @property
    def q(self) -> int:
        return self.aggregator.pull.form.q if isinstance(self.aggregator, Pulling) else 0

    def in_sums(self) -> None:
        dense = self.aggregator
        if isinstance(dense, Coupling) and not (dense.A - dense.A.diag().diag()).any():
            raise ConfigError(
                "There are no sums where models are not coupled: choose communicator=partial, by which no IV has to "
                "pass the server, or regularizer=mean."
            )
        if not isinstance(dense, Pulling):
            raise no_sums(f"FedU with {type(self.problem.regularizer).__name__}")
        inner = self._users()
        self.users = PullingUsers(inner, dense.pull, self.solver.rate)
        self.aggregator = PullingSums(self._start(), dense.pull)

    def _steps(self) -> Tensor:
        """The usual number of steps of each user [K, 1], which exceeds what a straggler takes."""
        return self.solver.steps(self.problem.counts)[:, None]

    def setup(self) -> tuple[Users, Aggregator] | None:
        facts = self.problem.facts()
        if not isinstance(self.aggregator, Coupling) or (not facts.shape[1] and self.aggregator.reach is None):
            return None
        told = torch.cat([facts, self._steps()[self.problem.users].to(facts)], dim=1)
        return SetupUsers(told, told_nothing), SetupAggregator(self.aggregator.prepare, self.problem.K)

    @torch.no_grad()
    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        penalty = sum(self.aggregator.structure.penalty(block) for block in blocks)
        return {"primal": float(measured["s"] @ measured["losses"] + penalty)}


class Coupling(Mixing):
    """FedU's: steps down the penalty ½ tr(W A Wᵀ).

    Where A has few entries other than zero, a model hangs on few others', and is computed from these alone.

    Args:
        start: [K, m], the users' first models.
        regularizer: gives A.
        rate: μ_t of a round t, which never grows.
        most: R_k of the user who takes the most steps in a round.
        complete: whether all users and relays take part in each round.
    """

    def __init__(
        self, start: Tensor, regularizer: Regularizer, rate: Callable[[int], float], most: int, complete: bool = True
    ) -> None:
        super().__init__(start)
        if regularizer.learns:
            raise ConfigError(
                f"{type(regularizer).__name__} learns how the tasks relate, FedU is told. "
                "Choose regularizer=graph, mean or ridge."
            )
        self.regularizer, self.rate, self.most, self.complete = regularizer, rate, most, complete
        self._couple()

    def _couple(self) -> None:
        K, device = len(self.models), self.models.device
        Omega = self.regularizer.start_omega(K).to(device, torch.float64)
        self.regularizer.inverse_coupling(Omega)  # refuses what is no coupling
        self.A = self.regularizer.coupling(Omega)
        self.steepest = float(torch.linalg.eigvalsh(self.A)[-1])
        self.reach = _reach((self.A != 0).cpu(), self._parts(self.rate(0) * self.most))
        self._mixing = Dense(self.A) if self.reach is None else Sparse(self.A)
        self.structure = self.regularizer.form(Omega) or by_entries(self.A)

    def prepare(self, facts: Tensor) -> Tensor:
        """What the users told of themselves, their steps the last of it [K, f + 1], to what they are told, nothing."""
        self.regularizer = self.regularizer.prepared(facts[:, :-1]).to(self.models.device)
        self.most = int(facts[:, -1].max())
        self._couple()
        return facts[:, :0]

    def needs(self) -> NDArray[np.bool_] | None:
        if self.reach is not None and not self.complete:
            raise ConfigError(
                "Users or relays drop out, and what stands in for an absent user's IV, the last model made for it, is "
                "known to the relay alone that made it. Choose participation=full, or another communicator."
            )
        return self.reach

    def part(self, of: Ids, users: Ids, ivs: Tensor, rounds: int) -> Tensor:
        m = self.models.shape[1]
        W, steps = ivs[:, :m].to(self.models), ivs[:, m].double()
        at = torch.from_numpy(users).to(W.device)
        mixed = self._by_rows(Sparse(self.A[at][:, at]), W, steps, self.rate(rounds))
        return mixed[torch.from_numpy(np.searchsorted(users, of)).to(W.device)]

    def mixed(self, W: Tensor, steps: Tensor) -> Tensor:
        rate = self.rate(int(self.rounds))
        if isinstance(self._mixing, Sparse):
            return self._by_rows(self._mixing, W, steps, rate)
        lengths = rate * steps.to(self.A)
        return self._mixing.stepped(W, lengths, self._parts(float(lengths.max())))

    def _parts(self, length: float) -> int:
        """How many parts the longest step is made in."""
        longest = length * self.steepest
        if not longest < MOST_PARTS:
            raise RangeError(
                f"steps down the regularizer are {longest:.3g} times as long as the models bear: lower solver.step, or "
                "the strength of the regularizer."
            )
        return 1 if longest < 2 else math.ceil(longest)

    def _by_rows(self, A: Sparse, W: Tensor, steps: Tensor, rate: float) -> Tensor:
        """M·W of some users [n, m] and the coupling among them: right for each whose needs are among them.

        In as many parts as the longest step of all users could need, for not all relays know what it is.
        """
        return A.stepped(W, rate * steps.to(self.A), self._parts(rate * self.most))


def _reach(near: Tensor, hops: int) -> NDArray[np.bool_] | None:
    """For each user, whom so many hops along `near`, bool [K, K], lead to; None if that is more than half of all."""
    reach = near
    for _ in range(hops - 1):
        before, reach = reach, reach.float() @ near.float() > 0
        if torch.equal(before, reach) or reach.double().mean() > 0.5:
            break
    return None if reach.double().mean() > 0.5 else reach.numpy()


class Pulling(Aggregator):
    """FedU's, where the regularizer has sums: the steps that users make of these, for all of them.

    It keeps what users `sent` last [K, m], their first models before that, and the lengths of the steps behind it [K].

    Args:
        start: [K, m], the users' first models.
        rate: μ_t of a round t.
    """

    state = ("sent", "lengths", "rounds")

    def __init__(self, start: Tensor, pull: Pull, rate: Callable[[int], float]) -> None:
        self.sent, self.pull, self.rate, self.structure = start, pull, rate, pull.form
        self.lengths, self.rounds = torch.zeros(len(start), dtype=torch.float64), torch.tensor(0)

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        m = self.sent.shape[1]
        self.sent = with_rows(self.sent, users, ivs[:, :m].to(self.sent))
        lengths = self.rate(int(self.rounds)) * ivs[:, m].double().cpu()
        self.lengths = with_rows(self.lengths, users, lengths)
        self.rounds = self.rounds + 1
        return self.pull.models(self.sent, self.lengths, self.pull.sums(self.sent))

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in self.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].to(getattr(self, name), copy=True))
