"""Regularizers R(W, Ω) = ½ tr(W A Wᵀ), each given by its coupling matrix A(Ω).

K users, d features; W [d, K] has a user's model per column; Ω, A, B = A⁻¹ are [K, K].
"""

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from hmtl.data import Task
from hmtl.errors import ConfigError
from hmtl.mtl.graph import covariance, nearest, read_weights
from hmtl.mtl.numbers import below_one, identity, positive, symmetric
from hmtl.mtl.sums import Form


class Regularizer(nn.Module, ABC):
    """How the users' models hang together. `coupling` is all that a new regularizer must define.

    Args:
        lam: λ > 0, its strength.

    Raises:
        ConfigError: λ is not a finite number above zero.
    """

    def __init__(self, lam: float) -> None:
        super().__init__()
        self.lam = positive("lam", lam)

    def facts(self, task: Task) -> Tensor:
        """What a user tells of its task before the first round, [f] float64; by default nothing."""
        return torch.zeros(0, dtype=torch.float64)

    def prepared(self, facts: Tensor) -> Self:
        """A copy, ready for the users whose facts [K, f] these are; this regularizer itself stays as it is.

        Raises:
            ConfigError, DataError: it cannot be used with these users.
        """
        return copy.deepcopy(self)

    @abstractmethod
    def coupling(self, Omega: Tensor) -> Tensor:
        """A [K, K], symmetric and positive definite, on the device of Omega [K, K]."""

    def forward(self, W: Tensor, Omega: Tensor) -> Tensor:
        """R(W, Ω) = ½ tr(W A Wᵀ), a scalar that can be differentiated in W [d, K]."""
        form = self.form(Omega)
        return 0.5 * (self.coupling(Omega) * (W.T @ W)).sum() if form is None else form.penalty(W.T)

    @torch.no_grad()
    def inverse_coupling(self, Omega: Tensor) -> Tensor:
        """B = A⁻¹ [K, K], of R*(V) = ½ tr(V B Vᵀ) and the global update W = V B.

        Raises:
            ConfigError: A has the wrong shape, is not symmetric, or not positive definite.
        """
        A, name = self.coupling(Omega), type(self).__name__
        if A.shape != Omega.shape:
            raise ConfigError(f"{name}.coupling gave shape {tuple(A.shape)}, not {tuple(Omega.shape)}: A is [K, K].")
        if not (A - A.T).abs().max() <= 1e-10 * A.abs().max():  # rounding scales with the largest entry
            raise ConfigError(f"{name}.coupling gave an A that is not symmetric. Use (A + Aᵀ)/2, which is the same R.")
        L, info = torch.linalg.cholesky_ex((A + A.T) / 2)
        if info.item():
            raise ConfigError(
                f"{name}.coupling gave an A that is not positive definite, so R has no finite conjugate. "
                "Add a ridge, a small multiple of the identity."
            )
        return torch.cholesky_inverse(L)

    def sums(self, Omega: Tensor) -> Form | None:
        """B = diag(δ) + U C Uᵀ, where users need of each other no more than a few sums; None: they need all IVs."""
        return None

    def form(self, Omega: Tensor) -> Form | None:
        """A = diag(a) + U C Uᵀ where it has such a form, by that of its inverse; None where it has none."""
        inverse = self.sums(Omega)
        return None if inverse is None or not (inverse.delta > 0).all() else inverse.coupling()

    def __init_subclass__(cls, **others: Any) -> None:
        """Another coupling than its parent's has other sums, if any."""
        super().__init_subclass__(**others)
        if {"coupling", "inverse_coupling"} & set(vars(cls)) and "sums" not in vars(cls):
            cls.sums = Regularizer.sums  # type: ignore[method-assign]

    @torch.no_grad()
    def conjugate(self, V: Tensor, Omega: Tensor) -> Tensor:
        """R*(V) = ½ tr(V B Vᵀ), a scalar, for V [d, K]."""
        return 0.5 * (V @ self.inverse_coupling(Omega) * V).sum()

    @property
    def learns(self) -> bool:
        """Whether it learns an Ω."""
        return type(self).update_omega is not Regularizer.update_omega

    def joint(self, W: Tensor, V: Tensor) -> tuple[Tensor, Tensor] | None:
        """What stands for R and R* where W [d, K] and Ω are optimised together; None where no such bound is known.

        With Σ s ℓ and Σ s ℓ* they give a primal and a dual of the joint problem, whatever Ω is at present.
        """
        return None

    def start_omega(self, K: int) -> Tensor:
        """Ω of the first round: K·I, that is Σ = I/K."""
        return K * torch.eye(K, dtype=torch.float64)

    def update_omega(self, W: Tensor, Omega: Tensor) -> Tensor:
        """The Ω that is best for W; the same Ω where the regularizer learns none."""
        return Omega


class Ridge(Regularizer):
    """A = λI: every user for itself, R = (λ/2)‖W‖²."""

    def coupling(self, Omega: Tensor) -> Tensor:
        return self.lam * identity(Omega)

    def sums(self, Omega: Tensor) -> Form:
        """None at all: U has no columns."""
        return Form(Omega.new_full((len(Omega),), 1 / self.lam), Omega.new_empty(len(Omega), 0), Omega.new_empty(0, 0))


class Mean(Regularizer):
    """Models near their mean: A = 2(λ1·(I − 11ᵀ/K) + λ2·I), R = λ1 Σ_k ‖w_k − w̄‖² + λ2‖W‖².

    Args:
        lam: λ1.
        lam2: λ2.

    Ref: Evgeniou and Pontil 2004.
    """

    def __init__(self, lam: float, lam2: float = 0.1) -> None:
        super().__init__(lam)
        self.lam2 = positive("lam2", lam2)

    def coupling(self, Omega: Tensor) -> Tensor:
        eye = identity(Omega)
        return 2 * (self.lam * (eye - 1 / len(Omega)) + self.lam2 * eye)

    def sums(self, Omega: Tensor) -> Form:
        """B = (I + (λ1/(λ2·K))·11ᵀ) / (2(λ1 + λ2))."""
        K, delta = len(Omega), 1 / (2 * (self.lam + self.lam2))
        C = delta * self.lam / (self.lam2 * K)
        return Form(Omega.new_full((K,), delta), Omega.new_ones(K, 1), Omega.new_full((1, 1), C))


class SharedModel(Regularizer):
    """One model for all users: R = (λ/2)‖w‖² where all w_k = w, infinite elsewhere; B = 11ᵀ/λ.

    No A has this B for its inverse. `coupling` gives B's pseudo-inverse instead, which is R on the models that W = V B
    can give; σ′ is K.

    Ref: Ma et al. 2015.
    """

    def coupling(self, Omega: Tensor) -> Tensor:
        return torch.full_like(Omega, self.lam / len(Omega) ** 2)

    def inverse_coupling(self, Omega: Tensor) -> Tensor:
        return torch.full_like(Omega, 1 / self.lam)

    def sums(self, Omega: Tensor) -> Form:
        K = len(Omega)
        return Form(Omega.new_zeros(K), Omega.new_ones(K, 1), Omega.new_full((1, 1), 1 / self.lam))


class Graph(Regularizer):
    """Neighbours alike: A = η·L + λ2·I, R = (η/4) Σ_kl a_kl‖w_k − w_l‖² + (λ2/2)‖W‖², L = diag(Σ_l a_kl) − (a_kl).

    Args:
        lam: η.
        lam2: λ2.
        path: file of the weights a_kl, see `graph.read_weights`; without one, see `graph.nearest`.
        neighbors: of each user, where there is no file.

    Ref: Dinh et al. 2021.
    """

    def __init__(self, lam: float, lam2: float = 0.1, path: str | Path | None = None, neighbors: int = 3) -> None:
        super().__init__(lam)
        self.lam2, self.path, self.neighbors = positive("lam2", lam2), path, neighbors

    def facts(self, task: Task) -> Tensor:
        return covariance(task) if self.path is None else super().facts(task)

    def prepared(self, facts: Tensor) -> Self:
        new = super().prepared(facts)
        a = nearest(facts, self.neighbors) if self.path is None else read_weights(self.path, len(facts))
        new.register_buffer("laplacian", a.sum(1).diag() - a)
        return new

    def coupling(self, Omega: Tensor) -> Tensor:
        return self.lam * self.get_buffer("laplacian").to(Omega) + self.lam2 * identity(Omega)


class TaskRelationship(Regularizer):
    """Learns how the tasks relate: A = λΩ, or A = 2(λ1·Ω + λ2·I) when λ2 is given.

    Args:
        lam: λ, or λ1.
        lam2: λ2 of the form λ1 tr(WΩWᵀ) + λ2‖W‖².
        floor: least eigenvalue of WᵀW relative to the largest, in (0, 1): it bounds the condition number of Ω, by
            1/√floor, and thereby how slowly the rounds after converge.

    Ref: Zhang and Yeung 2010; Smith et al. 2017; Hu et al. 2022, eq. (1).
    """

    def __init__(self, lam: float, lam2: float | None = None, floor: float = 1e-4) -> None:
        super().__init__(lam)
        self.lam2 = None if lam2 is None else positive("lam2", lam2)
        self.floor = below_one("floor", floor)

    def coupling(self, Omega: Tensor) -> Tensor:
        if self.lam2 is None:
            return self.lam * Omega
        return 2 * (self.lam * Omega + self.lam2 * identity(Omega))

    def update_omega(self, W: Tensor, Omega: Tensor) -> Tensor:
        """Ω = Σ⁻¹ with Σ = (WᵀW)^½ / tr (WᵀW)^½, eigenvalues floored; W = 0 says nothing about Σ and leaves Ω."""
        eigenvalues, U = torch.linalg.eigh(W.T @ W)
        if eigenvalues[-1] <= 0:
            return Omega
        root = eigenvalues.clamp_min(self.floor * eigenvalues[-1]).sqrt()
        return symmetric(U * (root.sum() / root).sqrt())

    def joint(self, W: Tensor, V: Tensor) -> tuple[Tensor, Tensor] | None:
        """(λ/2)‖W‖_*² and ‖V‖²/(2λ), with the nuclear and the spectral norm: min over Σ, tr Σ = 1, of ½λ tr(WΣ⁻¹Wᵀ)."""
        if self.lam2 is not None:
            return None
        nuclear, spectral = torch.linalg.svdvals(W).sum(), torch.linalg.svdvals(V)[0]
        return self.lam / 2 * nuclear.square(), spectral.square() / (2 * self.lam)


class Clustered(Regularizer):
    """Learns which users belong together: A = λΩ, Ω = η(1 + η)(ηI + M)⁻¹ with 0 ⪯ M ⪯ I, tr M = number of clusters.

    M relaxes the projection on the clusters' indicators, for which R = (λ/2)(Σ_k ‖w_k − its cluster's mean‖² + η‖W‖²).
    `update_omega` finds the M that makes R least.

    Args:
        lam: λ.
        clusters: their number, at most K.
        eta: η > 0.
        floor: least eigenvalue of WᵀW relative to the largest, in (0, 1).

    Raises:
        ConfigError: a number is out of its range; fewer users than clusters is found by `start_omega`.

    Ref: Jacob et al. 2008; Zhou et al. 2011, eq. (7).
    """

    def __init__(self, lam: float, clusters: int = 3, eta: float = 0.5, floor: float = 1e-4) -> None:
        super().__init__(lam)
        if clusters < 1:
            raise ConfigError(f"clusters={clusters} is too small: there is at least one.")
        self.clusters, self.eta, self.floor = clusters, positive("eta", eta), below_one("floor", floor)

    def coupling(self, Omega: Tensor) -> Tensor:
        return self.lam * Omega

    def start_omega(self, K: int) -> Tensor:
        """Ω of M = (clusters/K)·I."""
        if self.clusters > K:
            raise ConfigError(f"clusters={self.clusters} exceeds K={K}: a cluster has at least one user. Lower it.")
        return self.eta * (1 + self.eta) / (self.eta + self.clusters / K) * torch.eye(K, dtype=torch.float64)

    def update_omega(self, W: Tensor, Omega: Tensor) -> Tensor:
        """M has the eigenvectors of WᵀW, and eigenvalues m_i = clip(θ·s_i − η, 0, 1), s_i the singular values of W."""
        eigenvalues, U = torch.linalg.eigh(W.T @ W)
        if eigenvalues[-1] <= 0:
            return Omega
        s = eigenvalues.clamp_min(self.floor * eigenvalues[-1]).sqrt()
        # Σ_i m_i grows from 0 to K, piecewise linearly in θ: find where it is the number of clusters
        knots = torch.cat([self.eta / s, (1 + self.eta) / s]).sort().values
        traces = (knots[:, None] * s - self.eta).clamp(0, 1).sum(1)
        theta = float(np.interp(self.clusters, traces.cpu().numpy(), knots.cpu().numpy()))
        return symmetric(U * (self.eta * (1 + self.eta) / (self.eta + (theta * s - self.eta).clamp(0, 1))).sqrt())
