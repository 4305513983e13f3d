"""Regularizers R(W, Ω) = ½ tr(W A Wᵀ), each given by its coupling matrix A(Ω).

K users, d features; W [d, K] has a user's model per column; Ω, A, B = A⁻¹ are [K, K].
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from hmtl.errors import ConfigError

EIGENVALUE_FLOOR = 1e-12
"""Least eigenvalue of WᵀW relative to the largest: keeps Σ's condition number below 1e6, so that Ω = Σ⁻¹ exists."""


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

    @abstractmethod
    def coupling(self, Omega: Tensor) -> Tensor:
        """A [K, K], symmetric and positive definite, on the device of Omega [K, K]."""

    def forward(self, W: Tensor, Omega: Tensor) -> Tensor:
        """R(W, Ω) = ½ tr(W A Wᵀ), a scalar that can be differentiated in W [d, K]."""
        return 0.5 * (W @ self.coupling(Omega) * W).sum()

    @torch.no_grad()
    def inverse_coupling(self, Omega: Tensor) -> Tensor:
        """B = A⁻¹ [K, K], of R*(V) = ½ tr(V B Vᵀ) and the global update W = V B.

        Raises:
            ConfigError: A has the wrong shape, is not symmetric, or not positive definite.
        """
        A, name = self.coupling(Omega), type(self).__name__
        if A.shape != Omega.shape:
            raise ConfigError(f"{name}.coupling gave shape {tuple(A.shape)}, not {tuple(Omega.shape)}: A is [K, K].")
        if not torch.allclose(A, A.T, rtol=1e-10, atol=0):
            raise ConfigError(f"{name}.coupling gave an A that is not symmetric. Use (A + Aᵀ)/2, which is the same R.")
        L, info = torch.linalg.cholesky_ex(A)
        if info.item():
            raise ConfigError(
                f"{name}.coupling gave an A that is not positive definite, so R has no finite conjugate. "
                "Add a ridge, a small multiple of the identity."
            )
        return torch.cholesky_inverse(L)

    def start_omega(self, K: int) -> Tensor:
        """Ω of the first round: K·I, that is Σ = I/K."""
        return K * torch.eye(K, dtype=torch.float64)

    def update_omega(self, W: Tensor, Omega: Tensor) -> Tensor:
        """The Ω that is best for W; the same Ω where the regularizer learns none."""
        return Omega


class Ridge(Regularizer):
    """A = λI: every user for itself, R = (λ/2)‖W‖²."""

    def coupling(self, Omega: Tensor) -> Tensor:
        return self.lam * torch.eye(len(Omega), dtype=Omega.dtype, device=Omega.device)


class TaskRelationship(Regularizer):
    """Learns how the tasks relate: A = λΩ, or A = 2(λ1·Ω + λ2·I) when λ2 is given.

    Args:
        lam: λ, or λ1.
        lam2: λ2 of the form λ1 tr(WΩWᵀ) + λ2‖W‖².

    Ref: Zhang and Yeung 2010; Smith et al. 2017; Hu et al. 2022, eq. (1).
    """

    def __init__(self, lam: float, lam2: float | None = None) -> None:
        super().__init__(lam)
        self.lam2 = None if lam2 is None else positive("lam2", lam2)

    def coupling(self, Omega: Tensor) -> Tensor:
        if self.lam2 is None:
            return self.lam * Omega
        return 2 * (self.lam * Omega + self.lam2 * torch.eye(len(Omega), dtype=Omega.dtype, device=Omega.device))

    def update_omega(self, W: Tensor, Omega: Tensor) -> Tensor:
        """Ω = Σ⁻¹ with Σ = (WᵀW)^½ / tr (WᵀW)^½, eigenvalues floored; W = 0 says nothing about Σ and leaves Ω."""
        eigenvalues, U = torch.linalg.eigh(W.T @ W)
        if eigenvalues[-1] <= 0:
            return Omega
        root = eigenvalues.clamp_min(EIGENVALUE_FLOOR * eigenvalues[-1]).sqrt()
        half: Tensor = U * (root.sum() / root).sqrt()
        return half @ half.T  # exactly symmetric, unlike U diag Uᵀ


def positive(name: str, value: float) -> float:
    """The value itself, if it is finite and above zero.

    Raises:
        ConfigError: it is not.
    """
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={value} must be a finite number above 0: without it the optimum need not exist.")
    return value
