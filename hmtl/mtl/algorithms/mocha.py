"""MOCHA: multi-task learning on duals, certified by the duality gap; CoCoA and local training as special cases.

K users, d features.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from hmtl.mtl.algorithms.base import Aggregator, Algorithm, Users
from hmtl.mtl.algorithms.mocha_aggregator import DualAggregator, DualCoupling, DualSettings, SummedDualAggregator
from hmtl.mtl.algorithms.mocha_users import DualUsers, LocalUsers
from hmtl.mtl.algorithms.setup_exchange import SetupAggregator, SetupUsers
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem
from hmtl.mtl.regularizers import Ridge, SharedModel
from hmtl.mtl.solvers.sdca import DualSolver
from hmtl.mtl.symmetric import Symmetric


class MOCHA(Algorithm):
    """Local dual ascent at the users, $W = V A⁻¹$ at the aggregator, and Ω learned every few rounds.

    Args:
        problem: data, loss and regularizer. Several classes are learned one against the rest, with IVs and models of
            C·d numbers.
        solver: the users' local solver.
        omega_every: rounds between updates of Ω; 0: never. With the squared loss, a change of Ω also rescales all
            duals, see `DualAggregator`.
        accelerated: users start from extrapolated models, with restarts; needs γ = 1. Without effect if the regularizer
            has a common model, which moves in every round: momentum might then diverge.
        curvature: c_k, which replaces B in user k's subproblem, B ⪯ diag(c): "user", `Σ_l |B_kl|`, or the larger
            "max", σ′B_kk with `σ′ = max_k Σ_l |B_kl| / B_kk`, as in Smith et al. 2017.
        gamma: γ in (0, 1], the share of each local update that is applied. 1 adds all updates, which c makes safe.
        rounds: number of rounds; Ω stays fixed in the last `omega_every` of them. None: Ω is learned until the end.
        seed: seed of the order in which users visit their rows, and of participation.
        participation: who takes part in a round, and how much each user does. An absent user's IV counts as zero.

    Raises:
        ConfigError: the solver does not work with the loss, or a setting is out of its range.

    Ref: Smith et al. 2017; Hu et al. 2022, section V.
    """

    vectors = ("V", "W")
    improves = "duals"
    users: DualUsers
    aggregator: DualAggregator | SummedDualAggregator

    def __init__(
        self,
        problem: Problem,
        solver: DualSolver,
        omega_every: int = 5,
        accelerated: bool = True,
        curvature: Literal["user", "max"] = "user",
        gamma: float = 1.0,
        rounds: int | None = None,
        seed: int = 0,
        participation: Participation = Participation(),  # noqa: B008, it is frozen
    ) -> None:
        solver.check(self.improves, problem.binary)
        participation.check(problem.K)
        if omega_every > 0 and not problem.regularizer.learns:
            omega_every = 0
        accelerated = accelerated and problem.regularizer.common is None
        self.problem = problem
        self.solver = solver
        self.seed = seed
        self.participation = participation
        rescales = omega_every > 0 and problem.loss.unbounded
        self.settings = DualSettings(omega_every, accelerated, curvature, gamma, rounds, seed, participation, rescales)
        self.users, self.aggregator = self._sides()
        c = self.aggregator.coupling.curvature(curvature)
        self.users.take_curvature(np.arange(len(problem.users)), c[problem.users])

    def _sides(self) -> tuple[DualUsers, DualAggregator | SummedDualAggregator]:
        """Return the user side and the aggregator side."""
        problem, settings = self.problem, self.settings
        B = problem.known(problem.regularizer.inverse)
        if B is not None and B.q:
            Omega = problem.regularizer.start(problem.K, problem.size).to(problem.s)
            coupling = DualCoupling(problem.regularizer, Omega)
            aggregator = SummedDualAggregator(coupling, problem.size, settings, problem.grid, problem.K)
            return DualUsers(problem, self.solver, settings, coupling), aggregator
        V = problem.s.new_zeros(1, 1).expand(problem.K, problem.size)  # takes no memory until the first update
        return DualUsers(problem, self.solver, settings), DualAggregator(problem.regularizer, V, settings)

    def setup(self) -> tuple[Users, Aggregator] | None:
        """As `Algorithm.setup`: facts up, c_k down; None if A follows from the configuration alone."""
        facts = self.problem.facts()
        if not facts.shape[1] or not isinstance(self.aggregator, DualAggregator):
            return None
        return SetupUsers(facts, 1, self.users.take_curvature), SetupAggregator(self.aggregator.answer, self.problem.K)

    def settled(self, tolerance: float) -> bool:
        return self.settings.omega_every == 0 or float(self._gain) <= tolerance

    def rank(self, figures: Mapping[str, float]) -> float | None:
        """As `Algorithm.rank`; else the primal at the best Ω for the models, or at the present Ω if none is known."""
        if "validation_error" in figures or not self.settings.omega_every:
            return super().rank(figures)
        return figures.get("joint_primal", figures.get("primal"))

    @property
    def _gain(self) -> Tensor:
        """By how much R fell when Ω was learned last; infinite if it has not been learned yet."""
        return self.aggregator.figure_state()["gain"]

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        described |= self.solver.describe()
        if self.settings.omega_every:
            described["omega_learned"] = bool(self._gain.isfinite())
        return described

    @property
    def W(self) -> Tensor:
        return self.users.W.T

    @property
    def Omega(self) -> Symmetric:
        return self.aggregator.coupling.Omega

    @property
    def a(self) -> Tensor:
        """Dual variables [N, C] of all rows, one user after the other; they never leave the users."""
        return self.users.a

    def _quadratics(self) -> dict[str, Symmetric]:
        # V is computed from the duals, since the wire may have rounded the IVs that the aggregator's V sums up
        coupling = self.aggregator.coupling
        return {"W": coupling.regularizer.coupling(coupling.Omega), "V": coupling.B}

    def _shares(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        shares = {name: own[name] for name in ("losses", "conjugates")}
        if "held" in own:
            shares |= {"held": own["held"], "held squares": own["held"].square()}
        return shares

    def _objective(self, sums: dict[str, Tensor]) -> dict[str, float]:
        primal, dual = float(sums["losses"] + sums["W"]), -float(sums["conjugates"] + sums["V"])
        if "held" in sums and self.problem.K * sums["held squares"] != sums["held"] ** 2:
            primal = math.nan  # R is infinite: users of a process that is silent hold an older model
        return {"primal": primal, "dual": dual, "gap": primal - dual}

    def _further(self, measured: dict[str, Tensor]) -> dict[str, float]:
        joint = self.problem.regularizer.joint(measured["W"].T, measured["V"].T) if "W" in measured else None
        if joint is None:
            return {}
        primal = float(measured["losses"].sum() + joint[0])
        return {"joint_primal": primal, "joint_gap": primal + float(measured["conjugates"].sum() + joint[1])}


class CoCoA(MOCHA):
    """One model w for all users, $R = (λ/2)‖w‖²$ instead of the regularizer of the problem: CoCoA+ or CoCoA.

    Args:
        problem, solver: as in `MOCHA`.
        lam: λ.
        adding: add the users' updates, each computed with σ′ = K (CoCoA+); otherwise average them, with σ′ = 1 (CoCoA).
        accelerated: as in `MOCHA`; without effect when averaging.
        options: as in `MOCHA`.

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
        **options: Any,
    ) -> None:
        gamma = 1.0 if adding else 1 / problem.K
        super().__init__(
            problem.regularized(SharedModel(lam)), solver, accelerated=accelerated and adding, gamma=gamma, **options
        )

    @property
    def common(self) -> Tensor | None:
        assert isinstance(self.aggregator, SummedDualAggregator)
        sums = self.problem.grid.values(self.aggregator.S)
        return self.aggregator.coupling.B.models(sums.new_zeros(1, self.problem.size), sums, slice(1))[0]


class Local(MOCHA):
    """MOCHA without coupling, $R = (λ/2)‖W‖²$ instead of the regularizer of the problem. Nothing travels.

    Args:
        problem, solver: as in `MOCHA`.
        lam: λ.
        options: as in `MOCHA`.
    """

    regularized = False

    def __init__(self, problem: Problem, solver: DualSolver, lam: float, **options: Any) -> None:
        super().__init__(problem.regularized(Ridge(lam)), solver, accelerated=False, **options)

    def _sides(self) -> tuple[DualUsers, DualAggregator | SummedDualAggregator]:
        _, aggregator = super()._sides()
        return LocalUsers(self.problem, self.solver, self.settings, aggregator.coupling.B), aggregator
