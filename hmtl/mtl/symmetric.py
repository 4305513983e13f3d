"""Symmetric matrices of all pairs of users: dense, or a multiple of the identity plus a matrix of low rank.

K users, m coordinates of a model, q sums per coordinate: q·m numbers, all coordinates of the first sum first.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from hmtl.mtl.sums import CACHE_NUMBERS

EVERYBODY = slice(None)


class Symmetric(nn.Module, ABC):
    """A matrix $M = δI + U C Uᵀ$ [K, K], such as Ω, A or B = A⁻¹, float64. No method changes it.

    All tensors are contiguous: the bits of products depend on that, and a node that was sent a state computes the same.

    The product w_k = δv_k + U_k C s depends on other users only through the sums s = Σ_l U_lᵀ v_l [q, m].

    Attributes:
        delta: δ, a scalar.
        U: [K, q].
        C: [q, q].
        by_sums: whether messages with the sums suffice; otherwise U = I and s = V.
    """

    by_sums: ClassVar[bool]
    delta: Tensor
    U: Tensor
    C: Tensor

    @property
    def q(self) -> int:
        """Number of sums for each coordinate."""
        return len(self.C)

    def __len__(self) -> int:
        return len(self.U)

    def __rmul__(self, a: float) -> "Symmetric":
        return self.scaled(a, 0.0)

    @abstractmethod
    def __matmul__(self, V: Tensor) -> Tensor:
        """Return the product with V [K, m]."""

    @abstractmethod
    def scaled(self, a: float, b: float) -> "Symmetric":
        """Return aM + bI."""

    @abstractmethod
    def plus(self, u: Tensor, factor: float) -> "Symmetric":
        """Return M + factor·u uᵀ, for u [K, 1]."""

    @abstractmethod
    def inverse(self) -> "Symmetric":
        """Return M⁻¹, or raise ArithmeticError if M is not positive definite."""

    @abstractmethod
    def block(self, users: Tensor | slice) -> Tensor:
        """Return the rows and columns of some users as a tensor."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the diagonal [K]."""

    @abstractmethod
    def dominating(self) -> Tensor:
        """Return c [K] such that diag(c) − M is positive semidefinite."""

    def dense(self) -> Tensor:
        """Return the matrix as a tensor [K, K], which takes 8K² bytes."""
        return self.block(EVERYBODY)

    def identity(self, value: float) -> "LowRank":
        """Return value·I, of the same size and on the same device."""
        return LowRank.multiple(value, len(self)).to(self.C)

    @property
    def eye(self) -> Tensor:
        """The identity as a tensor [K, K]."""
        return torch.eye(len(self)).to(self.C)

    @property
    def ones(self) -> Tensor:
        """A column of ones [K, 1]."""
        return self.C.new_ones(len(self), 1)

    def quadratic(self, V: Tensor) -> Tensor:
        """Return ½ tr(Vᵀ M V), a scalar, for V [K, m]."""
        parts = (
            part.double() for part in torch.split(V, max(64, CACHE_NUMBERS // len(V)), 1)
        )  # large terms may cancel
        return torch.stack([self.value(self.squares(part).sum(), self.sums(part)) for part in parts]).sum()

    def value(self, squares: Tensor, sums: Tensor) -> Tensor:
        """Return `quadratic`, given the sum of all users' `squares`, and the sums of V [q, m] or [q·m]."""
        s = self._by_sum(sums)
        return 0.5 * (squares + (s * (self.C @ s)).sum())

    def squares(self, V: Tensor) -> Tensor:
        """Return δ‖v_k‖² [n], for V [n, m]."""
        return self.delta * V.double().square().sum(1)

    def sums(self, V: Tensor) -> Tensor:
        """Return s [q, m], for V [K, m]."""
        return self.U.T @ V

    def terms(self, V: Tensor, users: Tensor | slice = EVERYBODY) -> Tensor:
        """Return U_kᵀ v_k of these users, [n, q·m], for V [n, m]."""
        return (self.U[users, :, None] * V[:, None]).flatten(1)

    def models(self, V: Tensor, sums: Tensor, users: Tensor | slice = EVERYBODY) -> Tensor:
        """Return w_k of these users [n, m], for V [n, m] and s [q·m], with the same bits for any choice of users."""
        W = self.delta * V
        for u, s in zip(self.U[users].T, self.C @ self._by_sum(sums), strict=True):
            W = W + u[:, None] * s
        return W

    def _by_sum(self, sums: Tensor) -> Tensor:
        return sums.view(self.q, -1 if self.q else 0)


class Dense(Symmetric):
    """A matrix given by all its entries.

    Args:
        C: the entries [K, K], float64.
    """

    by_sums = False

    def __init__(self, C: Tensor) -> None:
        super().__init__()
        self.register_buffer("C", C.contiguous())

    @property
    def delta(self) -> Tensor:  # type: ignore[override]
        return self.C.new_zeros(())

    @property
    def U(self) -> Tensor:  # type: ignore[override]
        return self.eye

    def __len__(self) -> int:
        return len(self.C)

    def __matmul__(self, V: Tensor) -> Tensor:
        return self.C @ V

    def scaled(self, a: float, b: float) -> "Dense":
        return Dense(a * self.C + b * self.U)

    def plus(self, u: Tensor, factor: float) -> "Dense":
        return Dense(self.C + factor * u * u.T)

    def inverse(self) -> "Dense":
        L, info = torch.linalg.cholesky_ex((self.C + self.C.T) / 2)
        if info:
            raise ArithmeticError("not positive definite")
        return Dense(torch.cholesky_inverse(L))

    def block(self, users: Tensor | slice) -> Tensor:
        return self.C[users][:, users]

    def diagonal(self) -> Tensor:
        return self.C.diagonal()

    def dominating(self) -> Tensor:
        """Return `Σ_l |M_kl|`."""
        return self.C.abs().sum(1)

    def sums(self, V: Tensor) -> Tensor:
        return V


class LowRank(Symmetric):
    """A multiple of the identity plus a matrix of rank q: nothing takes memory or time that grows with K².

    Args:
        delta, U, C: as in `Symmetric`.
    """

    by_sums = True

    def __init__(self, delta: Tensor, U: Tensor, C: Tensor) -> None:
        super().__init__()
        self.register_buffer("delta", delta)
        self.register_buffer("U", U.contiguous())
        self.register_buffer("C", C.contiguous())

    @classmethod
    def multiple(cls, value: float, K: int, q: int = 0) -> Self:
        """Return value·I [K, K], as a matrix with room for a part of rank q."""
        zeros = torch.zeros(K + q, q, dtype=torch.float64)
        return cls(torch.tensor(value, dtype=torch.float64), zeros[:K], zeros[K:])

    def __matmul__(self, V: Tensor) -> Tensor:
        return torch.addmm(self.delta * V, self.U, self.C @ (self.U.T @ V))

    def scaled(self, a: float, b: float) -> "LowRank":
        return LowRank(a * self.delta + b, self.U, a * self.C)

    def plus(self, u: Tensor, factor: float) -> "LowRank":
        C = nn.functional.pad(self.C, (0, 1, 0, 1))
        C[-1, -1] = factor
        return LowRank(self.delta, torch.cat([self.U, u], dim=1), C)

    def inverse(self) -> "LowRank":
        """Return I/δ − U (δI + C UᵀU)⁻¹ C Uᵀ/δ.  Ref: Woodbury 1950."""
        inner = self.delta * torch.eye(self.q).to(self.C) + self.C @ (self.U.T @ self.U)
        if not (self.delta > 0 and (torch.linalg.eigvals(inner).real > 0).all()):
            raise ArithmeticError("not positive definite")
        C = torch.linalg.solve(inner, self.C) / -self.delta
        return LowRank(1 / self.delta, self.U, (C + C.T) / 2)

    def block(self, users: Tensor | slice) -> Tensor:
        U = self.U[users]
        block = self.delta * torch.eye(len(U)).to(U) + U @ self.C @ U.T
        return (block + block.T) / 2  # symmetric to the last bit, despite rounding

    def diagonal(self) -> Tensor:
        return self.delta + (self.U @ self.C * self.U).sum(1)

    def dominating(self) -> Tensor:
        """Return c [K].

        diag(p) ⪰ F Fᵀ if and only if the largest eigenvalue of Σ_k f_k f_kᵀ / p_k [q, q] is at most 1. Therefore any
        p > 0 can be scaled to the right size, and p_k ∝ ‖f_k‖ is the best choice if the rows have no preferred
        direction. For a matrix of rank one, c is `Σ_l |M_kl|`; for r directions alike, it is smaller by about √r.
        """
        values, vectors = torch.linalg.eigh(self.C)
        F = self.U @ (vectors * values.clamp_min(0).sqrt())  # without the negative part of C, which may be left out
        p = torch.linalg.vector_norm(F, dim=1)
        scaled = F / p.clamp_min(torch.finfo(p.dtype).tiny).sqrt()[:, None]
        largest = torch.linalg.eigvalsh(scaled.T @ scaled)[-1] if p.any() else 0.0
        return torch.add(self.delta, largest * p)
