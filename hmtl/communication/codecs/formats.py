"""Formats: the names by which messages say how the numbers of their rows travel.

Shapes: n rows of m numbers each.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

BLOCK = 64  # numbers with a common scale, if they travel in few bits
FLOATS = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types to which each number is converted."""
PLANES = {8: (8,), 4: (4,), 3: (2, 1), 2: (2,)}
"""How the bits of an integer of few bits are stored in blocks, see `block_loops`."""
FEW_BITS = {f"int{width}": width for width in PLANES}
"""The bits b of an integer, by the names that the setting `wire` may have, and of words of few bits."""
BLOCKS = {f"blocks{width}": width for width in PLANES}
"""The bits b of an integer in blocks."""
INT64, OWN = "int64", "own"  # words of 64 bits; a quantizer of your own
BYTES, REQUEST, DIGEST, ROUNDS = "bytes", "request", "digest", "rounds"  # rows without numbers
NUMBERS = FLOATS | {INT64: torch.int64}
"""Types in which numbers travel as they are."""
NAMES = {dtype: name for name, dtype in NUMBERS.items()}
"""The formats of rows whose numbers travel as a type."""
FORMATS = (BYTES, *NUMBERS, *FEW_BITS, *BLOCKS, OWN, REQUEST, DIGEST, ROUNDS)
"""The formats of rows, of which a message names one; readers go by this name."""


@runtime_checkable
class Quantizer(Protocol):
    """A format that rounds numbers to few bits.

    Rows of equal length have encodings of equal length, so that they can be coded. Rounding may be coarse, since
    senders add what it left out to the next row.
    """

    def bits(self, m: int) -> int:
        """Return the bits of a row of m numbers, a multiple of 8."""

    def encode(self, x: Tensor) -> Tensor:
        """Return rows x [n, m] as bytes, uint8 [n, bits(m) / 8]. Raise RangeError if a number has no encoding."""

    def decode(self, rows: Tensor, out: Tensor) -> None:
        """Write the numbers of rows of bytes to `out` [n, m], a tensor of floats on the CPU."""
