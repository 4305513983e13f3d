"""Wires: what the setting `wire` may be, and what follows from it."""

import torch

from hmtl.communication.codecs.few_bit_blocks import QUANTIZERS, name_of_quantizer
from hmtl.communication.codecs.formats import FEW_BITS, FLOATS, NAMES, Quantizer
from hmtl.errors import ConfigError

Wire = str | Quantizer | None
"""What `wire` may be: a name in FLOATS or QUANTIZERS, a quantizer of your own, or None for the numbers' own type."""


def check_wire(wire: Wire) -> None:
    """Raise ConfigError if a wire has an unknown name or is not a quantizer."""
    if wire is not None and not isinstance(wire, str | Quantizer):
        raise ConfigError(
            f"wire={name_of(wire)} is not a hmtl.communication.codecs.formats.Quantizer. Define bits, encode and "
            "decode."
        )
    if isinstance(wire, str) and wire not in (*FLOATS, *QUANTIZERS):
        names = ", ".join((*QUANTIZERS, *FLOATS))
        raise ConfigError(f"wire={wire} is unknown. Choose one of {names}, a quantizer, or null for no conversion.")


def format_of(wire: Wire, dtype: torch.dtype) -> str:
    """Return the format of rows whose numbers, of type `dtype`, travel by a wire."""
    quantizer = quantizer_of(wire)
    if quantizer:
        return name_of_quantizer(quantizer)
    return wire if isinstance(wire, str) else NAMES[dtype]


def name_of(wire: Wire) -> str | None:
    """Return how messages name a wire; a quantizer of your own has the name of its class."""
    return wire if wire is None or isinstance(wire, str) else type(wire).__name__


def quantizer_of(wire: Wire) -> Quantizer | None:
    """Return the quantizer of a wire, or None if numbers travel as floats."""
    return QUANTIZERS.get(wire) if isinstance(wire, str) else wire


def row_bits(wire: Wire, m: int, dtype: torch.dtype) -> int:
    """Return the bits of a row of m numbers of type `dtype`."""
    quantizer = quantizer_of(wire)
    if quantizer:
        return quantizer.bits(m)
    return 8 * m * (FLOATS[wire] if isinstance(wire, str) else dtype).itemsize


def suits_sums(wire: Wire) -> bool:
    """Return whether sums can travel by a wire: as words of 64 bits, or of few."""
    return wire is None or (isinstance(wire, str) and wire in FEW_BITS)


def rounding_note(wire: Wire, dtype: torch.dtype) -> str:
    """Return a note that numbers of type `dtype` are rounded on the way, or "" if they are not."""
    if not wire:
        return ""
    if quantizer_of(wire):
        return f"numbers travel as {name_of(wire)}; what rounding leaves out is sent with later messages"
    assert isinstance(wire, str)
    if FLOATS[wire].itemsize >= dtype.itemsize:
        return ""
    return f"numbers travel as {wire}, narrower than the model's {NAMES[dtype]}, and are rounded on the way"
