"""MOCHA: federated multi-task learning by primal-dual updates, certified by the duality gap.

K users, n rows each (padded), d features. Messages hold one user per row: IVs ΔV [K, d]; models W [K, d], or
[K, d + 2] in a round that changed A, with B_kk and σ′ as further columns.
"""

from typing import Any

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.base import Algorithm
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem, Rows, sigma_prime
from hmtl.mtl.regularizers import Regularizer, Ridge, SharedModel
from hmtl.mtl.solvers import LocalSolver


class MOCHA(Algorithm):
    """Local dual ascent at the users, W = V A⁻¹ at the aggregator, Ω learned every few rounds.

    Args:
        problem: data, loss, regularizer.
        solver: the users' local solver.
        omega_every: rounds between updates of Ω; 0 for never.
        gamma: γ in (0, 1], the share of each local update that is applied; 1 adds them all, safely, since σ′ allows it.
        seed: of the order in which users visit their rows, and of participation.
        participation: who does how much in a round; the IV of a user who drops out is zero.

    Raises:
        ConfigError: the solver cannot work with the loss, or a number is out of its range.

    Ref: Smith et al. 2017; Hu et al. 2022, section V.
    """

    def __init__(
        self,
        problem: Problem,
        solver: LocalSolver,
        omega_every: int = 10,
        gamma: float = 1.0,
        seed: int = 0,
        participation: Participation = Participation(),  # noqa: B008, it is frozen
    ) -> None:
        if not isinstance(solver, LocalSolver):
            raise ConfigError(
                f"{type(self).__name__} works on duals, {type(solver).__name__} does not. Choose solver=sdca."
            )
        solver.check(problem.loss)
        participation.check(problem.K)
        if omega_every < 0:
            raise ConfigError(f"omega_every={omega_every} is negative. Give a number of rounds, or 0 for never.")
        if not 0 < gamma <= 1:
            raise ConfigError(f"gamma={gamma} is not in (0, 1]: more than the whole update is never safe.")
        self.problem, self.solver, self.seed, self.participation = problem, solver, seed, participation
        self._users = _Users(problem.rows, gamma)
        self._aggregator = _Aggregator(problem.regularizer, torch.zeros_like(self._users.W), omega_every, gamma)
        # what holds before the first round follows from the configuration, so everyone knows it unsaid
        self._users.receive(self._aggregator.models(changed=True))

    def local_update(self, round: int, order: Tensor | None = None, budgets: Tensor | None = None) -> Tensor:
        """One local pass of every user: IVs Δv_k, [K, d].

        Args:
            round: names the random order, with the seed and the user.
            order: rows to visit [K, S], instead of a random order.
            budgets: steps of each user [K], 0..S, instead of the solver's and participation's.
        """
        drawn, usual = self.solver.draw(self.seed, round, range(self.problem.K), self.problem.rows.counts)
        order = drawn if order is None else order
        budgets = self.participation.budgets(usual, self.seed, round) if budgets is None else budgets
        users = self._users
        a, dV = self.solver.solve(self.problem.loss, users.rows, users.a, users.W, users.curvature, order, budgets)
        users.a = torch.lerp(users.a, a, users.gamma)
        return dV

    def local_work(self, round: int, user: int) -> None:
        rows, one, users = self._users.rows.of(user), slice(user, user + 1), self._users
        order, budgets = self.solver.draw(self.seed, round, [user], rows.counts)
        a = users.a[one, : rows.counts[0]]
        self.solver.solve(self.problem.loss, rows, a, users.W[one], users.curvature[one], order, budgets)

    def global_update(self, ivs: Tensor) -> Tensor:
        return self._aggregator.update(ivs)

    def receive(self, models: Tensor) -> None:
        self._users.receive(models)

    @property
    def W(self) -> Tensor:
        return self._users.W.T

    @property
    def Omega(self) -> Tensor:
        """Ω [K, K]."""
        return self._aggregator.Omega

    @property
    def a(self) -> Tensor:
        """Dual variables [K, n]; they never leave the users."""
        return self._users.a

    def metrics(self) -> dict[str, float]:
        primal = self.problem.primal(self.W, self.Omega)
        dual = self.problem.dual(self.a, self.Omega)
        return {"primal": primal, "dual": dual, "gap": primal - dual, **super().metrics()}

    def state_dict(self) -> dict[str, Any]:
        return {
            side: {name: getattr(of, name).clone() for name in of.state}
            for side, of in (("users", self._users), ("aggregator", self._aggregator))
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for side, of in (("users", self._users), ("aggregator", self._aggregator)):
            for name in of.state:
                setattr(of, name, state[side][name].to(getattr(of, name), copy=True))
        self._aggregator.couple()


class Local(MOCHA):
    """Every user for itself: MOCHA without coupling, R = (λ/2)‖W‖², whatever the problem's own regularizer.

    Args:
        lam: λ.
        others: as in `MOCHA`.
    """

    def __init__(self, problem: Problem, solver: LocalSolver, lam: float, **others: Any) -> None:
        super().__init__(problem.regularized(Ridge(lam)), solver, omega_every=0, **others)


class CoCoA(MOCHA):
    """One model w for all users, R = (λ/2)‖w‖², whatever the problem's own regularizer: CoCoA+, or CoCoA.

    Args:
        lam: λ.
        adding: add the users' updates, each made with σ′ = K (CoCoA+); otherwise average them, with σ′ = 1 (CoCoA).
        others: as in `MOCHA`.

    Ref: Jaggi et al. 2014; Ma et al. 2015.
    """

    def __init__(self, problem: Problem, solver: LocalSolver, lam: float, adding: bool = True, **others: Any) -> None:
        one = problem.regularized(SharedModel(lam))
        super().__init__(one, solver, omega_every=0, gamma=1.0 if adding else 1 / problem.K, **others)


class _Users:
    """User side: rows, duals a [K, n], models W [K, d], curvature c = γσ′B_kk [K]."""

    state = ("a", "W", "curvature")

    def __init__(self, rows: Rows, gamma: float) -> None:
        self.rows, self.gamma = rows, gamma
        self.a = torch.zeros_like(rows.y)
        self.W = torch.zeros_like(rows.X[:, 0])
        self.curvature = torch.zeros_like(rows.s)

    def receive(self, models: Tensor) -> None:
        d = self.W.shape[1]
        self.W = models[:, :d].contiguous()
        if models.shape[1] > d:
            self.curvature = self.gamma * models[:, d] * models[:, d + 1]


class _Aggregator:
    """Aggregator side: V [K, d], Ω and B = A⁻¹ [K, K], and the number of rounds so far."""

    state = ("V", "Omega", "rounds")

    def __init__(self, regularizer: Regularizer, V: Tensor, omega_every: int, gamma: float) -> None:
        self.regularizer, self.V, self.omega_every, self.gamma = regularizer, V, omega_every, gamma
        self.Omega = regularizer.start_omega(len(V)).to(V)
        self.rounds = torch.tensor(0)
        self.couple()

    def couple(self) -> None:
        self.B = self.regularizer.inverse_coupling(self.Omega)

    @torch.no_grad()
    def update(self, ivs: Tensor) -> Tensor:
        self.V = self.V + self.gamma * ivs
        self.rounds += 1
        changed = self.omega_every > 0 and int(self.rounds) % self.omega_every == 0
        if changed:
            self.Omega = self.regularizer.update_omega((self.B @ self.V).T, self.Omega)
            self.couple()
        return self.models(changed)

    def models(self, changed: bool) -> Tensor:
        W = self.B @ self.V  # from V, never from the last W: A may have changed
        if not changed:
            return W
        sigma = torch.full_like(W[:, :1], sigma_prime(self.B))
        return torch.cat([W, self.B.diagonal()[:, None], sigma], dim=1)
