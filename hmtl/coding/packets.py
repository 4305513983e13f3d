"""Rows of numbers as rows of bytes and back, bit for bit. Shapes: K users, m numbers per IV."""

import torch
from torch import Tensor

from hmtl.errors import CodingError


def to_bytes(x: Tensor) -> Tensor:
    """The bytes of x [K, m]: uint8 [K, m·itemsize], sharing memory with x where x is contiguous."""
    return x.contiguous().view(torch.uint8)


def from_bytes(packets: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers [K, m] whose bytes are the rows of packets, uint8 [K, m·itemsize]; shares their memory if it can.

    Raises:
        CodingError: a row is no whole number of numbers.
    """
    if packets.shape[1] % dtype.itemsize:
        raise CodingError(
            f"Packets of {packets.shape[1]} bytes hold no whole number of {dtype}, {dtype.itemsize} bytes each. "
            f"Cut the padding off first."
        )
    if packets.storage_offset() % dtype.itemsize:
        packets = packets.clone()  # a fresh copy is aligned for any dtype
    return packets.contiguous().view(dtype)
