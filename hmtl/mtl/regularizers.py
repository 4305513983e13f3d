"""Regularizers R(W, Ω) = ½ tr(W A Wᵀ), each defined by its coupling matrix A(Ω).

K users, d features; W [d, K] holds one user's model per column, for networks its change from the start, so that they
are drawn to where they started, not to 0. Ω, A and B = A⁻¹ are `Symmetric`, [K, K]. If there are more users than
numbers in a model, a learned Ω is of low rank, and no matrix [K, K] is ever built.
"""

import copy
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from hmtl.data import Task
from hmtl.errors import ConfigError
from hmtl.io.described import Described
from hmtl.mtl.graph import covariance, nearest, read_weights
from hmtl.mtl.overriding import defined_below
from hmtl.mtl.symmetric import Dense, LowRank, Symmetric

FORMULAS = {name: {"coupling"} for name in ("inverse", "one_model", "common")}
FORMULAS |= {"joint": {"coupling", "update_omega", "eigenvalues"}}
"""What follows from the methods named: a subclass that redefines one of these starts without it."""


class Regularizer(Described, nn.Module, ABC):
    """The coupling of the users' models. A new regularizer only has to define `coupling`.

    A regularizer that learns Ω also defines `update_omega`. All else follows; a subclass with a `coupling` of its own
    inherits no formula for it, see `FORMULAS`.

    Args:
        lam: strength λ > 0.

    Attributes:
        one_model: whether B has only equal rows, so that all models are the same.

    Raises:
        ConfigError: λ is not a finite number above 0.
    """

    one_model: bool = False

    def __init__(self, lam: float) -> None:
        super().__init__()
        self.lam = _positive("lam", lam)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for formula, sources in FORMULAS.items():
            if sources & vars(cls).keys() and formula not in vars(cls):
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
    def coupling(self, Omega: Symmetric) -> Symmetric:
        """Return A, positive definite: `Dense` of a tensor [K, K], or a matrix computed from Ω."""

    def forward(self, W: Tensor, Omega: Symmetric) -> Tensor:
        """Return $R(W, Ω) = ½ tr(W A Wᵀ)$, a scalar that is differentiable in W [d, K]."""
        return self.coupling(Omega).quadratic(W.T)

    @torch.no_grad()
    def inverse(self, Omega: Symmetric) -> Symmetric:
        """Return B = A⁻¹, as in $R*(V) = ½ tr(V B Vᵀ)$ and the global update W = V B.

        Raises:
            ConfigError: A has the wrong shape, is not symmetric, or is not positive definite.
        """
        A, name = self.coupling(Omega), type(self).__name__
        if not isinstance(A, Symmetric) or len(A) != len(Omega):
            raise ConfigError(f"{name}.coupling does not return a matrix of all users. Return Dense(A) for A [K, K].")
        if A.q and not (A.C - A.C.T).abs().max() <= 1e-10 * A.C.abs().max():  # the largest entry scales rounding errors
            raise ConfigError(f"{name}.coupling returned an asymmetric A. Return (A + Aᵀ)/2, which gives the same R.")
        try:
            return A.inverse()
        except ArithmeticError as error:
            raise ConfigError(
                f"{name}.coupling returned an A that is not positive definite, so R has no finite conjugate. Add a "
                "small multiple of the identity."
            ) from error

    @property
    def learns(self) -> bool:
        """Whether the regularizer learns Ω."""
        return "update_omega" in defined_below(Regularizer, type(self))

    @property
    def common(self) -> float | None:
        """λ0, if B = 11ᵀ/λ0 + another positive definite matrix and λ0 is small; None otherwise.

        The algorithm then treats the part w0 that all models share as a block of its own. `rest` is the other matrix.
        """
        return None

    def rest(self, Omega: Symmetric) -> Symmetric:
        """Return B − 11ᵀ/λ0; without a common model, B."""
        return self.inverse(Omega)

    def joint(self, W: Tensor, V: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return R and R* of the joint problem in W [d, K] and Ω, or None if they are not known.

        Together with Σ s ℓ and Σ s ℓ* they bound the joint optimum, whatever the present Ω.
        """
        return None

    def start(self, K: int, size: int) -> Symmetric:
        """Return the Ω of the first round for models of `size` numbers: K·I, which corresponds to Σ = I/K."""
        Omega = LowRank.multiple(K, K)
        return Dense(Omega.dense()) if self.learns else Omega

    def update_omega(self, W: Tensor, Omega: Symmetric) -> Symmetric:
        """Return the best Ω for W, in the form of `start`, or Ω itself if the regularizer does not learn it."""
        return Omega


class Ridge(Regularizer):
    """$A = λI$: no coupling, $R = (λ/2)‖W‖²$."""

    def coupling(self, Omega: Symmetric) -> Symmetric:
        return Omega.identity(self.lam)


class Shrinking(Regularizer):
    """A coupling with a term of its own that shrinks models to 0, and networks to their start.

    Args:
        lam: strength of the coupling.
        lam2: λ2, strength of the term; None: 0.1, and 1e-6 for networks, which it limits far more.
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
    """Models near their mean: $A = 2(λ1·(I − 11ᵀ/K) + λ2·I)$, $R = λ1 Σ_k ‖w_k − w̄‖² + λ2‖W‖²$.

    Args:
        lam: λ1.
        lam2: λ2, see `Shrinking`.

    Ref: Evgeniou and Pontil 2004.
    """

    def coupling(self, Omega: Symmetric) -> Symmetric:
        return Omega.identity(2 * (self.lam + self.lam2)).plus(Omega.ones, -2 * self.lam / len(Omega))


class SharedModel(Regularizer):
    """One model for all users: $R = (λ/2)‖w‖²$ if all w_k = w, infinite otherwise; $B = 11ᵀ/λ$.

    B is singular. `coupling` returns (λ/K)·I instead of A, which gives R for all models W = V B; σ′ is K.

    Ref: Ma et al. 2015.
    """

    one_model = True

    def coupling(self, Omega: Symmetric) -> Symmetric:
        return Omega.identity(self.lam / len(Omega))

    def inverse(self, Omega: Symmetric) -> Symmetric:
        return Omega.identity(0.0).plus(Omega.ones, 1 / self.lam)


class Graph(Shrinking):
    """Similar models for neighbors: $A = η·L + λ2·I$ with the graph's Laplacian $L = diag(Σ_l a_kl) − (a_kl)$.

    $R = (η/4) Σ_kl a_kl‖w_k − w_l‖² + (λ2/2)‖W‖²$.

    Args:
        lam: η.
        lam2: λ2, see `Shrinking`.
        path: file of the weights a_kl, see `graph.read_weights`; None: `graph.nearest` chooses the neighbors.
        neighbors: number of nearest users that become neighbors of each user; ignored if there is a file.

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

    def coupling(self, Omega: Symmetric) -> Symmetric:
        return Dense(self.get_buffer("laplacian").to(Omega.C)).scaled(self.lam, self.lam2)


class LearnedCoupling(Regularizer):
    """A regularizer A = λΩ that learns an Ω with the eigenvectors of WᵀW.

    Args:
        lam: λ.
        floor: smallest eigenvalue of WᵀW relative to the largest, in (0, 1). It bounds the condition number of Ω by
            1/√floor, and thereby limits how slowly the next rounds converge, and how hard it is for models to leave
            the span of the present ones. With K > d, K − d eigenvalues have this bound.
    """

    def __init__(self, lam: float, floor: float) -> None:
        super().__init__(lam)
        if not 0 < floor < 1:
            raise ConfigError(f"floor={floor} is not in (0, 1). Give a share, such as 1e-4.")
        self.floor = floor

    def scale(self, K: int) -> float:
        """Return the eigenvalue of the first Ω, a multiple of the identity."""
        return K

    @abstractmethod
    def eigenvalues(self, s: Tensor, rest: int) -> Tensor:
        """Return the eigenvalues of the best Ω for the floored singular values s of W, ascending.

        The first of them is that of `rest` more directions, which are outside of the span of W.
        """

    def coupling(self, Omega: Symmetric) -> Symmetric:
        return self.lam * Omega

    def start(self, K: int, size: int) -> Symmetric:
        Omega = LowRank.multiple(self.scale(K), K, size if size < K else 0)
        return Omega if size < K else Dense(Omega.dense())

    def update_omega(self, W: Tensor, Omega: Symmetric) -> Symmetric:
        """Return the best Ω for W, in the form of `start`, or Ω itself if W = 0."""
        d, K = W.shape
        if d < K:
            U, descending, _ = torch.linalg.svd(W.T, full_matrices=False)
            s = descending.flip(0)
        else:
            squares, U = torch.linalg.eigh(W.T @ W)
            s = squares.clamp_min(0).sqrt()
        if s[-1] <= 0:
            return Omega
        floored = torch.cat([0 * s[:1], s]).clamp_min(self.floor**0.5 * s[-1])
        outside, values = self.eigenvalues(floored, K - len(s)).tensor_split([1])
        if d < K:
            return LowRank(outside[0], U, (values - outside).flip(0).diag())
        return Dense(LowRank(0 * outside[0], U, values.diag()).dense())


class TaskRelationship(LearnedCoupling):
    """Learned relationship of the tasks: $A = λΩ$, or $A = 2(λ1·Ω + λ2·I)$ if λ2 is given.

    `update_omega` returns Ω = Σ⁻¹ for Σ = (WᵀW)^½ / tr (WᵀW)^½. With K > d, the trace is that of the d eigenvalues in
    the span of W: the K − d others, which have the lower bound, would take much of it.

    Args:
        lam: λ, or λ1.
        lam2: λ2 in $R = λ1 tr(WΩWᵀ) + λ2‖W‖²$.
        floor: as in `LearnedCoupling`.

    Ref: Zhang and Yeung 2010; Smith et al. 2017; Hu et al. 2022, eq. (1).
    """

    def __init__(self, lam: float, lam2: float | None = None, floor: float = 1e-4) -> None:
        super().__init__(lam, floor)
        self.lam2 = None if lam2 is None else _positive("lam2", lam2)

    def coupling(self, Omega: Symmetric) -> Symmetric:
        return self.lam * Omega if self.lam2 is None else Omega.scaled(2 * self.lam, 2 * self.lam2)

    def eigenvalues(self, s: Tensor, rest: int) -> Tensor:
        return s[1:].sum() / s

    def joint(self, W: Tensor, V: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (λ/2)‖W‖_*² and ‖V‖²/(2λ), nuclear and spectral norm: min over Σ, tr Σ = 1, of ½λ tr(WΣ⁻¹Wᵀ)."""
        if self.lam2 is not None:
            return None
        nuclear, spectral = singular_values(W).sum(), singular_values(V)[0]
        return self.lam / 2 * nuclear.square(), spectral.square() / (2 * self.lam)


class Common(TaskRelationship):
    """A common model beside learned relations: w_k = w0 + u_k, $R = (λ0/2)‖w0‖² + (λ/2) tr(U Ω Uᵀ)$.

    Models shrink to w0, where users with few rows learn from all others, instead of to 0. Minimizing R over w0 gives
    A = B⁻¹ with $B = 11ᵀ/λ0 + Ω⁻¹/λ$, and $w0 = (λ/(λ0 + λ 1ᵀΩ1)) W Ω 1$. Ω is that of `TaskRelationship` for U.

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

    def coupling(self, Omega: Symmetric) -> Symmetric:
        A = super().coupling(Omega)
        ones = A @ A.ones
        return A.plus(ones, -1 / float(self.lam0 + ones.sum()))

    def rest(self, Omega: Symmetric) -> Symmetric:
        return super().coupling(Omega).inverse()

    def inverse(self, Omega: Symmetric) -> Symmetric:
        return self.rest(Omega).plus(Omega.ones, 1 / self.lam0)

    def split(self, W: Tensor, Omega: Symmetric) -> Tensor:
        """Return the best w0 [d, 1] for W [d, K] and Ω."""
        weights = super().coupling(Omega) @ Omega.ones
        return W @ weights / (self.lam0 + weights.sum())

    def update_omega(self, W: Tensor, Omega: Symmetric) -> Symmetric:
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
    """Learned clusters of users: A = λΩ, $Ω = η(1 + η)(ηI + M)⁻¹$ with 0 ⪯ M ⪯ I, tr M = number of clusters.

    M relaxes the projection onto the clusters' indicators, where R = (λ/2)(Σ_k ‖w_k − its cluster's mean‖² + η‖W‖²).
    `update_omega` returns the Ω of the M that minimizes R; M has eigenvalues clip(θ·s_i − η, 0, 1) for s = svd(W). The
    first Ω is that of M = (clusters/K)·I.

    Args:
        lam: λ.
        clusters: number of clusters, at most K.
        eta: η > 0.
        floor: as in `LearnedCoupling`.

    Raises:
        ConfigError: a number is out of its range; `start` raises it for more clusters than users.

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

    def eigenvalues(self, s: Tensor, rest: int) -> Tensor:
        counts = torch.ones_like(s)
        counts[0] = rest
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


def singular_values(W: Tensor) -> Tensor:
    """Return the singular values of W, in descending order."""
    values: Tensor = torch.linalg.svdvals(W if len(W) > W.shape[1] else W.T)
    return values
