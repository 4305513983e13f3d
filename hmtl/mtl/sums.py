"""Sums over users that have the same bits in any order: terms on a grid.

K users, m coordinates of a model, q sums per coordinate: q·m numbers, all coordinates of the first sum first.

Floating-point sums depend on their order. Therefore users round their terms to a grid, and terms are added as 64-bit
integers: the bits are the same whether relays and server add them, in any order, or the aggregator does.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.errors import ConfigError, RangeError
from hmtl.io.compiled import jit

MAX_SUM = 2.0**61  # of K terms; K differences of terms then sum to at most 2^62, plus K terms to less than 2^63
DIGITS = 3  # words of a figure, see `to_digits`
MAX_FIGURE = 2.0**60
COMPILED = torch.float32, torch.float64  # the types of models that the compiled loops know
HELD = 2**21  # numbers that are held at once, of users on another device or of terms
CACHE_NUMBERS = 2**16  # numbers in a block, so that intermediate results stay in the processor's cache
CACHE_COLUMNS = 4096  # columns for which all rows are read one after the other, so that their sums stay in the cache


def blocks(n: int, m: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of blocks of a matrix [n, m] that hold at most CACHE_NUMBERS numbers each."""
    rows, columns = max(1, CACHE_NUMBERS // max(1, m)), max(1, min(m, CACHE_NUMBERS))
    for row in range(0, n, rows):
        for column in range(0, m, columns):
            yield slice(row, min(row + rows, n)), slice(column, min(column + columns, m))


class LazyRows(ABC):
    """Rows of n users, [n, L], which are computed as they are handed over: slices, like a tensor's.

    Attributes:
        shape: (n, L).
        dtype: of the numbers.
        device: where the users' models are.
    """

    dtype = torch.int64
    shape: tuple[int, int]
    device: torch.device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, block: slice | tuple[slice, slice]) -> Tensor:
        """Return the rows of some users, or some columns of them."""
        users, columns = block if isinstance(block, tuple) else (block, slice(None))
        return self._block(
            *(slice(*part.indices(size)) for part, size in zip((users, columns), self.shape, strict=True))
        )

    @abstractmethod
    def _block(self, users: slice, columns: slice) -> Tensor:
        """Return some columns of some users' rows; both slices have a start and a stop."""


class RowsByUsers(LazyRows):
    """Rows that are made as they are sent, those of some users at a time.

    Args:
        shape: of the rows (n, L).
        dtype: of the numbers.
        device: where the users' models are.
        make: returns the whole rows of some users.
        at_once: how many users' rows are made at once.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        make: Callable[[slice], "Tensor | LazyRows"],
        at_once: int,
    ) -> None:
        self.shape, self.dtype, self.device, self.at_once, self._make = shape, dtype, device, at_once, make
        self._made: tuple[slice, Tensor | LazyRows] = slice(0, 0), torch.empty(0, 0)

    def _block(self, users: slice, columns: slice) -> Tensor:
        n, width = users.stop - users.start, columns.stop - columns.start
        if n <= 0:
            return torch.empty(0, width, dtype=self.dtype)
        if n > self.at_once and width == self.shape[1]:
            rows = torch.empty(n, width, dtype=self.dtype, device=self.device)
            for i in range(0, n, self.at_once):
                some = slice(users.start + i, min(users.start + i + self.at_once, users.stop))
                rows[i : i + self.at_once] = self._make(some)[:]
            return rows
        if self._made[0] != users:
            self._made = slice(0, 0), torch.empty(0, 0)  # before the next ones need memory
            self._made = users, self._make(users)
        return self._made[1][:, columns]


class WeightedChanges(LazyRows):
    """The terms w_k·(x_k − x′_k), rounded to a grid; slices are on the CPU.

    Args:
        grid: the grid.
        new, last: x_k and x′_k [n, m], of one type.
        weights: w_k [n, 1], whose sum over all users is at most 1.
    """

    def __init__(self, grid: "Grid", new: Tensor, last: Tensor, weights: Tensor) -> None:
        self.grid, self.weights = grid, weights
        self.shape, self.device = (len(new), new.shape[1]), new.device
        self._new, self._last = new, last[:1] if last.stride(0) == 0 else last

    def _block(self, users: slice, columns: slice) -> Tensor:
        n, width = (max(0, part.stop - part.start) for part in (users, columns))
        return self._added(users, columns.start, torch.empty(n, width, dtype=torch.int64))

    def sum(self) -> Tensor:
        """Return the sum of the terms, int64 [1, L], without holding all of them."""
        total = torch.zeros(1, self.shape[1], dtype=torch.int64)
        width = self.shape[1] if self._new.is_cpu else max(1, HELD // max(1, len(self)))
        for first in range(0, self.shape[1], width):
            self._added(slice(0, len(self)), first, total[:, first : first + width])
        return total

    def _added(self, users: slice, first: int, to: Tensor) -> Tensor:
        """Write columns first, first + 1, .. of some users' terms to rows of their own, or add them to one row."""
        new, last = self._new[users], self._last if len(self._last) == 1 else self._last[users]
        if not (new.is_cpu and new.dtype in COMPILED and new.is_contiguous() and last.is_contiguous()):
            columns = slice(first, first + to.shape[1])
            kind = new.dtype if new.dtype in COMPILED else torch.float32
            new, last = (x[:, columns].to("cpu", kind).contiguous() for x in (new, last))
            first = 0
        weights = self.weights[users].cpu()
        rows = new.numpy(), last.numpy(), weights.double().numpy().ravel()
        if not _add_changes(*rows, 2.0**self.grid.bits, MAX_SUM / 2, to.numpy(), first):
            self.grid.rounded(new.double() - last, weights)  # raises the error
        return to


@jit()
def _add_changes(
    new: Any, last: Any, weights: NDArray[np.float64], scale: float, limit: float, to: NDArray[np.int64], first: int
) -> bool:
    """Write round(w_k·scale·(new_k − last_k)) to rows, or add all to one row.

    Return whether all scale·(new_k − last_k) fit.

    Columns first, first + 1, .. are read, as many as `to` has.

    Args:
        new: float32 or float64 [n, m].
        last: of the same type, [n, m] or [1, m].
        weights: w_k [n].
        scale: units of the grid in 1.
        limit: the largest size that fits; NaN does not.
        to: a row for each row of `new`, which is overwritten, or one for all, to which all are added.
        first: the first column.
    """
    n, m = len(new), to.shape[1]
    misfits = np.zeros(CACHE_COLUMNS, np.bool_)
    for start in range(0, m, CACHE_COLUMNS):
        stop = min(m, start + CACHE_COLUMNS)
        for k in range(n):
            row = new[k, first + start : first + stop]
            before = last[min(k, len(last) - 1), first + start : first + stop]
            target, weight = to[min(k, len(to) - 1), start:stop], weights[k]
            if len(to) == n:
                target[:] = 0
            for j in range(len(row)):
                units = (np.float64(row[j]) - np.float64(before[j])) * scale
                misfits[j] |= not abs(units) <= limit
                target[j] += np.int64(np.rint(units * weight))
    return not misfits.any()


def added(rows: Tensor) -> Tensor:
    """Return the sum [1, L] of rows [n, L]; the row itself, if there is only one."""
    return rows if len(rows) == 1 else rows.sum(0, keepdim=True)


def fitting(total: float) -> float:
    """Return 2^-⌈log2 total⌉, the power of two that scales numbers with this total to a total in (1/2, 1]."""
    mantissa, exponent = math.frexp(total)
    return 2.0 ** ((mantissa == 0.5) - exponent)


@dataclass(frozen=True)
class Grid:
    """The multiples of 2^-bits, as 64-bit integers K of which can be added.

    Args:
        bits: number of fraction bits, p.
        K: number of users.

    Raises:
        ConfigError: p is not in 0..60.
    """

    bits: int
    K: int

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= 60:
            raise ConfigError(f"fraction_bits={self.bits} is not in 0..60: whole numbers need some of the 64 bits.")

    def rounded(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the terms `x` of a sum, or weights·x, rounded to the grid, int64.

        Args:
            x: terms [n, ...].
            weights: weights of these users [n, 1], whose sum over all users is at most 1; None: 1 each.

        Raises:
            RangeError: a number is not finite, or a sum of K such terms might overflow.
        """
        scaled, limit = x.double() * 2.0**self.bits, MAX_SUM / self.K if weights is None else MAX_SUM / 2
        if scaled.numel():
            low, high = torch.aminmax(scaled)
            largest = max(-float(low), float(high))
            if not math.isfinite(largest):
                raise RangeError(
                    "A term of a sum is not finite: training diverges. Lower solver.step or solver.passes, raise lam, "
                    "or scale the data."
                )
            if largest > limit:
                raise RangeError(
                    f"A number to be added up is {largest / 2.0**self.bits:.3g}, but sums over K={self.K} users on a "
                    f"grid of 2^-{self.bits} fit in 64 bits only if it is at most {limit / 2.0**self.bits:.3g}. Scale "
                    "the data, or lower fraction_bits, or solver.step if training diverges."
                )
        return (scaled if weights is None else scaled.mul_(weights)).round_().to(torch.int64)

    def added(self, total: Tensor, change: Tensor, factor: Tensor | None = None) -> Tensor:
        """Return a running sum plus a sum of at most K differences of terms, both int64; `change` may be overwritten.

        With a `factor`, which has the shape of the last dimension, the change is multiplied by it and rounded again.

        Raises:
            RangeError: the running sum might overflow in the next round.
        """
        if factor is not None:  # clamped so that the sum below cannot wrap around, and its check sees what is too large
            change = change.double().mul_(factor).round_().clamp_(-2.5 * MAX_SUM, 2.5 * MAX_SUM).to(torch.int64)
        new = change.add_(total)
        low, high = map(int, torch.aminmax(new)) if new.numel() else (0, 0)
        if (largest := max(-low, high)) > MAX_SUM:
            raise RangeError(
                f"A sum has grown to {largest / 2.0**self.bits:.3g}, but at most "
                f"{MAX_SUM / 2.0**self.bits:.3g} is safe on a grid of 2^-{self.bits}. "
                "Lower fraction_bits, or solver.step if training diverges."
            )
        return new

    def values(self, sums: Tensor) -> Tensor:
        """Return the values of sums on the grid, float64."""
        return sums.double().mul_(2.0**-self.bits)

    def fine(self, x: Tensor) -> Tensor:
        """Return terms [n, 2] that keep the sign of even a tiny sum of `x` [n]: `x` on the grid, and the remainder."""
        coarse = self.rounded(x)
        return torch.stack([coarse, self.rounded((x.double() - self.values(coarse)) * 2.0**self.bits)], dim=1)

    def positive(self, sums: Tensor) -> bool:
        """Return whether a sum is positive, given the sum [2] of its `fine` terms."""
        coarse, rest = sums.tolist()
        return bool((coarse << self.bits) + rest > 0)


def to_digits(x: Tensor) -> Tensor:
    """Return numbers below 2^60 as int64 [..., 3], exact to 2^-60: three digits to the base 2^40.

    The first digit counts multiples of 2^20. Sums of millions of digits fit in 64 bits.
    """
    digits, rest = [], x.double() * 2.0**-20
    for _ in range(DIGITS):
        digits.append(rest.trunc())
        rest = (rest - digits[-1]) * 2.0**40
    return torch.stack(digits, dim=-1).to(torch.int64)


def from_digits(digits: Tensor) -> Tensor:
    """Return the numbers [...] of sums of `to_digits`, [..., 3], rounded once, float64."""
    numbers = [((a << 80) + (b << 40) + c) / 2**60 for a, b, c in digits.view(-1, DIGITS).tolist()]
    return torch.tensor(numbers, dtype=torch.float64).view(digits.shape[:-1])
