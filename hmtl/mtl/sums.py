"""Learners that need no more of the other users than a few sums, and these sums to the last bit.

K users, m coordinates of a model, q sums for each of them: q·m numbers, those of the first sum first.

Floating-point sums depend on their order. So each term is rounded by its user to a grid, and terms are added as 64-bit
integers: relays and server may then add in any order, or not at all and leave it to the aggregator, with the same bits.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from hmtl.clock import for_others
from hmtl.errors import ConfigError, RangeError

# of a sum of K terms: then a sum of K differences of terms is at most 2^62, and with one of K terms added below 2^63
MOST = 2.0**61


WORK = 2**16  # numbers in work at once, so that what is made on the way stays in the processor's cache


def blocks(n: int, m: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks of a matrix [n, m], WORK numbers each at most."""
    rows, columns = max(1, WORK // max(1, m)), max(1, min(m, WORK))
    for row in range(0, n, rows):
        for column in range(0, m, columns):
            yield slice(row, min(row + rows, n)), slice(column, min(column + columns, m))


def some(W: Tensor, at: Tensor, columns: slice) -> Tensor:
    """W[at, columns]; a view where these rows, ascending, follow each other."""
    first, last = int(at[0]), int(at[-1])
    return W[first : last + 1, columns] if last - first < len(at) else W[:, columns].index_select(0, at.to(W.device))


class Terms:
    """Terms of sums, int64 [n, q·m], made whenever they are asked for: all at once take more room than all models.

    Args:
        shape: (n, q, m).
        make: the terms [b, q, c] of some rows [b], ascending, and some columns.
        device: where they are made.
    """

    dtype = torch.int64

    def __init__(
        self, shape: tuple[int, int, int], make: Callable[[Tensor, slice], Tensor], device: torch.device
    ) -> None:
        (n, self.q, self.m), self.make, self.device = shape, make, device
        self.shape = n, self.q * self.m

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Tensor) -> Tensor:
        """Those of some rows, ascending, [len(at), q·m]."""
        made = torch.empty(len(at), self.q, self.m, dtype=self.dtype, device=self.device)
        for rows, columns in blocks(len(at), self.m):
            made[rows, :, columns] = self.make(at[rows], columns)
        return made.flatten(1)

    def added(self, at: Tensor) -> Tensor:
        """The sum of those of some rows, ascending, [1, q·m]."""
        total = torch.zeros(self.q, self.m, dtype=self.dtype, device=self.device)
        for rows, columns in blocks(len(at), self.m):
            total[:, columns] += self.make(at[rows], columns).sum(0)
        return total.view(1, -1)

    def by_others(self) -> "Terms":
        """These, where who asks for them has the work of adding, and others that of making them."""

        def make(at: Tensor, columns: slice) -> Tensor:
            with for_others():
                return self.make(at, columns)

        return Terms((len(self), self.q, self.m), make, self.device)


def _largest(x: Tensor) -> float:
    """The largest magnitude; NaN if one is NaN."""
    low, high = torch.aminmax(x)
    return max(-float(low), float(high))


@dataclass(frozen=True)
class Grid:
    """Multiples of 2^-bits, as 64-bit integers of which K can be added.

    Args:
        bits: p.
        K: number of users.

    Raises:
        ConfigError: p is not in 0..60.
    """

    bits: int
    K: int

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= 60:
            raise ConfigError(f"fraction_bits={self.bits} is not in 0..60: 64 bits have to hold whole numbers, too.")

    def rounded(self, x: Tensor) -> Tensor:
        """The terms x of a sum on the grid, int64.

        Raises:
            RangeError: K such terms might not fit.
        """
        scaled = x.double() * 2.0**self.bits
        if scaled.numel() and not (largest := _largest(scaled)) <= MOST / self.K:  # nor is NaN
            raise RangeError(
                f"A term of a sum is {largest / 2.0**self.bits:.3g}, and 64 bits hold sums of K={self.K} terms up to "
                f"{MOST / self.K / 2.0**self.bits:.3g} on a grid of 2^-{self.bits}. If the models do not diverge, "
                "lower fraction_bits."
            )
        return scaled.round_().to(torch.int64)

    def added(self, total: Tensor, terms: Tensor) -> Tensor:
        """A running sum, and a sum of K differences of terms more, both int64 of the same shape.

        Raises:
            RangeError: the running sum has become too large.
        """
        new = total + terms
        if new.numel() and float(largest := new.abs().max()) > MOST:
            raise RangeError(
                f"A sum has grown to {float(largest) / 2.0**self.bits:.3g}, and on a grid of 2^-{self.bits} no more "
                f"than {MOST / 2.0**self.bits:.3g} is safe. If the models do not diverge, lower fraction_bits."
            )
        return new

    def values(self, sums: Tensor) -> Tensor:
        """Sums on the grid as numbers, float64."""
        return sums.double() * 2.0**-self.bits

    def fine(self, x: Tensor) -> Tensor:
        """Numbers [n], of whose sum the sign matters, however small they are: [n, 2] on the grid, and what is left."""
        coarse = self.rounded(x)
        return torch.stack([coarse, self.rounded((x.double() - self.values(coarse)) * 2.0**self.bits)], dim=1)

    def positive(self, sums: Tensor) -> bool:
        """Whether the sum of numbers is above zero, of which [2] is the sum of what `fine` gave."""
        coarse, rest = sums.tolist()
        return bool((coarse << self.bits) + rest > 0)


@dataclass(frozen=True, eq=False)
class Form:
    """B = A⁻¹ = diag(δ) + U C Uᵀ: the update w_k = δ_k v_k + U_k C s needs of others s = Σ_l U_lᵀ v_l alone.

    Attributes:
        delta: δ [K].
        U: [K, q].
        C: [q, q].
    """

    delta: Tensor
    U: Tensor
    C: Tensor

    @property
    def q(self) -> int:
        """How many sums there are of each coordinate."""
        return self.U.shape[1]

    @cached_property
    def _UC(self) -> Tensor:
        return self.U @ self.C  # for all users at once, so that each finds the same bits as an aggregator

    def inverse_coupling(self) -> Tensor:
        """B [K, K]."""
        return self.delta.diag() + self._UC @ self.U.T

    def coupling(self) -> "Form":
        """A = diag(1/δ) − Û Ĉ Ûᵀ as such a form, with −Ĉ for C; δ > 0.  Ref: Woodbury 1950."""
        scaled = self.U / self.delta[:, None]
        return Form(1 / self.delta, scaled, -torch.linalg.inv(torch.linalg.inv(self.C) + self.U.T @ scaled))

    def penalty(self, W: Tensor) -> Tensor:
        """½ Σ_kl A_kl w_k·w_l, a scalar, where this is the form of A; for W [K, m]."""
        squares, sums = W.new_zeros((), dtype=torch.float64), W.new_zeros(self.q, W.shape[1], dtype=torch.float64)
        for rows, columns in blocks(*W.shape):
            part = W[rows, columns].double()
            squares = squares + self.delta[rows] @ part.square().sum(1)
            sums[:, columns] += self.U[rows].T @ part
        return 0.5 * (squares + (sums * (self.C @ sums)).sum())

    def terms(self, V: Tensor, users: Tensor | slice = slice(None)) -> Tensor:
        """U_kᵀ v_k of these users, [n, q·m], for V [n, m]."""
        return (self.U[users, :, None] * V[:, None]).flatten(1)

    def shared(self, sums: Tensor, users: Tensor | slice = slice(None)) -> Tensor | float:
        """U_k C s of these users, [n, m], for s [n or 1, q·m]; 0 where there are no sums."""
        parts = [self._UC[users, j, None] * s for j, s in enumerate(sums.chunk(self.q, dim=1))] if self.q else []
        return reduce(operator.add, parts, 0.0) if len(parts) != 1 else parts[0]

    def models(self, V: Tensor, sums: Tensor, users: Tensor | slice = slice(None)) -> Tensor:
        """w_k = δ_k v_k + U_k C s of these users, [n, m]."""
        return self.delta[users, None] * V + self.shared(sums, users)
