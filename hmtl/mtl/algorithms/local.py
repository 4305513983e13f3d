"""Local training on duals: users share nothing."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.mtl.algorithms.base import NOBODY, Ids, MessageKind, with_rows
from hmtl.mtl.algorithms.dual_aggregator import DualAggregator, DualSettings, SummedDualAggregator
from hmtl.mtl.algorithms.dual_users import DualUsers
from hmtl.mtl.algorithms.mocha import MOCHA
from hmtl.mtl.problem import Problem
from hmtl.mtl.regularizers import Ridge
from hmtl.mtl.solvers.sdca import DualSolver
from hmtl.mtl.sums import Form


class LocalUsers(DualUsers):
    """User side: each user computes its model from its own v_k, `V` [K, d]; rows have no columns.

    Args: as in `DualUsers`, and
        form: B, a diagonal matrix.
    """

    V: Tensor

    def __init__(self, problem: Problem, solver: DualSolver, settings: DualSettings, form: Form) -> None:
        super().__init__(problem, solver, settings)
        self.numbers = 0
        self.form = form
        self.register_buffer("V", self.W)

    def local_update(
        self, round: int, idle: Ids = NOBODY, order: Tensor | None = None, budgets: Tensor | None = None
    ) -> tuple[Ids, Tensor]:
        """As `DualUsers.local_update`, but return rows [n, 0]."""
        users, ivs = super().local_update(round, idle, order, budgets)
        return users, ivs[:, :0]

    def commit(self, users: Ids) -> None:
        users = users[self.waiting.numpy()[users]]
        super().commit(users)
        self.V = with_rows(self.V, users, self.V[users] + self.settings.gamma * self.dV[users])
        self.W = self.form.models(self.V, self.V[:, :0], torch.from_numpy(self.problem.users))


class Local(MOCHA):
    """MOCHA without coupling, R = (λ/2)‖W‖² instead of the regularizer of the problem. Nothing travels.

    Args:
        problem, solver: as in `MOCHA`.
        lam: λ.
        others: as in `MOCHA`; `messages` has no effect.
    """

    regularized = False

    def __init__(self, problem: Problem, solver: DualSolver, lam: float, **others: Any) -> None:
        super().__init__(problem.regularized(Ridge(lam)), solver, accelerated=False, **others)

    @classmethod
    def sums_needed(cls, problem: Problem) -> int:
        return 0

    def _sides(self, messages: MessageKind) -> tuple[DualUsers, DualAggregator | SummedDualAggregator]:
        problem = self.problem
        aggregator = super()._sides("ivs")[1]
        assert isinstance(aggregator, DualAggregator)
        assert aggregator.coupling.form is not None
        users = LocalUsers(problem, self.solver, self.settings, aggregator.coupling.form)
        users.take_curvature(np.arange(len(problem.users)), aggregator.curvature[problem.users])
        return users, aggregator
