"""User side of MOCHA and CoCoA: users improve their own duals, given the models that couple them.

K users, N rows of all users, one user after the other, d features, C classes (1 for one score); models and IVs have C·d
numbers, for which d stands. There is one row for each user.
An IV is Δv_k [d], then r_k if the algorithm is accelerated. The answer is w_k [d], then β if it is accelerated, and, if
A has changed, c_k and the product of all θ, the latter if duals are rescaled. If A stays as it is and sums suffice,
`SumsOfDuals` says what IVs mean.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hmtl.io.arrays import NOBODY, Ids
from hmtl.io.row_layout import RowLayout
from hmtl.mtl.algorithms.base import Users
from hmtl.mtl.algorithms.held_rows import of_rows, with_rows
from hmtl.mtl.algorithms.mocha_aggregator import DualCoupling, DualSettings, SumsOfDuals
from hmtl.mtl.problem import Problem, rows_of
from hmtl.mtl.solvers.sdca import DualSolver, DualSubproblem
from hmtl.mtl.sums import LazyRows
from hmtl.mtl.symmetric import Symmetric


class DualUsers(Users):
    """User side: duals a [N, C], models W [K, d] and curvatures c [K] on the users' rows.

    An update takes effect in two steps. `local_update` writes the new duals to `pending` and marks the user as
    `waiting`. Once the user learns whether its update reached an aggregator, `commit` merges `pending` into `a`, or
    `roll_back` discards it. In both cases V = Σ_j a_j x_j holds at the aggregator, which is what the duality gap relies
    on.

    With acceleration (FISTA with restarts), each user starts its local pass from the extrapolated model
    w_k + β (w_k − w_k,old), which corresponds to the dual vector v_k + β (v_k − v_k,old). The user stores both vectors;
    only the scalar β comes from the aggregator. Ref: Beck and Teboulle 2009; O'Donoghue and Candès 2015 (restarts).

    If IVs are rounded on the way, V at the aggregator is V̂ = V - e, where e_k is added to the user's next IV; all that
    follows from an IV, such as `step` and r_k, is of what was sent.

    Buffers: `a`, `W`, `curvature`; `pending` [N, C], `waiting` [K] and `dV` [K, d], the change of V̂ that belongs to
    `pending`, zero once the next model has arrived; `step` [K, d], the last move of v_k, `momentum` [K, d], the part of
    the last move of w_k beyond that, and `beta` [K]; `received` [K], the round in which a user's last model arrived;
    `kept` [K, d], the best models, if Ω is learned; `scale` [K], the product of all θ by which `a` was multiplied,
    if duals are rescaled.
    """

    a: Tensor
    W: Tensor
    curvature: Tensor
    pending: Tensor
    waiting: Tensor
    dV: Tensor
    step: Tensor
    momentum: Tensor
    beta: Tensor
    received: Tensor
    kept: Tensor
    scale: Tensor
    solver: DualSolver

    def __init__(
        self, problem: Problem, solver: DualSolver, settings: DualSettings, coupling: DualCoupling | None = None
    ) -> None:
        super().__init__()
        self.coupling = coupling  # if sums suffice
        self.problem = problem
        object.__setattr__(self, "solver", solver)  # no submodule: what it holds is not state of the users
        self.settings = settings
        rows, K = problem.rows, len(problem.users)
        duals = rows.y.new_zeros(len(rows.y), problem.outputs)
        models = rows.y.new_zeros(1, 1).expand(K, problem.size)  # takes no memory until the first update
        zeros = {"a": duals, "pending": duals} | dict.fromkeys(("curvature", "beta"), torch.zeros_like(problem.s))
        zeros |= dict.fromkeys(("W", "dV", "step", "momentum"), models)
        for name, value in zeros.items():
            self.register_buffer(name, value)
        self.register_buffer("waiting", torch.zeros(K, dtype=torch.bool))
        self.register_buffer("received", torch.full((K,), -1))
        if settings.omega_every:
            self.register_buffer("kept", models)
        if settings.rescales:
            self.register_buffer("scale", torch.ones_like(self.beta))
        further = int(settings.accelerated)
        answers = further, further + 1 + settings.rescales  # with c_k and θ after a change of Ω
        self.row_layout = RowLayout(self.W.new_zeros(problem.size), further, answers, changes=True)
        self._round = -1
        self._idle = NOBODY  # users who are idle in this round

    def make_meaning(self) -> SumsOfDuals | None:
        problem, coupling = self.problem, self.coupling
        return SumsOfDuals(coupling, problem.size, self.settings, problem.grid, problem.users) if coupling else None

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, "Changes"]:
        """As `Users.local_update`; all users who are waiting are idle."""
        problem, settings, seed = self.problem, self.settings, self.settings.seed
        order = self.solver.draw(seed, round, problem.users, problem.here)
        usual = self.solver.steps(problem.here)
        budgets = settings.participation.budgets(usual, seed, round, problem.users, problem.K, self.sample)
        budgets[idle] = 0
        working = budgets > 0
        start = self.W + self.beta[:, None] * self.momentum if settings.accelerated else self.W
        self.seconds = 0.0
        with self.timed(budgets):
            a, dV = self._ascend(start, order, budgets)
        waiting = self.waiting.nonzero()[:, 0].numpy()
        if len(waiting):
            at = rows_of(problem.here, waiting)
            a, dV = with_rows(a, at, self.pending[at]), with_rows(dV, waiting, self.dV[waiting])
        self.pending, self.dV = a, dV
        self.waiting = self.waiting | working
        self._round, self._idle = round, idle
        users = working.nonzero()[:, 0].numpy()
        ivs = of_rows(dV, users)
        rows = torch.cat([ivs, self._overshoot(users, ivs)], dim=1) if settings.accelerated else ivs
        return users, Changes(rows, partial(self._note_sent, users))

    def _overshoot(self, users: Ids, dV: Tensor) -> Tensor:
        """Return r_k [n, 1]; r_k > 0 means that the last extrapolation points away from the step Δv_k [n, d]."""
        step, beta, curvature = (of_rows(x, users) for x in (self.step, self.beta, self.curvature))
        beyond = beta * torch.linalg.vecdot(step, dV) - torch.linalg.vecdot(dV, dV)
        overshoot: Tensor = curvature * beyond
        return overshoot[:, None]

    def _note_sent(self, users: Ids, some: slice, sent: Tensor) -> Tensor:
        """Take what aggregators will read of the IVs of some of these users, and return its further numbers."""
        self.dV = with_rows(self.dV, users[some], sent)
        return self._overshoot(users[some], sent)[:, : self.row_layout.further]

    def _ascend(self, W: Tensor, order: Tensor, budgets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new duals and Δv, from models W; each score of a model has a subproblem of its own."""
        scores, loss = self.problem.scores, self.problem.binary
        C = len(scores)
        passes = [
            self.solver(loss, rows, DualSubproblem(a_c, W_c, self.curvature), order, budgets)
            for rows, a_c, W_c in zip(scores, self.a.unbind(1), W.chunk(C, 1), strict=True)
        ]
        duals, steps = zip(*passes, strict=True)
        return torch.stack(duals, 1), steps[0] if C == 1 else torch.cat(steps, 1)

    def commit(self, users: Ids) -> None:
        at = rows_of(self.problem.here, users)
        merged = torch.lerp(of_rows(self.a, at), of_rows(self.pending, at), self.settings.gamma)
        self.a = with_rows(self.a, at, merged)
        self._settle(users)

    def roll_back(self, users: Ids) -> None:
        self._clear(users)
        self._settle(users)

    def _clear(self, users: Ids) -> None:
        self.dV = with_rows(self.dV, users, self.dV.new_zeros(1, 1).expand(len(users), self.problem.size))

    def _settle(self, users: Ids) -> None:
        self.waiting = with_rows(self.waiting, users, torch.zeros(len(users), dtype=torch.bool))

    def receive(self, users: Ids, models: Tensor) -> Tensor | None:
        W = models[:, : self.problem.size].contiguous()
        further = models[:, self.problem.size :].clone()  # a view would keep all of `models` in memory
        if self.settings.accelerated:
            step, old, curvature = (of_rows(x, users) for x in (self.dV, self.W, self.curvature))
            self.step = with_rows(self.step, users, step)
            drift = W - old
            drift -= curvature[:, None] * step  # the step is zero for updates that were rolled back
            drift[torch.from_numpy(np.isin(users, self._idle))] = 0  # an idle user does not know the last step
            self.momentum = with_rows(self.momentum, users, drift)
            self.beta = with_rows(self.beta, users, further[:, 0])
            further = further[:, 1:]
        self._clear(users)
        self.W = with_rows(self.W, users, W)
        self.received = with_rows(self.received, users, torch.full((len(users),), self._round))
        if further.shape[1]:
            self.take_curvature(users, further[:, :1])
        return self._rescale(users, further[:, 1]) if further.shape[1] > 1 else None

    def _rescale(self, users: Ids, scale: Tensor) -> Tensor:
        """Multiply duals by how the product of all θ, [n], has changed since the last models, and return that."""
        ratio = (scale / of_rows(self.scale, users))[:, None]
        at, n = rows_of(self.problem.here, users), self.problem.rows.n[torch.from_numpy(users)]
        self.a = with_rows(self.a, at, ratio.repeat_interleave(n, 0) * of_rows(self.a, at))
        self.scale = with_rows(self.scale, users, scale.contiguous())
        return ratio[:, 0]

    def take_curvature(self, users: Ids, curvature: Tensor) -> None:
        """Take c_k, [n, 1]."""
        self.curvature = with_rows(self.curvature, users, self.settings.gamma * curvature[:, 0])

    def measure(self) -> dict[str, Tensor]:
        """Return Σ_j s ℓ and Σ_j s ℓ* [K], W and V = Σ_j s a_j x_j [K, d], and the measures on the rows of each split
        [K].

        If all users share one model, W holds the newest one for all of them, and `held` the round in which it arrived:
        models that differ would make R infinite, and P would not be a bound.
        """
        W, further = self.W.T, dict[str, Tensor]()
        if self.problem.regularizer.one_model:
            W = self.W[self.received.argmax()].repeat(len(self.W), 1).T
            further["held"] = self.received.max().double().expand(len(self.W))
        predictions = {split: self.problem.predictions(W, split) for split in {"train", *self.problem.splits}}
        measures = [self.problem.measure(split, predictions[split]) for split in self.problem.splits]
        return further | {
            "losses": self.problem.losses(predictions["train"]),
            "conjugates": self.problem.conjugates(self.a),
            "W": W.T,
            "V": self.problem.combined(self.a).T,
            **{name: values for each in measures for name, values in each.items()},
        }

    def places(self, name: str, users: Ids) -> Ids:
        return rows_of(self.problem.counts, users) if name in ("a", "pending") else users


class Changes(LazyRows):
    """IVs [n, d + e], and what tells users which numbers aggregators will read of them."""

    def __init__(self, rows: Tensor, note_sent: Callable[[slice, Tensor], Tensor]) -> None:
        self.rows, self.dtype, self.device, self.shape = rows, rows.dtype, rows.device, (len(rows), rows.shape[1])
        self._note_sent = note_sent

    def further(self, users: slice) -> Callable[[Tensor], Tensor]:
        """See `hmtl.communication.sides.SentRows.further`."""
        return partial(self._note_sent, users)

    def _block(self, users: slice, columns: slice) -> Tensor:
        return self.rows[users, columns]


class LocalUsers(DualUsers):
    """User side without coupling, B = diag(δ): a user's model follows from its own v_k, and nothing travels.

    Buffers: those of `DualUsers`, and `V` [K, d], each user's v_k.
    """

    V: Tensor
    B: Symmetric

    def __init__(self, problem: Problem, solver: DualSolver, settings: DualSettings, B: Symmetric) -> None:
        super().__init__(problem, solver, settings)
        self.row_layout = RowLayout(self.W.new_zeros(0))
        object.__setattr__(self, "B", B)  # no state of the users
        self.register_buffer("V", torch.zeros_like(self.W))

    def commit(self, users: Ids) -> None:
        super().commit(users)
        self.V = with_rows(self.V, users, of_rows(self.V, users) + self.settings.gamma * of_rows(self.dV, users))
        self.W = self.B.models(self.V, self.V[:0], torch.from_numpy(self.problem.users))
