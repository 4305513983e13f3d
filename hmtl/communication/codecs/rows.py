"""Rows of numbers as rows of bytes, and back.

Nothing is rounded to few bits here: `few_bit_blocks` does so for IVs and models, `few_bit_words` for terms of sums;
both keep what rounding leaves over.

Shapes: n users, m numbers per IV or model, e further numbers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.io.arrays import Bytes


def to_bytes(x: Tensor) -> Tensor:
    """Return the bytes of x [n, m], uint8 [n, m·itemsize], without a copy if possible."""
    return (x if x.stride(1) == 1 else x.clone(memory_format=torch.contiguous_format)).view(torch.uint8)


def from_bytes(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers [n, m] that rows of bytes hold, uint8 [n, m·itemsize]; aligned rows are not copied."""
    if not rows.numel():
        return torch.empty(len(rows), rows.shape[1] // dtype.itemsize, dtype=dtype)  # empty rows have no view
    misaligned = rows.storage_offset() % dtype.itemsize or rows.stride(0) % dtype.itemsize or rows.stride(1) != 1
    return (rows.clone(memory_format=torch.contiguous_format) if misaligned else rows).view(dtype)


def take(rows: Tensor, at: Tensor) -> Tensor:
    """Return rows[at], without a copy if these are all rows in order, or one row in memory."""
    if len(at) == len(rows) and bool((at[1:] > at[:-1]).all()):
        return rows
    return rows[:1].expand(len(at), -1) if len(rows) and rows.stride(0) == 0 else rows.index_select(0, at)


def replaced(rows: Tensor, at: Tensor, new: Tensor) -> Tensor:
    """Return `rows` with the rows `at` replaced by `new`; `new` itself if these are all rows in order."""
    return new if len(at) == len(rows) else rows.index_copy(0, at, new)


def put(rows: Tensor, to: Tensor, source: Tensor, at: Tensor) -> None:
    """Set rows[to] = source[at], row by row: this takes no extra memory, and is faster than torch at copying bytes."""
    targets, sources = rows.numpy(), source.numpy()
    for place, origin in zip(to.tolist(), at.tolist(), strict=True):
        targets[place] = sources[origin]


def pack(x: Tensor, m: int, wire: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return rows x [n, m + e] as bytes on the CPU: m numbers as `wire`, further ones as `_further` of it."""
    extras = x[:, m:].to(_further(wire)) if x.shape[1] > m else x.new_zeros(len(x), 0, dtype=torch.float64)
    return to_bytes(x[:, :m].to(wire)).cpu(), to_bytes(extras).cpu()


def unpack(numbers: Tensor, extras: Tensor, wire: torch.dtype, dtype: torch.dtype) -> Tensor:
    """Return the rows [n, m + e] that `pack` was given, as `dtype`.

    If there are no further numbers, the result may share memory with `numbers`.
    """
    return joined(from_bytes(numbers, wire).to(dtype), extras, wire)


def joined(x: Tensor, extras: Tensor, wire: torch.dtype) -> Tensor:
    """Return rows [n, m + e] of the numbers x [n, m], and of further numbers as `pack` returned them beside `wire`."""
    return torch.cat([x, from_bytes(extras, _further(wire)).to(x)], dim=1) if extras.shape[1] else x


def _further(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which further numbers travel beside numbers that travel as `dtype`."""
    return torch.float64 if dtype.is_floating_point else torch.int64


def numbers_to_bytes(numbers: Sequence[int] | NDArray[np.int64]) -> Bytes:
    """Return integers below 2³¹ as 4 bytes each."""
    return np.array(numbers, dtype="<i4").view(np.uint8)


def bytes_to_numbers(content: Bytes) -> NDArray[np.int64]:
    """Return the integers that `numbers_to_bytes` wrote."""
    return np.ascontiguousarray(content).view("<i4").astype(np.int64)
