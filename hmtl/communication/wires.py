"""Wires: the formats in which the numbers of IVs and models travel.

Further numbers always travel as float64. Shapes: n rows of m numbers each.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.encoding import BLOCK
from hmtl.errors import ConfigError, RangeError

FLOATS = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types to which each number is converted."""
PLANES = {8: (8,), 4: (4,), 3: (2, 1), 2: (2,)}
"""How the bits of an integer are stored, see `rounding`."""
INT64, OWN = "int64", "own"  # words of 64 bits; a quantiser of your own
NOTHING, BYTES, REQUEST, DIGEST = "nothing", "bytes", "request", "digest"  # rows without numbers
NUMBERS = FLOATS | {INT64: torch.int64}
"""Types in which numbers travel as they are."""
FORMATS = (NOTHING, BYTES, *NUMBERS, *(f"int{width}" for width in PLANES), OWN, REQUEST, DIGEST)
"""The formats of rows, of which a message names one; readers go by this name."""


@runtime_checkable
class Quantiser(Protocol):
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


class Blocks:
    """A quantiser to integers of few bits; each block of numbers has a scale of its own.

    A number x becomes round(x/s), where s is the largest |x| of its block divided by 2^(b-1) - 1, rounded up to a
    bfloat16. Before that, a whole block is rotated, so that what rounding leaves out has no preferred direction, see
    `rounding`.

    Args:
        width: b, the bits of an integer: 8, 4, 3 or 2.
    """

    def __init__(self, width: int) -> None:
        if width not in PLANES:
            raise ConfigError(f"Blocks of {width}-bit numbers: choose a width of {', '.join(map(str, PLANES))} bits.")
        self.width = width

    def bits(self, m: int) -> int:
        full, rest = divmod(m, BLOCK)
        return full * self._block_bits(BLOCK) + (self._block_bits(rest) if rest else 0)

    def encode(self, x: Tensor) -> Tensor:
        from hmtl.communication import rounding  # compiles its loops, which takes a second

        rows = np.empty((len(x), self.bits(x.shape[1]) // 8), np.uint8)
        if rounding.encode(_compiled(x).contiguous().numpy(), self.width, np.array(PLANES[self.width]), rows):
            raise RangeError(
                "an update or model is not finite, or too large for a number of few bits: training diverges. Lower "
                "solver.step or solver.passes, raise lam, or scale the data."
            )
        return torch.from_numpy(rows)

    def decode(self, rows: Tensor, out: Tensor) -> None:
        from hmtl.communication import rounding

        numbers = _compiled(out)
        rounding.decode(rows.contiguous().numpy(), self.width, np.array(PLANES[self.width]), numbers.numpy())
        if numbers is not out:
            out.copy_(numbers)

    def _block_bits(self, size: int) -> int:
        return 16 + sum(8 * -(-size * plane // 8) for plane in PLANES[self.width])


def _compiled(x: Tensor) -> Tensor:
    """Return x in a type that the compiled loops know."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


QUANTISERS = {f"int{width}": Blocks(width) for width in PLANES}
"""Quantisers by the name that `wire` gives them."""

Wire = str | Quantiser | None
"""What `wire` may be: a name in FLOATS or QUANTISERS, a quantiser of your own, or None for the numbers' own type."""


def check_wire(wire: Wire) -> None:
    """Raise ConfigError if a wire has an unknown name or is not a quantiser."""
    if wire is not None and not isinstance(wire, str | Quantiser):
        raise ConfigError(
            f"wire={name_of(wire)} is not a hmtl.communication.wires.Quantiser. Define bits, encode and decode."
        )
    if isinstance(wire, str) and wire not in (*FLOATS, *QUANTISERS):
        names = ", ".join((*QUANTISERS, *FLOATS))
        raise ConfigError(f"wire={wire} is unknown. Choose one of {names}, a quantiser, or null for no conversion.")


def format_of(wire: Wire | torch.dtype) -> str:
    """Return the format of rows whose numbers travel by a wire, or as a type."""
    if isinstance(wire, Quantiser):
        return next((name for name, known in QUANTISERS.items() if known is wire), OWN)
    return wire if isinstance(wire, str) else str(wire).removeprefix("torch.")


def name_of(wire: Wire) -> str | None:
    """Return how messages name a wire; a quantiser of your own has the name of its class."""
    return wire if wire is None or isinstance(wire, str) else type(wire).__name__


def quantiser_of(wire: Wire) -> Quantiser | None:
    """Return the quantiser of a wire, or None if numbers travel as floats."""
    return QUANTISERS.get(wire) if isinstance(wire, str) else wire


def row_bits(wire: Wire, m: int, dtype: torch.dtype) -> int:
    """Return the bits of a row of m numbers of type `dtype`."""
    quantiser = quantiser_of(wire)
    if quantiser:
        return quantiser.bits(m)
    return 8 * m * (FLOATS[wire] if isinstance(wire, str) else dtype).itemsize


def rounding(wire: Wire, dtype: str) -> str:
    """Return a note that numbers of type `dtype` are rounded on the way, or "" if they are not."""
    if not wire or not dtype:
        return ""
    if quantiser_of(wire):
        return f"numbers travel as {name_of(wire)}; what rounding leaves out is sent with later messages"
    assert isinstance(wire, str)
    if FLOATS[wire].itemsize >= FLOATS[dtype].itemsize:
        return ""
    return f"numbers travel as {wire}, narrower than the model's {dtype}, and are rounded on the way"
