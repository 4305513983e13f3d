"""The two sides of learning on duals: users who improve their own, and an aggregator that couples them.

K users, n rows each (padded), d features. Messages hold one user per row: IVs ΔV [K, d]; models W [K, d], or
[K, d + 2] where users have to learn of another A, with B_kk and σ′ as further columns.
"""

import numpy as np
import torch
from torch import Tensor

from hmtl.mtl.algorithms.base import NOBODY, Aggregator, Ids, Users, with_rows
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem, sigma_prime
from hmtl.mtl.regularizers import Regularizer, SharedModel
from hmtl.mtl.solvers import LocalSolver


class DualUsers(Users):
    """User side: rows, models W [K, d], curvature c = γσ′B_kk [K], duals a [K, n], and those that are `pending`.

    While a user is `waiting`, its new duals stand in `pending` [K, n] and not in a: an aggregator whose V took them in
    and one whose V did not are both right until the user knows which it is, and then V = Σ_j a_j x_j holds.
    """

    state: tuple[str, ...] = ("a", "W", "curvature", "newest")

    def __init__(
        self, problem: Problem, solver: LocalSolver, gamma: float, seed: int, participation: Participation
    ) -> None:
        self.problem, self.solver, self.gamma, self.seed = problem, solver, gamma, seed
        self.participation = participation
        rows = problem.rows
        self.numbers = problem.d
        self.a = torch.zeros_like(rows.y)
        self.W = torch.zeros_like(rows.X[:, 0])
        self.curvature = torch.zeros_like(rows.s)
        self.pending, self.waiting = self.a, np.zeros(problem.K, dtype=bool)
        self.newest = torch.tensor(0)  # a user who has the newest model

    def local_update(
        self, round: int, idle: Ids = NOBODY, order: Tensor | None = None, budgets: Tensor | None = None
    ) -> tuple[Ids, Tensor]:
        """One local pass: who takes part, and their IVs Δv_k, [n, d].

        Args:
            round: names the random order, with the seed and the user.
            idle: users who take no part; those whose last update is not settled have to be among them.
            order: rows to visit [K, S], instead of a random order.
            budgets: steps of each user [K], 0..S, instead of the solver's and participation's.

        Raises:
            ValueError: a user would begin another update before its last one is settled.
        """
        drawn, usual = self.solver.draw(self.seed, round, range(self.problem.K), self.problem.rows.counts)
        order = drawn if order is None else order
        budgets = self.participation.budgets(usual, self.seed, round) if budgets is None else budgets.clone()
        budgets[idle] = 0
        working = budgets.numpy() > 0
        if (self.waiting & working).any():
            raise ValueError(
                f"The last updates of users {(self.waiting & working).nonzero()[0].tolist()} are neither committed nor "
                "rolled back: settle them first, or name these users idle."
            )
        a, dV = self.solver.solve(self.problem.loss, self.problem.rows, self.a, self.W, self.curvature, order, budgets)
        waiting = self.waiting.nonzero()[0]
        self.pending = with_rows(a, waiting, self.pending[waiting]) if len(waiting) else a
        self.waiting |= working
        return working.nonzero()[0], dV if working.all() else dV[working]

    def commit(self, users: Ids) -> None:
        users = users[self.waiting[users]]
        if len(users) == len(self.a):
            self.a = torch.lerp(self.a, self.pending, self.gamma)
        else:
            self.a = with_rows(self.a, users, torch.lerp(self.a[users], self.pending[users], self.gamma))
        self.waiting[users] = False

    def roll_back(self, users: Ids) -> None:
        self.waiting[users] = False

    def receive(self, users: Ids, models: Tensor) -> None:
        self.W = with_rows(self.W, users, models[:, : self.numbers].contiguous())
        self.newest = torch.tensor(users[0]) if len(users) else self.newest
        if models.shape[1] > self.numbers:
            self.learn(users, models[:, self.numbers :])

    def learn(self, users: Ids, extras: Tensor) -> None:
        """Take B_kk and σ′, [n, 2]."""
        self.curvature = with_rows(self.curvature, users, self.gamma * extras[:, 0] * extras[:, 1])

    def measure(self) -> dict[str, Tensor]:
        """Σ s ℓ and Σ s ℓ* (scalars), W and V = Σ_j s a_j x_j [K, d], train and test error [K].

        Where all users share one model, W has the newest for everybody, also for those who missed it: of models that
        differ, R were infinite, and P no bound.
        """
        shared = isinstance(self.problem.regularizer, SharedModel)
        W = self.W[self.newest].repeat(len(self.W), 1).T if shared else self.W.T
        return {
            "losses": self.problem.losses(W),
            "conjugates": self.problem.conjugates(self.a),
            "W": W.T,
            "V": self.problem.combined(self.a).T,
            "train_error": self.problem.errors(W, "train"),
            "test_error": self.problem.errors(W, "test"),
        }

    def local_work(self, round: int, user: int) -> None:
        rows, one = self.problem.rows.of(user), slice(user, user + 1)
        order, budgets = self.solver.draw(self.seed, round, [user], rows.counts)
        a = self.a[one, : rows.counts[0]]
        self.solver.solve(self.problem.loss, rows, a, self.W[one], self.curvature[one], order, budgets)

    def state_dict(self) -> dict[str, Tensor]:
        state = {name: getattr(self, name).clone() for name in self.state}
        waiting = torch.from_numpy(self.waiting.nonzero()[0])
        return state | {"waiting": waiting, "pending": self.pending[waiting]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].to(getattr(self, name), copy=True))
        users = state["waiting"].numpy()
        self.pending = with_rows(self.a, users, state["pending"].to(self.a, copy=True))
        self.waiting[:] = False
        self.waiting[users] = True


class LoneUsers(DualUsers):
    """User side of users who share nothing: each computes its own model, w_k = B_kk v_k, and sends no numbers."""

    state = (*DualUsers.state, "V")

    def __init__(
        self, problem: Problem, solver: LocalSolver, gamma: float, seed: int, participation: Participation
    ) -> None:
        super().__init__(problem, solver, gamma, seed, participation)
        self.numbers, self.V = 0, torch.zeros_like(self.W)

    def local_update(
        self, round: int, idle: Ids = NOBODY, order: Tensor | None = None, budgets: Tensor | None = None
    ) -> tuple[Ids, Tensor]:
        users, self._steps = super().local_update(round, idle, order, budgets)
        return users, self._steps[:, :0]

    def commit(self, users: Ids) -> None:
        super().commit(users)
        self.V = with_rows(self.V, users, self.V[users] + self.gamma * self._steps)
        self.W = self.scale[:, None] * self.V

    def learn(self, users: Ids, extras: Tensor) -> None:
        super().learn(users, extras)
        self.scale = extras[:, 0]


class DualAggregator(Aggregator):
    """Aggregator side: V [K, d], Ω and B = A⁻¹ [K, K], the number of updates so far, and who knows the present A.

    Users learn B_kk and σ′ with the models that follow a change of A. Some may miss these; so they go out again until
    everybody was heard once: a user who missed a model takes no part until one comes.
    """

    state = ("V", "Omega", "rounds", "untold")

    def __init__(self, regularizer: Regularizer, V: Tensor, omega_every: int, gamma: float) -> None:
        self.regularizer, self.V, self.omega_every, self.gamma = regularizer, V, omega_every, gamma
        self.Omega = regularizer.start_omega(len(V)).to(V)
        self.rounds = torch.tensor(0)
        self.untold = torch.zeros(len(V), dtype=torch.bool)
        self._couple()

    def prepare(self, facts: Tensor) -> Tensor:
        """What the users told of themselves, [K, f], to B_kk and σ′ for each of them, [K, 2]."""
        self.regularizer = self.regularizer.prepared(facts).to(self.V.device)
        self.Omega = self.regularizer.start_omega(len(self.V)).to(self.V)
        self._couple()
        return self.curvature()

    def _couple(self) -> None:
        self.B = self.regularizer.inverse_coupling(self.Omega)

    @torch.no_grad()
    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        self.V = self.V.index_add(0, torch.from_numpy(users).to(self.V.device), self.gamma * ivs)
        self.rounds += 1
        self.untold[users] = False  # who takes part has had the last round's model
        if self.omega_every > 0 and int(self.rounds) % self.omega_every == 0:
            self.Omega = self.regularizer.update_omega((self.B @ self.V).T, self.Omega)
            self._couple()
            self.untold[:] = True
        W = self.B @ self.V  # from V, never from the last W: A may have changed
        if not self.untold.any():
            return W
        return torch.cat([W, self.curvature()], dim=1)

    def curvature(self) -> Tensor:
        """B_kk and σ′ for each user, [K, 2]."""
        sigma = torch.full_like(self.V[:, :1], sigma_prime(self.B))
        return torch.cat([self.B.diagonal()[:, None], sigma], dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in self.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].to(getattr(self, name), copy=True))
        self._couple()
