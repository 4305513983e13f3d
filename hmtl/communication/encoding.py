"""Rows of numbers as rows of bytes and back. Shapes: n users, m numbers per IV or model, e further numbers for each."""

import torch
from torch import Tensor

from hmtl.errors import CodingError

WIRES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""How numbers may travel, by name. The further numbers always travel as float64: steps and bounds are not rounded."""

LONG, FEW = 8 << 10, 1 << 20  # bytes: of a row, and of short ones that are copied at once, to stay in the cache


def to_bytes(x: Tensor) -> Tensor:
    """The bytes of x [n, m]: uint8 [n, m·itemsize], sharing memory with x where its rows are contiguous."""
    return (x if x.stride(1) == 1 else x.contiguous()).view(torch.uint8)


def from_bytes(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers [n, m] whose bytes are `rows`, uint8 [n, m·itemsize]; shares their memory if it can.

    Raises:
        CodingError: a row is no whole number of numbers.
    """
    if rows.shape[1] % dtype.itemsize:
        raise CodingError(
            f"Rows of {rows.shape[1]} bytes hold no whole number of {dtype}, {dtype.itemsize} bytes each. "
            "Cut the padding off first."
        )
    if not rows.numel():
        return torch.empty(len(rows), rows.shape[1] // dtype.itemsize, dtype=dtype)  # no view has such strides
    if rows.storage_offset() % dtype.itemsize or rows.stride(0) % dtype.itemsize:
        rows = rows.clone(memory_format=torch.contiguous_format)  # a fresh copy is aligned for any dtype
    return (rows if rows.stride(1) == 1 else rows.contiguous()).view(dtype)


def taken(rows: Tensor, at: Tensor) -> Tensor:
    """rows[at], without a copy where these are all the rows, in order, or all rows are one in memory."""
    if len(rows) and rows.stride(0) == 0:
        return rows[:1].expand(len(at), -1)
    in_order = len(at) == len(rows) and bool((at[1:] > at[:-1]).all())
    return rows if in_order else rows[at]


def put(rows: Tensor, to: Tensor, source: Tensor, at: Tensor) -> None:
    """rows[to] = source[at], long rows one by one: several at once, torch copies at a third of the speed."""
    if rows.shape[1] < LONG:
        few = max(1, FEW // max(1, rows.shape[1]))
        for some, of in zip(to.split(few), at.split(few), strict=True):  # type: ignore[no-untyped-call]  # split has no types
            rows.index_copy_(0, some, source[of])
        return
    targets, sources = rows.unbind(), source.unbind()
    for place, of in zip(to.tolist(), at.tolist(), strict=True):
        targets[place].copy_(sources[of])


def pack(x: Tensor, m: int, wire: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows x [n, m + e] as bytes on the CPU: the first m numbers as `wire`, the further ones as float64 or int64."""
    extras = x[:, m:].to(_further(x.dtype)) if x.shape[1] > m else x.new_zeros(len(x), 0, dtype=torch.float64)
    return to_bytes(x[:, :m].to(wire)).cpu(), to_bytes(extras).cpu()


def unpack(numbers: Tensor, extras: Tensor, wire: torch.dtype, dtype: torch.dtype) -> Tensor:
    """The inverse of `pack`: [n, m + e] as `dtype`. Without further numbers, it may share memory with its bytes."""
    x = from_bytes(numbers, wire).to(dtype)
    return torch.cat([x, from_bytes(extras, _further(dtype)).to(dtype)], dim=1) if extras.shape[1] else x


def _further(dtype: torch.dtype) -> torch.dtype:
    """As what further numbers travel beside numbers of this type."""
    return torch.float64 if dtype.is_floating_point else torch.int64


def rounding(wire: str | None, dtype: str) -> str:
    """Says that models of this type (empty: not known yet) are rounded on the way, where they are."""
    if not wire or not dtype or WIRES[wire].itemsize >= WIRES[dtype].itemsize:
        return ""
    return f"numbers travel as {wire}, narrower than the model's {dtype}, and are rounded on the way"
