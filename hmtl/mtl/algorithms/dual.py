"""The two sides of learning on duals: users who improve their own, and an aggregator that couples them.

K users, n rows each (padded), d features; where there are C classes, C·d and C·n stand for d and n. Messages hold one
user per row. IVs are ΔV [K, d], and r_k beside them where the learner is accelerated; models W [K, d], then β where it
is, and c_k where users have to learn of another A.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hmtl.mtl.algorithms.base import NOBODY, Aggregator, Ids, Users, with_rows
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem, Rows, sigma_prime
from hmtl.mtl.regularizers import Regularizer, SharedModel
from hmtl.mtl.solvers.sdca import LocalSolver
from hmtl.mtl.sums import Grid


class DualUsers(Users):
    """User side: rows, models W [K, d], curvature c [K], duals a [K, n], and those that are `pending`; `got` [K] is the
    round in which a user's model came.

    Accelerated, user k works as if its dual vector were v_k + β·(v_k − v_k,old), what it and all others would have with
    a step more in the direction of the last one: from the model w_k + β·(w_k − w_k,old), with v measured from there. It
    knows all of that but β. Ref: Beck and Teboulle 2009 (FISTA); O'Donoghue and Candès 2015 (restarts).

    While a user is `waiting`, its new duals stand in `pending` [K, n] and not in a: an aggregator whose V took them in
    and one whose V did not are both right until the user knows which it is, and then V = Σ_j a_j x_j holds.
    """

    state: tuple[str, ...] = ("a", "W", "curvature", "got", "step", "momentum", "beta", "waiting", "pending", "dV")

    def __init__(
        self,
        problem: Problem,
        solver: LocalSolver,
        gamma: float,
        seed: int,
        participation: Participation,
        accelerated: bool = False,
    ) -> None:
        self.accelerated = accelerated
        self.problem, self.solver, self.gamma, self.seed = problem, solver, gamma, seed
        self.participation = participation
        rows = problem.rows
        self.numbers = problem.size
        K = len(problem.users)
        self.a = rows.y.new_zeros(K, len(problem.scores) * rows.y.shape[1])
        self.W = rows.y.new_zeros(K, problem.size)
        self.curvature = torch.zeros_like(rows.s)
        self.pending, self.waiting = self.a, np.zeros(K, dtype=bool)
        self.got, self._round = torch.full((K,), -1), -1
        self.dV, self.step, self.momentum = (torch.zeros_like(self.W) for _ in range(3))
        self.beta = torch.zeros_like(rows.s)
        self._idle, self._committed = np.zeros((2, K), dtype=bool)

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
        here, K = self.problem.users, self.problem.K
        drawn, usual = self.solver.draw(self.seed, round, here, self.problem.here)
        order, self._round = drawn if order is None else order, round
        budgets = self.participation.budgets(usual, self.seed, round, here, K) if budgets is None else budgets.clone()
        budgets[idle] = 0
        working = budgets.numpy() > 0
        if (self.waiting & working).any():
            raise ValueError(
                f"The last updates of users {(self.waiting & working).nonzero()[0].tolist()} are neither committed nor "
                "rolled back: settle them first, or name these users idle."
            )
        start = self.W + self.beta[:, None] * self.momentum if self.accelerated else self.W
        a, dV = self._ascend(self.problem.scores, self.a, start, self.curvature, order, budgets)
        waiting = self.waiting.nonzero()[0]
        if len(waiting):
            a, dV = with_rows(a, waiting, self.pending[waiting]), with_rows(dV, waiting, self.dV[waiting])
        self.pending, self.dV = a, dV
        self.waiting |= working
        self._committed[:] = self._idle[:] = False
        self._idle[idle] = True
        if self.accelerated:  # did the last extrapolation lead away from where the step went?
            beyond = self.beta * torch.linalg.vecdot(self.step, dV) - torch.linalg.vecdot(dV, dV)
            dV = torch.cat([dV, (self.curvature * beyond)[:, None]], dim=1)
        return working.nonzero()[0], dV if working.all() else dV[working]

    def _ascend(
        self, scores: Sequence[Rows], a: Tensor, W: Tensor, curvature: Tensor, order: Tensor, budgets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A local pass for each score of a model: a user's subproblem falls apart into them."""
        solve, loss, C = self.solver.solve, self.problem.binary, len(scores)
        parts = zip(scores, a.chunk(C, 1), W.chunk(C, 1), strict=True)
        done = [solve(loss, rows, a_c, W_c, curvature, order, budgets) for rows, a_c, W_c in parts]
        return done[0] if C == 1 else (torch.cat([a for a, _ in done], 1), torch.cat([dV for _, dV in done], 1))

    def commit(self, users: Ids) -> None:
        users = users[self.waiting[users]]
        if len(users) == len(self.a):
            self.a = torch.lerp(self.a, self.pending, self.gamma)
        else:
            self.a = with_rows(self.a, users, torch.lerp(self.a[users], self.pending[users], self.gamma))
        self.waiting[users], self._committed[users] = False, True

    def roll_back(self, users: Ids) -> None:
        self.waiting[users] = False

    def receive(self, users: Ids, models: Tensor) -> None:
        W, extras = models[:, : self.problem.size].contiguous(), models[:, self.problem.size :]
        if self.accelerated:
            step = self.dV[users] * torch.from_numpy(self._committed[users])[:, None].to(W)
            drift = W - self.W[users] - self.curvature[users, None] * step
            drift[torch.from_numpy(self._idle[users])] = 0  # such a user does not know the last step
            self.step, self.momentum = with_rows(self.step, users, step), with_rows(self.momentum, users, drift)
            self.beta = with_rows(self.beta, users, extras[:, 0])
            extras = extras[:, 1:]
        self.W = with_rows(self.W, users, W)
        self.got[users] = self._round
        if extras.shape[1]:
            self.learn(users, extras)

    def learn(self, users: Ids, extras: Tensor) -> None:
        """Take c_k, [n, 1]."""
        self.curvature = with_rows(self.curvature, users, self.gamma * extras[:, 0])

    def measure(self) -> dict[str, Tensor]:
        """s ℓ and s ℓ* of each row [K, n], W and V = Σ_j s a_j x_j [K, d], train and test error [K].

        Where all users share one model, W has the newest for everybody, also for those who missed it: of models that
        differ, R were infinite, and P no bound.
        """
        shared = isinstance(self.problem.regularizer, SharedModel)
        W = self.W[self.got.argmax()].repeat(len(self.W), 1).T if shared else self.W.T
        return {
            "losses": self.problem.losses(W),
            "conjugates": self.problem.conjugates(self.a),
            "W": W.T,
            "V": self.problem.combined(self.a).T,
            "train_error": self.problem.errors(W, "train"),
            "test_error": self.problem.errors(W, "test"),
        }

    def local_work(self, round: int, user: int) -> None:
        scores, one = [rows.of(user) for rows in self.problem.scores], slice(user, user + 1)
        n = scores[0].counts[0]
        order, budgets = self.solver.draw(self.seed, round, self.problem.users[one], [n])
        a = self.a[one].view(len(scores), -1)[:, :n].reshape(1, -1)
        self._ascend(scores, a, self.W[one], self.curvature[one], order, budgets)

    def state_dict(self) -> dict[str, Tensor]:
        state = {name: torch.as_tensor(getattr(self, name)).clone() for name in self.state}
        settled = torch.from_numpy(~self.waiting)  # what these users did last is behind them
        state["pending"][settled], state["dV"][settled] = self.a[settled], 0
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].to(torch.as_tensor(getattr(self, name)), copy=True))
        self.waiting = state["waiting"].numpy().copy()


class DualAggregator(Aggregator):
    """Aggregator side: V [K, d], Ω and B = A⁻¹ [K, K], the number of updates so far, and who knows the present A.

    Where the learner is accelerated, it tells β, which follows from t, counted from the last restart: when the momentum
    points away from the step, Σ_k r_k > 0 with r_k = c_k (v_k,extrapolated − v_k,new)·(v_k,new − v_k). In the round
    after a change of A, in which models moved for another reason, β is 0; to restart there would cost more rounds.

    Where the regularizer has a `Form`, sums over users are those of the grid, whatever V they come from; so models are
    to the last bit those of users who make their own of the sums.

    Users learn c_k with the models that follow a change of A. Some may miss these; so they go out again until
    everybody was heard once: a user who missed a model takes no part until one comes.
    """

    state: tuple[str, ...] = ("V", "Omega", "rounds", "untold", "t", "gain")

    def __init__(
        self,
        regularizer: Regularizer,
        V: Tensor,
        gamma: float,
        *,
        omega_every: int,
        last: int | None,
        curvature: str,
        accelerated: bool,
        grid: Grid,
    ) -> None:
        self.grid = grid
        self.regularizer, self.V, self.gamma, self.accelerated = regularizer, V, gamma, accelerated
        self.omega_every, self.last, self.kind = omega_every, last, curvature
        self.Omega = regularizer.start_omega(len(V)).to(V)
        self.rounds = torch.tensor(0)
        self.untold = torch.zeros(len(V), dtype=torch.bool)
        self.t = torch.tensor(1.0, dtype=torch.float64)
        self.gain = torch.tensor(math.inf, dtype=torch.float64)  # by how much R fell when Ω was learned last
        self._couple()

    def prepare(self, facts: Tensor) -> Tensor:
        """What the users told of themselves, [K, f], to c_k for each of them, [K, 1]."""
        self.regularizer = self.regularizer.prepared(facts).to(self.V.device)
        self.Omega = self.regularizer.start_omega(len(self.V)).to(self.V)
        self._couple()
        return self.curvature()

    def _couple(self) -> None:
        self.B = self.regularizer.inverse_coupling(self.Omega)
        self.form = self.regularizer.sums(self.Omega)

    @torch.no_grad()
    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        d = self.V.shape[1]
        self.V = self.V.index_add(0, torch.from_numpy(users).to(self.V.device), self.gamma * ivs[:, :d])
        self.rounds += 1
        self.untold[users] = False  # who takes part has had the last round's model
        learns = self._learns()
        if learns:
            W, old = (self.B @ self.V).T, self.Omega
            self.Omega = self.regularizer.update_omega(W, old)
            self.gain = (self.regularizer(W, old) - self.regularizer(W, self.Omega)).to(self.gain)
            self._couple()
            self.untold[:] = True
        parts = [self._models()]  # from V, never from the last W: A may have changed
        if self.accelerated:
            beta = self._beta(restart=self._away(ivs[:, d]), pause=learns)
            parts.append(beta.to(self.V).expand(len(self.V), 1))
        if self.untold.any():
            parts.append(self.curvature())
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _models(self) -> Tensor:
        """W = B V, [K, d]."""
        if self.form is None:
            return self.B @ self.V
        sums = self.grid.rounded(self.form.terms(self.V)).sum(0, keepdim=True)
        return self.form.models(self.V, self.grid.values(sums))

    def _away(self, r: Tensor) -> bool:
        """Whether Σ_k r_k > 0."""
        return bool(r.sum() > 0) if self.form is None else self.grid.positive(self.grid.fine(r).sum(0))

    def tell(self) -> dict[str, Tensor]:
        return {"Omega": self.Omega, "gain": self.gain}

    def settled(self, tolerance: float) -> bool:
        """Whether R fell by that much at most when Ω was learned last; so it is where none is learned."""
        return self.omega_every == 0 or float(self.gain) <= tolerance

    def _learns(self) -> bool:
        """Whether it is time to learn Ω; not in the last rounds, since models are worse right after that."""
        rounds = int(self.rounds)
        due = self.omega_every > 0 and rounds % self.omega_every == 0
        return due and (self.last is None or rounds + self.omega_every <= self.last)

    def _beta(self, restart: bool, pause: bool) -> Tensor:
        """β of the next round; 0 after a restart, and where the users' last step is of no use."""
        before = self.t
        self.t = torch.ones_like(before) if restart else (1 + (1 + 4 * before.square()).sqrt()) / 2
        return torch.zeros_like(before) if restart or pause else (before - 1) / self.t

    def curvature(self) -> Tensor:
        """c_k for each user, [K, 1], such that B ⪯ diag(c): Σ_l |B_kl|, or σ′B_kk."""
        c = sigma_prime(self.B) * self.B.diagonal() if self.kind == "max" else self.B.abs().sum(1)
        return c[:, None]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in self.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].to(getattr(self, name), copy=True))
        self._couple()
