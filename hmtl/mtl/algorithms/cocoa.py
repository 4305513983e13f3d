"""CoCoA: one linear model for all users, learned on duals."""

from typing import Any

from hmtl.mtl.algorithms.mocha import MOCHA
from hmtl.mtl.problem import Problem
from hmtl.mtl.regularizers import SharedModel
from hmtl.mtl.solvers.sdca import DualSolver


class CoCoA(MOCHA):
    """One model w for all users, R = (λ/2)‖w‖² instead of the regularizer of the problem: CoCoA+ or CoCoA.

    Args:
        problem, solver: as in `MOCHA`.
        lam: λ.
        adding: add the users' updates, each computed with σ′ = K (CoCoA+); otherwise average them, with σ′ = 1 (CoCoA).
        accelerated: as in `MOCHA`; without effect when averaging.
        others: as in `MOCHA`.

    Ref: Jaggi et al. 2014; Ma et al. 2015.
    """

    regularized = False

    def __init__(
        self,
        problem: Problem,
        solver: DualSolver,
        lam: float,
        adding: bool = True,
        accelerated: bool = True,
        **others: Any,
    ) -> None:
        gamma = 1.0 if adding else 1 / problem.K
        super().__init__(
            problem.regularized(SharedModel(lam)), solver, accelerated=accelerated and adding, gamma=gamma, **others
        )

    @classmethod
    def sums_needed(cls, problem: Problem) -> int:
        return 1
