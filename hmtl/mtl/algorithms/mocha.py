"""MOCHA: federated multi-task learning by primal-dual updates, certified by the duality gap.

K users, d features.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.base import Aggregator, Algorithm, Users, no_sums
from hmtl.mtl.algorithms.dual import DualAggregator, DualUsers
from hmtl.mtl.algorithms.dual_sums import SummingAggregator, SummingUsers
from hmtl.mtl.algorithms.setup import SetupAggregator, SetupUsers
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem
from hmtl.mtl.regularizers import Ridge, SharedModel
from hmtl.mtl.solvers.sdca import SDCA, LocalSolver
from hmtl.mtl.sums import Form


class MOCHA(Algorithm):
    """Local dual ascent at the users, W = V A⁻¹ at the aggregator, Ω learned every few rounds.

    Args:
        problem: data, loss, regularizer; several classes are learned each against the rest, IVs and models of C·d
            numbers.
        solver: the users' local solver.
        omega_every: rounds between updates of Ω; 0 for never.
        accelerated: users work from extrapolated models, with restarts; takes γ = 1.
        curvature: c_k that stands for B in user k's subproblem, B ⪯ diag(c): `user`, `Σ_l |B_kl|`, or the larger `max`,
            σ′B_kk with `σ′ = max_k Σ_l |B_kl| / B_kk`, as in Smith et al. 2017.
        gamma: γ in (0, 1], the share of each local update that is applied; 1 adds them all, safely, since c allows it.
        rounds: how many there will be, so that Ω rests in the last `omega_every` of them; None: it never rests.
        seed: of the order in which users visit their rows, and of participation.
        participation: who does how much in a round; the IV of a user who drops out is zero.

    Raises:
        ConfigError: the solver cannot work with the loss, or a number is out of its range.

    Ref: Smith et al. 2017; Hu et al. 2022, section V.
    """

    users: DualUsers
    aggregator: DualAggregator

    def __init__(
        self,
        problem: Problem,
        solver: LocalSolver,
        omega_every: int = 5,
        accelerated: bool = True,
        curvature: Literal["user", "max"] = "user",
        gamma: float = 1.0,
        rounds: int | None = None,
        seed: int = 0,
        participation: Participation = Participation(),  # noqa: B008, it is frozen
    ) -> None:
        if not isinstance(solver, LocalSolver):
            raise ConfigError(
                f"{type(self).__name__} works on duals, {type(solver).__name__} does not. Choose solver=sdca, or "
                "algorithm=fedu, fedavg, fedprox, ditto or pfedme for gradients."
            )
        solver.check(problem.binary)
        participation.check(problem.K)
        if omega_every < 0:
            raise ConfigError(f"omega_every={omega_every} is negative. Give a number of rounds, or 0 for never.")
        if rounds is not None and rounds < 1:
            raise ConfigError(f"rounds={rounds}: there is at least one. Give how many there will be, or null.")
        if curvature not in ("user", "max"):
            raise ConfigError(f"curvature={curvature} is neither user nor max.")
        if not 0 < gamma <= 1:
            raise ConfigError(f"gamma={gamma} is not in (0, 1]: more than the whole update is never safe.")
        if accelerated and gamma < 1:
            raise ConfigError(
                f"gamma={gamma} with accelerated=true: momentum takes whole updates. Switch one of them off."
            )
        self.problem, self.solver, self.seed, self.participation = problem, solver, seed, participation
        self._user_side = (problem, solver, gamma, seed, participation, accelerated)
        self._aggregator_side: dict[str, Any] = {
            "regularizer": problem.regularizer,
            "gamma": gamma,
            "omega_every": omega_every if problem.regularizer.learns else 0,
            "last": rounds,
            "curvature": curvature,
            "accelerated": accelerated,
            "grid": problem.grid,
        }
        self.users = DualUsers(*self._user_side)
        self.aggregator = DualAggregator(V=self._nothing(), **self._aggregator_side)
        self._learn_curvature()

    def _nothing(self) -> Tensor:
        """V of all users at first [K, d], in no memory of its own."""
        return self.users.W.new_zeros(1, 1).expand(self.problem.K, self.problem.size)

    def _learn_curvature(self) -> None:
        here = self.problem.users
        self.users.learn(np.arange(len(here)), self.aggregator.curvature()[here])

    def setup(self) -> tuple[Users, Aggregator] | None:
        """Facts up, c_k down; where A follows from the configuration, users know these unsaid."""
        facts = self.problem.facts()
        if not facts.shape[1]:
            return None
        return SetupUsers(facts, self.users.learn), SetupAggregator(self.aggregator.prepare, self.problem.K)

    @property
    def q(self) -> int:
        form, regularizer = self.aggregator.form, self.problem.regularizer
        return form.q if form and not regularizer.learns and not self.problem.facts().shape[1] else 0

    def in_sums(self) -> None:
        form = self.aggregator.form
        if form is None or form.q != self.q:
            raise no_sums(f"{type(self).__name__} with {type(self.problem.regularizer).__name__}")
        if not form.q:
            raise ConfigError("Nothing has to travel where models are not coupled: choose algorithm=local instead.")
        self._to_sums(form)
        self.aggregator = SummingAggregator(V=self._nothing(), **self._aggregator_side)

    def _to_sums(self, form: Form) -> None:
        self.users = SummingUsers(*self._user_side, form=form, grid=self.problem.grid)
        self._learn_curvature()

    def settled(self, tolerance: float) -> bool:
        """Ω was learned, and made R smaller by that much at most when it was learned last."""
        return self.aggregator.settled(tolerance)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        if isinstance(self.solver, SDCA):
            described["passes"] = self.solver.passes
        if self.aggregator.omega_every:
            described["omega_learned"] = bool(self.aggregator.gain.isfinite())
        return described

    @property
    def W(self) -> Tensor:
        return self.users.W.T

    @property
    def Omega(self) -> Tensor:
        """Ω [K, K]."""
        return self.aggregator.Omega

    @property
    def a(self) -> Tensor:
        """Dual variables [K, n], or [K, C·n] of C classes; they never leave the users."""
        return self.users.a

    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        # V is summed up from the duals, for the aggregator's is only as exact as the wire that the IVs came by
        R, Omega = self.aggregator.regularizer, self.Omega
        losses, conjugates = measured["losses"].sum(), measured["conjugates"].sum()
        with torch.no_grad():
            primal = float(losses + R(measured["W"].T, Omega))
        dual = -float(conjugates + R.conjugate(measured["V"].T, Omega))
        figures = {"primal": primal, "dual": dual, "gap": primal - dual}
        if (joint := R.joint(measured["W"].T, measured["V"].T)) is None:
            return figures
        best, least = float(losses + joint[0]), -float(conjugates + joint[1])
        return figures | {"joint_primal": best, "joint_gap": best - least}


class Local(MOCHA):
    """Every user for itself: MOCHA without coupling, R = (λ/2)‖W‖², whatever the problem's own regularizer.

    Nothing has to travel.

    Args:
        lam: λ.
        others: as in `MOCHA`.
    """

    regularized = False

    def __init__(self, problem: Problem, solver: LocalSolver, lam: float, **others: Any) -> None:
        super().__init__(problem.regularized(Ridge(lam)), solver, accelerated=False, **others)
        assert self.aggregator.form is not None
        self._to_sums(self.aggregator.form)

    def in_sums(self) -> None:
        """It is: there are none."""


class CoCoA(MOCHA):
    """One model w for all users, R = (λ/2)‖w‖², whatever the problem's own regularizer: CoCoA+, or CoCoA.

    Args:
        lam: λ.
        adding: add the users' updates, each made with σ′ = K (CoCoA+); otherwise average them, with σ′ = 1 (CoCoA).
        accelerated: as in `MOCHA`; averaging takes no momentum.
        others: as in `MOCHA`.

    Ref: Jaggi et al. 2014; Ma et al. 2015.
    """

    regularized = False

    def __init__(
        self,
        problem: Problem,
        solver: LocalSolver,
        lam: float,
        adding: bool = True,
        accelerated: bool = True,
        **others: Any,
    ) -> None:
        one, gamma = problem.regularized(SharedModel(lam)), 1.0 if adding else 1 / problem.K
        super().__init__(one, solver, accelerated=accelerated and adding, gamma=gamma, **others)
