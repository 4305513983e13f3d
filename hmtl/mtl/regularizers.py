"""Regularizers R(W, Ω) = ½ tr(W A Wᵀ), each defined by its coupling matrix A(Ω).

K users, d features; W [d, K] holds one user's model per column; Ω, A and B = A⁻¹ are [K, K]. If there are more users
than numbers in a model, a learned Ω is a `Spectrum`, and A and B have a `Form`: no matrix [K, K] is ever built.
"""

import copy
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from hmtl.data import Task
from hmtl.errors import ConfigError
from hmtl.mtl.graph import covariance, nearest, read_weights
from hmtl.mtl.spectrum import Spectrum, singular_values, thin_svd
from hmtl.mtl.sums import Form

Relation = Tensor | Spectrum
"""Ω [K, K]."""
FORMULAS = {
    "sums": (),
    "form": ("sums",),
    "inverse_coupling": (),
    "common": (),
    "start": ("sums", "start_omega", "update_omega"),
    "joint": ("weights", "eigenvalues", "update_omega"),
}
"""What follows from `coupling` and the methods named: a subclass that redefines one of these starts without it."""


class Regularizer(nn.Module, ABC):
    """The coupling of the users' models. A new regularizer only has to define `coupling`.

    It has `sums`, `common` or `joint` if it says so: a subclass with a `coupling` of its own inherits none of them, see
    `FORMULAS`.

    Args:
        lam: strength λ > 0.

    Raises:
        ConfigError: λ is not a finite number above 0.
    """

    def __init__(self, lam: float) -> None:
        super().__init__()
        self.lam = _positive("lam", lam)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for formula, sources in FORMULAS.items():
            named = {formula, "coupling", *sources}
            if formula not in vars(next(kind for kind in cls.__mro__ if named & vars(kind).keys())):
                setattr(cls, formula, vars(Regularizer)[formula])

    def for_networks(self) -> Self:
        """Return the regularizer with the default settings for networks."""
        return self

    def facts(self, task: Task) -> Tensor:
        """Return what a user reports about its task before the first round, [f] float64; by default nothing."""
        return torch.zeros(0, dtype=torch.float64)

    def prepared(self, facts: Tensor) -> Self:
        """Return a copy that is ready for the users who reported these facts [K, f]; `self` stays unchanged.

        Raises:
            ConfigError, DataError: the regularizer cannot be used with these users.
        """
        return copy.deepcopy(self)

    @abstractmethod
    def coupling(self, Omega: Tensor) -> Tensor:
        """Return A [K, K], symmetric positive definite, in the type and on the device of Ω [K, K]."""

    def forward(self, W: Tensor, Omega: Relation) -> Tensor:
        """Return R(W, Ω) = ½ tr(W A Wᵀ), a scalar that is differentiable in W [d, K]."""
        form = self.form(Omega)
        if form is not None:
            return form.penalty(W.T)
        return 0.5 * (self.coupling(dense(Omega)) * (W.T @ W)).sum()

    @torch.no_grad()
    def inverse_coupling(self, Omega: Tensor) -> Tensor:
        """Return B = A⁻¹ [K, K], as in R*(V) = ½ tr(V B Vᵀ) and the global update W = V B.

        Raises:
            ConfigError: A has the wrong shape, is not symmetric, or is not positive definite.
        """
        A, name = self.coupling(Omega), type(self).__name__
        if A.shape != Omega.shape:
            raise ConfigError(f"{name}.coupling returned shape {tuple(A.shape)}. Return A as {tuple(Omega.shape)}.")
        if not (A - A.T).abs().max() <= 1e-10 * A.abs().max():  # rounding errors scale with the largest entry
            raise ConfigError(f"{name}.coupling returned an asymmetric A. Return (A + Aᵀ)/2, which gives the same R.")
        L, info = torch.linalg.cholesky_ex((A + A.T) / 2)
        if info.item():
            raise ConfigError(
                f"{name}.coupling returned an A that is not positive definite, so R has no finite conjugate. Add a "
                "small multiple of the identity."
            )
        return torch.cholesky_inverse(L)

    def sums(self, Omega: Any) -> Form | None:
        """Return B = diag(δ) + U C Uᵀ, for which a few sums over all users suffice; None if users need all IVs."""
        return None

    def inverse(self, Omega: Relation) -> Tensor | Form:
        """Return B as a form if it has one, and as `inverse_coupling` otherwise."""
        form = self.sums(Omega)
        return self.inverse_coupling(dense(Omega)) if form is None else form

    def form(self, Omega: Relation) -> Form | None:
        """Return A = diag(a) + U C Uᵀ, computed from `sums`, or None if A has no such form."""
        inverse = self.sums(Omega)
        return None if inverse is None or not (inverse.delta > 0).all() else inverse.coupling()

    @torch.no_grad()
    def conjugate(self, V: Tensor, Omega: Relation) -> Tensor:
        """Return R*(V) = ½ tr(V B Vᵀ), a scalar, for V [d, K]."""
        return conjugate(self.inverse(Omega), V)

    @property
    def learns(self) -> bool:
        """Whether the regularizer learns Ω."""
        return type(self).update_omega is not Regularizer.update_omega

    @property
    def common(self) -> float | None:
        """λ0, if B = 11ᵀ/λ0 + another positive definite matrix and λ0 is small; None otherwise.

        The algorithm then treats the part w0 that all models share as a block of its own. `rest` is the other matrix.
        """
        return None

    def rest(self, Omega: Relation) -> Tensor | Form:
        """Return B − 11ᵀ/λ0, for regularizers with a common model."""
        raise NotImplementedError

    def joint(self, W: Tensor, V: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return R and R* of the joint problem in W [d, K] and Ω, or None if they are not known.

        Together with Σ s ℓ and Σ s ℓ* they bound the joint optimum, whatever the present Ω.
        """
        return None

    def start_omega(self, K: int) -> Tensor:
        """Return the Ω of the first round, K·I, which corresponds to Σ = I/K."""
        return K * torch.eye(K, dtype=torch.float64)

    def start(self, K: int, size: int) -> Relation:
        """Return `start_omega` in the form that suits models of `size` numbers."""
        return self.start_omega(K)

    def update_omega(self, W: Tensor, Omega: Any) -> Any:
        """Return the best Ω for W, of the type of Ω, or Ω itself if the regularizer does not learn it."""
        return Omega


def dense(Omega: Relation) -> Tensor:
    """Return Ω as a tensor [K, K]."""
    return Omega.dense if isinstance(Omega, Spectrum) else Omega


def plus_constant(B: Any, value: float) -> Any:
    """Return B + value·11ᵀ, for a matrix or a form."""
    return B + value if isinstance(B, Tensor) else B.plus(torch.ones_like(B.delta), value)


def conjugate(B: Tensor | Form, V: Tensor) -> Tensor:
    """Return ½ tr(V B Vᵀ), a scalar, for V [d, K]."""
    product: Tensor = V @ B if isinstance(B, Tensor) else (B @ V.T).T
    return 0.5 * product.mul_(V).sum()


def _multiple(self: Regularizer, K: int, size: int) -> Relation:
    """Return K·I without memory for K² numbers: A has a form, so that Ω is not used."""
    return Spectrum.multiple(K, K, 0)


def _uniform(Omega: Relation, delta: float, C: float | None = None) -> Form:
    """Return δI + C·11ᵀ [K, K]; without C, U has no columns."""
    like, q = Omega.values if isinstance(Omega, Spectrum) else Omega, int(C is not None)
    return Form(like.new_full((len(Omega),), delta), like.new_ones(len(Omega), q), like.new_full((q, q), C or 0.0))


class Ridge(Regularizer):
    """A = λI: no coupling, R = (λ/2)‖W‖²."""

    start = _multiple

    def coupling(self, Omega: Tensor) -> Tensor:
        return self.lam * torch.eye(len(Omega)).to(Omega)

    def sums(self, Omega: Relation) -> Form | None:
        """Return B = I/λ, without any sums."""
        return _uniform(Omega, 1 / self.lam)


class Shrinking(Regularizer):
    """A coupling with a term of its own that shrinks models to 0.

    Args:
        lam: strength of the coupling.
        lam2: λ2, strength of the term; None: 0.1, and 1e-6 for networks, whose size it limits far more.
    """

    def __init__(self, lam: float, lam2: float | None = None) -> None:
        super().__init__(lam)
        self.is_usual = lam2 is None
        self.lam2 = 0.1 if lam2 is None else _positive("lam2", lam2)

    def for_networks(self) -> Self:
        new = copy.copy(self)
        new.lam2 = 1e-6 if self.is_usual else self.lam2
        return new


class Mean(Shrinking):
    """Models near their mean: A = 2(λ1·(I − 11ᵀ/K) + λ2·I), R = λ1 Σ_k ‖w_k − w̄‖² + λ2‖W‖².

    Args:
        lam: λ1.
        lam2: λ2, see `Shrinking`.

    Ref: Evgeniou and Pontil 2004.
    """

    start = _multiple

    def coupling(self, Omega: Tensor) -> Tensor:
        eye = torch.eye(len(Omega)).to(Omega)
        return 2 * (self.lam * (eye - 1 / len(Omega)) + self.lam2 * eye)

    def sums(self, Omega: Relation) -> Form | None:
        """Return B = (I + (λ1/(λ2·K))·11ᵀ) / (2(λ1 + λ2))."""
        delta = 1 / (2 * (self.lam + self.lam2))
        return _uniform(Omega, delta, delta * self.lam / (self.lam2 * len(Omega)))


class SharedModel(Regularizer):
    """One model for all users: R = (λ/2)‖w‖² if all w_k = w, infinite otherwise; B = 11ᵀ/λ.

    B is singular. `coupling` returns its pseudo-inverse instead of A, which gives R for all models W = V B; σ′ is K.

    Ref: Ma et al. 2015.
    """

    start = _multiple

    def coupling(self, Omega: Tensor) -> Tensor:
        return torch.full_like(Omega, self.lam / len(Omega) ** 2)

    def inverse_coupling(self, Omega: Tensor) -> Tensor:
        return torch.full_like(Omega, 1 / self.lam)

    def sums(self, Omega: Relation) -> Form | None:
        return _uniform(Omega, 0.0, 1 / self.lam)

    def form(self, Omega: Relation) -> Form | None:
        return _uniform(Omega, 0.0, self.lam / len(Omega) ** 2)


class Graph(Shrinking):
    """Similar models for neighbours: A = η·L + λ2·I with the graph's Laplacian L = diag(Σ_l a_kl) − (a_kl).

    R = (η/4) Σ_kl a_kl‖w_k − w_l‖² + (λ2/2)‖W‖².

    Args:
        lam: η.
        lam2: λ2, see `Shrinking`.
        path: file of the weights a_kl, see `graph.read_weights`; None: `graph.nearest` chooses the neighbours.
        neighbors: number of nearest users that become neighbours of each user; ignored if there is a file.

    Ref: Dinh et al. 2021.
    """

    def __init__(
        self, lam: float, lam2: float | None = None, path: str | Path | None = None, neighbors: int = 3
    ) -> None:
        super().__init__(lam, lam2)
        self.path = path
        self.neighbors = neighbors

    def facts(self, task: Task) -> Tensor:
        return covariance(task) if self.path is None else super().facts(task)

    def prepared(self, facts: Tensor) -> Self:
        new = super().prepared(facts)
        a = nearest(facts, self.neighbors) if self.path is None else read_weights(self.path, len(facts))
        new.register_buffer("laplacian", a.sum(1).diag() - a)
        return new

    def coupling(self, Omega: Tensor) -> Tensor:
        return self.lam * self.get_buffer("laplacian").to(Omega) + self.lam2 * torch.eye(len(Omega)).to(Omega)


class LearnedCoupling(Regularizer):
    """A regularizer A = aΩ + bI that learns an Ω with the eigenvectors of WᵀW.

    Args:
        lam: strength.
        floor: smallest eigenvalue of WᵀW relative to the largest, in (0, 1). It bounds the condition number of Ω by
            1/√floor, and thereby limits how slowly the next rounds converge, and how hard it is for models to leave
            the span of the present ones. With K > d, K − d eigenvalues have this bound.
    """

    def __init__(self, lam: float, floor: float) -> None:
        super().__init__(lam)
        if not 0 < floor < 1:
            raise ConfigError(f"floor={floor} is not in (0, 1). Give a share, such as 1e-4.")
        self.floor = floor

    @property
    def weights(self) -> tuple[float, float]:
        """The numbers a and b."""
        return self.lam, 0.0

    @abstractmethod
    def scale(self, K: int) -> float:
        """Return the eigenvalue of the first Ω, a multiple of the identity."""

    @abstractmethod
    def eigenvalues(self, s: Tensor, counts: Tensor) -> Tensor:
        """Return the eigenvalues of the best Ω for the floored singular values s of W, ascending, and their counts."""

    def counted(self, rest: int) -> int:
        """Return how many of the eigenvalues outside of the span of W take part in the constraint on Ω: all of them."""
        return rest

    def coupling(self, Omega: Tensor) -> Tensor:
        a, b = self.weights
        return a * Omega + b * torch.eye(len(Omega)).to(Omega)

    def sums(self, Omega: Relation) -> Form | None:
        a, b = self.weights
        return Omega.map(lambda values: 1 / (a * values + b)).form() if isinstance(Omega, Spectrum) else None

    def form(self, Omega: Relation) -> Form | None:
        a, b = self.weights
        return Omega.map(lambda values: a * values + b).form() if isinstance(Omega, Spectrum) else None

    def start_omega(self, K: int) -> Tensor:
        return self.scale(K) * torch.eye(K, dtype=torch.float64)

    def start(self, K: int, size: int) -> Relation:
        return Spectrum.multiple(self.scale(K), K, size) if size < K else self.start_omega(K)

    def update_omega(self, W: Tensor, Omega: Any) -> Any:
        """Return the best Ω for W, of the type of Ω, or Ω itself if W = 0."""
        if isinstance(Omega, Spectrum):
            return self._update_spectrum(W, Omega)
        squares, U = torch.linalg.eigh(W.T @ W)
        if squares[-1] <= 0:
            return Omega
        s = squares.clamp_min(self.floor * squares[-1]).sqrt()
        half: Tensor = U * self.eigenvalues(s, torch.ones_like(s)).sqrt()
        new = half @ half.T
        return (new + new.T) / 2  # symmetric to the last bit, despite rounding

    def _update_spectrum(self, W: Tensor, Omega: Spectrum) -> Spectrum:
        d, K = W.shape
        U, s = thin_svd(W)
        if s[-1] <= 0:
            return Omega
        floor = self.floor**0.5 * s[-1]
        counts = torch.ones(d + 1).to(s)
        counts[0] = self.counted(K - d)
        return Spectrum(U, self.eigenvalues(torch.cat([floor[None], s.clamp_min(floor)]), counts))


class TaskRelationship(LearnedCoupling):
    """Learned relationship of the tasks: A = λΩ, or A = 2(λ1·Ω + λ2·I) if λ2 is given.

    `update_omega` returns Ω = Σ⁻¹ for Σ = (WᵀW)^½ / tr (WᵀW)^½. With K > d, the trace is that of the d eigenvalues in
    the span of W: the K − d others, which have the lower bound, would take much of it.

    Args:
        lam: λ, or λ1.
        lam2: λ2 in R = λ1 tr(WΩWᵀ) + λ2‖W‖².
        floor: as in `LearnedCoupling`.

    Ref: Zhang and Yeung 2010; Smith et al. 2017; Hu et al. 2022, eq. (1).
    """

    def __init__(self, lam: float, lam2: float | None = None, floor: float = 1e-4) -> None:
        super().__init__(lam, floor)
        self.lam2 = None if lam2 is None else _positive("lam2", lam2)

    @property
    def weights(self) -> tuple[float, float]:
        return (self.lam, 0.0) if self.lam2 is None else (2 * self.lam, 2 * self.lam2)

    def scale(self, K: int) -> float:
        return K

    def counted(self, rest: int) -> int:
        return 0

    def eigenvalues(self, s: Tensor, counts: Tensor) -> Tensor:
        return (counts * s).sum() / s

    def joint(self, W: Tensor, V: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (λ/2)‖W‖_*² and ‖V‖²/(2λ), nuclear and spectral norm: min over Σ, tr Σ = 1, of ½λ tr(WΣ⁻¹Wᵀ)."""
        if self.lam2 is not None:
            return None
        nuclear, spectral = singular_values(W).sum(), singular_values(V)[0]
        return self.lam / 2 * nuclear.square(), spectral.square() / (2 * self.lam)


class Common(TaskRelationship):
    """A common model beside learned relations: w_k = w0 + u_k, R = (λ0/2)‖w0‖² + (λ/2) tr(U Ω Uᵀ).

    Models shrink to w0, where users with few rows learn from all others, instead of to 0. Minimising R over w0 gives
    A = B⁻¹ with B = 11ᵀ/λ0 + Ω⁻¹/λ, and w0 = (λ/(λ0 + λ 1ᵀΩ1)) W Ω 1. Ω is that of `TaskRelationship` for U.

    Args:
        lam: λ.
        lam0: λ0; small, so that w0 is hardly shrunk. MOCHA keeps w0 as a block of its own, so that few rounds suffice.
        floor: as in `LearnedCoupling`.

    Ref: Evgeniou and Pontil 2004 (with Ω = I).
    """

    def __init__(self, lam: float, lam0: float = 0.1, floor: float = 1e-4) -> None:
        super().__init__(lam, floor=floor)
        self.lam0 = _positive("lam0", lam0)

    @property
    def common(self) -> float | None:
        return self.lam0

    def coupling(self, Omega: Tensor) -> Tensor:
        A = super().coupling(Omega)
        ones = A.sum(1)
        return A - ones[:, None] * ones / (self.lam0 + ones.sum())

    start = LearnedCoupling.start

    def rest(self, Omega: Relation) -> Tensor | Form:
        form = super().sums(Omega)
        if form is not None:
            return form
        return torch.cholesky_inverse(torch.linalg.cholesky(super().coupling(dense(Omega))))

    def inverse_coupling(self, Omega: Tensor) -> Tensor:
        B: Tensor = plus_constant(self.rest(Omega), 1 / self.lam0)
        return B

    def sums(self, Omega: Relation) -> Form | None:
        form = super().sums(Omega)
        return None if form is None else form.plus(torch.ones_like(form.delta), 1 / self.lam0)

    def form(self, Omega: Relation) -> Form | None:
        form = super().form(Omega)
        if form is None:
            return None
        ones = form @ torch.ones_like(form.delta)[:, None]
        return form.plus(ones[:, 0], -1 / float(self.lam0 + ones.sum()))

    def split(self, W: Tensor, Omega: Relation) -> Tensor:
        """Return the best w0 [d, 1] for W [d, K] and Ω."""
        form = super().form(Omega)
        ones = W.new_ones(W.shape[1], 1)
        weights = (super().coupling(dense(Omega)) if form is None else form) @ ones
        return W @ weights / (self.lam0 + weights.sum())

    def update_omega(self, W: Tensor, Omega: Any) -> Any:
        """Return the best Ω for the deviations U from the best w0."""
        return super().update_omega(W - self.split(W, Omega), Omega)

    def joint(self, W: Tensor, V: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return bounds as in `TaskRelationship.joint`, for the better of two w0: the mean of W, and that of V."""
        total = V.sum(1, keepdim=True)
        values = []
        for w0 in (W.mean(1, keepdim=True), total / self.lam0):
            nuclear = singular_values(W - w0).sum()
            values.append(self.lam0 / 2 * w0.square().sum() + self.lam / 2 * nuclear.square())
        spectral = singular_values(V)[0]
        return torch.stack(values).min(), total.square().sum() / (2 * self.lam0) + spectral.square() / (2 * self.lam)


class Clustered(LearnedCoupling):
    """Learned clusters of users: A = λΩ, Ω = η(1 + η)(ηI + M)⁻¹ with 0 ⪯ M ⪯ I, tr M = number of clusters.

    M relaxes the projection onto the clusters' indicators, where R = (λ/2)(Σ_k ‖w_k − its cluster's mean‖² + η‖W‖²).
    `update_omega` returns the Ω of the M that minimises R; M has eigenvalues clip(θ·s_i − η, 0, 1) for s = svd(W). The
    first Ω is that of M = (clusters/K)·I.

    Args:
        lam: λ.
        clusters: number of clusters, at most K.
        eta: η > 0.
        floor: as in `LearnedCoupling`.

    Raises:
        ConfigError: a number is out of its range; `start_omega` raises it for more clusters than users.

    Ref: Jacob et al. 2008; Zhou et al. 2011, eq. (7).
    """

    def __init__(self, lam: float, clusters: int = 3, eta: float = 0.5, floor: float = 1e-4) -> None:
        super().__init__(lam, floor)
        if clusters < 1:
            raise ConfigError(f"clusters={clusters} has to be at least 1.")
        self.clusters = clusters
        self.eta = _positive("eta", eta)

    def scale(self, K: int) -> float:
        if self.clusters > K:
            raise ConfigError(
                f"clusters={self.clusters} exceeds K={K}, but each cluster has at least one user. Lower it."
            )
        return self.eta * (1 + self.eta) / (self.eta + self.clusters / K)

    def eigenvalues(self, s: Tensor, counts: Tensor) -> Tensor:
        # tr M grows piecewise linearly in θ, from 0 to K: solve for the θ at which it equals the number of clusters
        knots = torch.cat([self.eta / s, (1 + self.eta) / s]).sort().values
        traces = (counts * (knots[:, None] * s - self.eta).clamp(0, 1)).sum(1)
        theta = float(np.interp(self.clusters, traces.cpu().numpy(), knots.cpu().numpy()))
        return self.eta * (1 + self.eta) / (self.eta + (theta * s - self.eta).clamp(0, 1))


def _positive(name: str, value: float) -> float:
    """Return the value of a setting; raise ConfigError if it is not a finite number above 0."""
    try:
        is_positive = bool(0 < value < math.inf)
    except (TypeError, ValueError):  # text, or several numbers
        is_positive = False
    if not is_positive:
        raise ConfigError(f"{name}={value} has to be a finite number above 0; otherwise there may be no optimum.")
    return value
