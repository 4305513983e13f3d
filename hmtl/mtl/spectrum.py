"""Symmetric matrices most of whose eigenvalues are equal: Ω of many users whose models have few numbers.

K users, models of r < K numbers. W has rank r at most, so that Ω learned from it has r eigenvectors of its own, and one
eigenvalue for all directions that are orthogonal to them. Nothing here takes memory or time that grows with K².
"""

from collections.abc import Callable
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from hmtl.mtl.sums import Form


class Spectrum(nn.Module):
    """The matrix U diag(λ_1..λ_r) Uᵀ + λ_0 (I − U Uᵀ) [K, K].

    Buffers: `vectors`, U [K, r] with orthonormal columns (or zeros, if all eigenvalues are equal); `values`, λ_0..λ_r.
    """

    vectors: Tensor
    values: Tensor

    def __init__(self, vectors: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.register_buffer("values", values)

    @classmethod
    def multiple(cls, value: float, K: int, r: int) -> Self:
        """Return value·I [K, K], as a matrix with room for r eigenvectors."""
        vectors = torch.zeros(K, r, dtype=torch.float64)
        return cls(vectors, vectors.new_full((r + 1,), value))

    def __len__(self) -> int:
        return len(self.vectors)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Spectrum":
        """Return the matrix with the same eigenvectors and the eigenvalues function(λ)."""
        return Spectrum(self.vectors, function(self.values))

    def form(self) -> Form:
        """Return the matrix as a diagonal plus a matrix of rank r."""
        rest = self.values[0]
        return Form(rest.expand(len(self)), self.vectors, (self.values[1:] - rest).diag())

    def block(self, users: Tensor | slice) -> Tensor:
        """Return the rows and columns of some users, symmetric to the last bit."""
        form = self.form()
        block = Form(form.delta[users], form.U[users], form.C).dense()
        return (block + block.T) / 2

    @cached_property
    def dense(self) -> Tensor:
        """The matrix itself [K, K], which takes 8K² bytes."""
        return self.block(slice(None))


def thin_svd(W: Tensor) -> tuple[Tensor, Tensor]:
    """Return the right singular vectors [K, d] and the singular values [d] of W [d, K], d ≤ K, in ascending order."""
    Q, R = torch.linalg.qr(W.T)
    left, s, _ = torch.linalg.svd(R)
    return (Q @ left).flip(1), s.flip(0)


def singular_values(W: Tensor) -> Tensor:
    """Return the singular values of W, in descending order."""
    values: Tensor = torch.linalg.svdvals(torch.linalg.qr(W.T, mode="r").R if W.shape[1] > W.shape[0] else W)
    return values
