"""Aggregator side of MOCHA and CoCoA: couples the users' dual vectors, W = V A⁻¹, and learns Ω.

K users, d features; with C classes, read C·d for d. See `mocha_users` for the messages, and `coupled_steps` for
networks, which learn Ω there.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.io.arrays import Ids
from hmtl.mtl.algorithms.base import Aggregator
from hmtl.mtl.algorithms.held_rows import of_rows
from hmtl.mtl.algorithms.meaning import SumsOfVectors
from hmtl.mtl.participation import Participation
from hmtl.mtl.regularizers import Regularizer
from hmtl.mtl.sums import Grid, LazyRows
from hmtl.mtl.symmetric import Symmetric

log = logging.getLogger(__name__)
RAISED = 2.0  # a penalty that is so many times larger at a new Ω is not least there


@dataclass(frozen=True)
class DualSettings:
    """Settings of `MOCHA`, which explains them.

    Attributes:
        rescales: whether all duals are multiplied by a factor θ when Ω changes, see `DualAggregator`.

    Raises:
        ConfigError: a setting is out of its range, or rules out another.
    """

    omega_every: int
    accelerated: bool
    curvature: Literal["user", "max"]
    gamma: float
    rounds: int | None
    seed: int
    participation: Participation
    rescales: bool = False

    def __post_init__(self) -> None:
        if self.omega_every < 0:
            raise ConfigError(f"omega_every={self.omega_every} is negative. Give a number of rounds, or 0 for never.")
        if self.rounds is not None and self.rounds < 1:
            raise ConfigError(f"rounds={self.rounds} has to be at least 1. Give the number of rounds, or null.")
        if self.curvature not in ("user", "max"):
            raise ConfigError(f"curvature={self.curvature} is unknown. Choose user or max.")
        if not 0 < self.gamma <= 1:
            raise ConfigError(
                f"gamma={self.gamma} is not in (0, 1]: applying more than the whole update is never safe."
            )
        if self.accelerated and self.gamma < 1:
            raise ConfigError(
                f"gamma={self.gamma} with accelerated=true: momentum needs whole updates. Set gamma=1 or "
                "accelerated=false."
            )

    def learns_now(self, round: int) -> bool:
        """Return whether Ω is learned after this round, counted from 1.

        Ω is not learned in the last `omega_every` rounds, since models are worse right after it has changed.
        """
        due = self.omega_every > 0 and round % self.omega_every == 0
        return due and (self.rounds is None or round + self.omega_every <= self.rounds)


class DualCoupling:
    """A regularizer with an Ω [K, K], and what follows from both.

    Attributes:
        regularizer, Omega: define A.
        B: A⁻¹.
        total: λ0 + κ, if there is a common model, which is a block of its own.
        keep: κ/(λ0 + κ), or 0 without a common model.
        step: B, with λ0 + κ instead of λ0.

    With a common model w0, B = 11ᵀ/λ0 + Ω⁻¹/λ, so the c_k have a harmonic mean of at least K/λ0, with which users would
    move little in a round. By the method of multipliers, R has a term (κ/2)‖w0 − w0,old‖² more: λ0 + κ replaces λ0, and
    w0 = (Σ_k v_k + κ w0,old)/(λ0 + κ). The term is 0 at the optimum. Any κ converges; this one lets w0 add to c as much
    as the rest does, or 1 if that is more, which costs nothing where a user's rows have variance 1.
    Ref: Rockafellar 1976.
    """

    def __init__(self, regularizer: Regularizer, Omega: Symmetric) -> None:
        self.regularizer = regularizer
        self.Omega = Omega
        self.B = self.step = regularizer.inverse(Omega)
        self.total, self.keep = math.inf, 0.0
        if regularizer.common is not None:
            rest = regularizer.rest(Omega)
            c = rest.dominating()
            self.total = max(regularizer.common, len(c) / max(float(c.mean()), 1.0))
            self.step, self.keep = rest.plus(rest.ones, 1 / self.total), 1 - regularizer.common / self.total

    def curvature(self, kind: Literal["user", "max"]) -> Tensor:
        """Return c_k of each user, [K, 1], such that B ⪯ diag(c): `Σ_l |B_kl|` or less, or σ′B_kk."""
        c = self.step.dominating()
        if kind == "max":
            c = (c / self.step.diagonal()).max() * self.step.diagonal()
        return c[:, None]


def next_beta(t: Tensor, restart: bool, pause: bool) -> tuple[Tensor, Tensor]:
    """Return β of the next round (0 after a restart or a pause), and the next t (1 after a restart)."""
    new = torch.ones_like(t) if restart else (1 + (1 + 4 * t.square()).sqrt()) / 2
    return torch.zeros_like(t) if restart or pause else (t - 1) / new, new


class DualAggregator(Aggregator):
    """Aggregator side: sums up V, computes W = B V, and learns Ω every few rounds.

    With acceleration, β follows from t. t restarts when the momentum points away from the step: Σ_k r_k > 0 with
    r_k = c_k (v_k,extrapolated − v_k,new)·(v_k,new − v_k). In the round after a change of A, which also moves the
    models, β is 0; a restart would cost more rounds.

    After a change of A, users receive the new c_k with their models. It is sent in every round until each user has been
    heard once: a user who missed its model takes no part until one arrives.

    A change of Ω would move the models far: W = V B grows by up to K in the directions that Ω favors. If duals have no
    bounds (`rescales`), all of them are therefore multiplied by θ = ⟨W, W′⟩/‖W′‖², where W′ are the models after the
    change: no other multiple of W′ is nearer to W. They stay as they are if ⟨W, W′⟩ ≤ 0. With c_k, users receive the
    product of all θ so far, so that it does not matter how often they receive it, or which they missed. V = Σ_j s a_j
    x_j holds for any θ.

    Buffers: `V` [K, d]; those of Ω; `rounds`, the number of updates; `outdated` [K], users who may not know the present
    c_k; `t`; `gain`, by how much R fell when Ω was learned last; `center` [d], w0 if there is a common model; `scale`,
    the product of all θ if duals are rescaled.
    """

    V: Tensor
    Omega: Symmetric
    rounds: Tensor
    outdated: Tensor
    t: Tensor
    gain: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, regularizer: Regularizer, V: Tensor, settings: DualSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("V", V)
        self.Omega = regularizer.start(*V.shape).to(V)
        self.register_buffer("rounds", torch.tensor(0))
        self.register_buffer("outdated", torch.zeros(len(V), dtype=torch.bool))
        self.register_buffer("t", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("gain", torch.tensor(math.inf, dtype=torch.float64))
        self.coupling = DualCoupling(regularizer, self.Omega)
        if regularizer.common is not None:
            self.register_buffer("center", V.new_zeros(V.shape[1]))
        if settings.rescales:
            self.register_buffer("scale", torch.ones_like(self.t))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = True) -> Any:
        keys = super().load_state_dict(state_dict, strict, assign)
        if any(name.startswith("Omega") for name in state_dict):
            self.coupling = DualCoupling(self.coupling.regularizer, self.Omega)
        return keys

    @property
    def curvature(self) -> Tensor:
        """c_k [K, 1]."""
        return self.coupling.curvature(self.settings.curvature)

    def answer(self, facts: Tensor) -> Tensor:
        """Return each user's c_k, [K, 1], given the facts [K, f] of the set-up."""
        regularizer = self.coupling.regularizer.prepared(facts).to(self.V.device)
        self.Omega = regularizer.start(*self.V.shape).to(self.V)
        self.coupling = DualCoupling(regularizer, self.Omega)
        return self.curvature

    @torch.no_grad()
    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        d, device = self.V.shape[1], self.V.device
        self.V = self.V.index_add(0, torch.from_numpy(users).to(device), self.settings.gamma * ivs[:, :d])
        self.rounds = self.rounds + 1
        outdated = self.outdated.clone()
        outdated[users] = False  # a user takes part only if it received the last round's model
        learns = self.settings.learns_now(int(self.rounds))
        if learns:
            self._learn_omega()
            outdated[:] = True
        self.outdated = outdated
        columns = [self._models()]  # from V, not from the last W, since A may have changed
        if self.coupling.keep:
            self.center = self.coupling.keep * self.center + self.V.sum(0) / self.coupling.total
        if self.settings.accelerated:
            beta, self.t = next_beta(self.t, restart=bool(ivs[:, d].sum() > 0), pause=learns)
            columns.append(beta.to(self.V).expand(len(self.V), 1))
        if outdated.any():
            columns.append(self.curvature)
            if self.settings.rescales:
                columns.append(self.scale.to(self.V).expand(len(self.V), 1))
        return torch.cat(columns, dim=1) if len(columns) > 1 else columns[0]

    def _learn_omega(self) -> None:
        regularizer, W, old = self.coupling.regularizer, self._models(), self.Omega
        self.Omega = regularizer.update_omega(W.T, old)
        before, after = regularizer(W.T, old), regularizer(W.T, self.Omega)
        self.gain = (before - after).to(self.gain)
        if after > RAISED * before:
            name = f"{type(regularizer).__name__}.update_omega"
            log.warning("%s raised the penalty from %.3g to %.3g. Return the Ω of the least one.", name, before, after)
        self.coupling = DualCoupling(regularizer, self.Omega)
        if self.settings.rescales:
            self._rescale(W)

    def _rescale(self, W: Tensor) -> None:
        """Multiply V by θ, such that the models come as near as possible to W [K, d], those before the change of Ω."""
        fixed = self.coupling.keep * self.center if self.coupling.keep else 0.0
        new = self._models() - fixed
        theta = float(((W - fixed) * new).sum() / new.square().sum())
        if 0 < theta < math.inf:  # not if V is 0
            scale = theta * self.scale
            self.V = scale / self.scale * self.V  # the factor that users compute
            self.scale = scale

    def _models(self) -> Tensor:
        """Return W = B V, [K, d]; with a common model, (B V) as in `DualCoupling`."""
        coupling = self.coupling
        W = coupling.step @ self.V
        return W + coupling.keep * self.center if coupling.keep else W

    def figure_state(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.named_buffers() if name.partition(".")[0] in ("Omega", "gain")}


class SumsOfDuals(SumsOfVectors):
    """What IVs mean if sums suffice: an IV moves v_k, of whose U_kᵀ v_k the sums s are made, and w_k = B v follows.

    Beside its terms, a user sends r_k in two words, and everybody gets the bits of β beside s, if the algorithm is
    accelerated.

    Args:
        coupling: has B.
        d: numbers of an IV.
        settings, grid: of the algorithm.
        ids: the numbers of these users in the network.
    """

    def __init__(self, coupling: DualCoupling, d: int, settings: DualSettings, grid: Grid, ids: Ids) -> None:
        start = coupling.B.C.new_zeros(1, 1).expand(len(ids), d)  # takes no memory until the first update
        super().__init__(coupling.B, grid, start, ids)
        self.gamma, self.accelerated = settings.gamma, settings.accelerated
        self.further, self.answers = 2 * settings.accelerated, int(settings.accelerated)

    def moved(self, users: Ids, rows: Tensor) -> Tensor:
        return of_rows(self.sent, users) + self.gamma * rows[:, : self.m]

    def terms(self, round: int, users: Ids, rows: Tensor | LazyRows) -> Tensor | LazyRows:
        terms = super().terms(round, users, rows)
        return torch.cat([terms[:], self.grid.fine(rows[:][:, -1])], dim=1) if self.accelerated else terms

    def total_of(self, users: Ids, rows: Tensor) -> Tensor:
        total = super().total_of(users, rows)
        return torch.cat([total, self.grid.fine(rows[:, -1]).sum(0)[None]], dim=1) if self.accelerated else total

    def models(self, users: Ids, row: Tensor) -> Tensor:
        W = self.M.models(of_rows(self.sent, users), self.grid.values(row[0, : self.words]), self.indices(users))
        beta = row[:, self.words :].expand(len(users), -1).contiguous()
        return torch.cat([W, beta.view(torch.float64).to(W)], dim=1) if self.accelerated else W


class SummedDualAggregator(Aggregator):
    """Aggregator side if sums suffice: keeps the sums s on the grid, no v_k. Ω is never learned.

    Args:
        coupling: the regularizer, and what follows from it.
        d: numbers of an IV.
        settings, grid: of the algorithm.
        K: number of users.

    Buffers: `S`, s as int64 [1, q·d]; `t`, as in `DualAggregator`.
    """

    S: Tensor
    t: Tensor

    def __init__(self, coupling: DualCoupling, d: int, settings: DualSettings, grid: Grid, K: int) -> None:
        super().__init__()
        self.coupling, self.d, self.K = coupling, d, K
        self.settings = settings
        self.grid = grid
        numbers = coupling.B.q * d
        self.register_buffer("S", torch.zeros(1, numbers, dtype=torch.int64, device=coupling.B.C.device))
        self.register_buffer("t", torch.tensor(1.0, dtype=torch.float64))

    def make_meaning(self) -> SumsOfDuals:
        return SumsOfDuals(self.coupling, self.d, self.settings, self.grid, np.arange(self.K))

    @torch.no_grad()
    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        sums, n = ivs.to(self.S.device), self.S.shape[1]
        self.S = self.grid.added(self.S, sums[:, :n])
        if not self.settings.accelerated:
            return self.S
        beta, self.t = next_beta(self.t, restart=self.grid.positive(sums[0, n:]), pause=False)
        return torch.cat([self.S, beta.view(torch.int64).view(1, 1).to(self.S)], dim=1)
