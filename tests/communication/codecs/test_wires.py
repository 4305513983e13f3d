"""What the setting `wire` may be, and what follows from it."""

from typing import cast

import pytest
import torch

from hmtl.communication.codecs.few_bit_blocks import QUANTIZERS, Blocks
from hmtl.communication.codecs.formats import FORMATS
from hmtl.communication.codecs.wires import Wire, check_wire, format_of, rounding_note, row_bits
from hmtl.errors import ConfigError


@pytest.mark.parametrize(("width", "expected"), [(8, 8.25), (4, 4.25), (3, 3.25), (2, 2.25)])
def test_bits_of_a_number(width: int, expected: float) -> None:
    assert row_bits(f"int{width}", 6400, torch.float64) == 6400 * expected
    assert row_bits(None, 6400, torch.float64) == 6400 * 64
    assert row_bits("float16", 6400, torch.float64) == 6400 * 16


class Named:
    """Looks like a quantizer, but cannot decode."""

    bits = encode = int


class Coarse(Blocks):
    """A quantizer of a user's own."""

    def __init__(self) -> None:
        super().__init__(4)


def test_what_is_not_a_wire_is_refused() -> None:
    for wire, named in (("int5", "wire=int5"), (Named(), "wire=Named"), (4, "wire=int")):
        with pytest.raises(ConfigError, match=named):
            check_wire(cast("Wire", wire))
    for known in ("int4", "float16", Blocks(4), None):
        check_wire(known)


def test_the_report_says_that_numbers_are_rounded() -> None:
    assert "int4" in rounding_note("int4", torch.float64)
    assert "travel as Blocks;" in rounding_note(Blocks(4), torch.float64)
    assert "float16" in rounding_note("float16", torch.float64)
    assert rounding_note("float16", torch.bfloat16) == ""
    assert rounding_note("float64", torch.float32) == rounding_note(None, torch.float64) == ""
    assert set(QUANTIZERS) == {"int8", "int4", "int3", "int2"}


@pytest.mark.parametrize(
    ("wire", "name"),
    [(None, "float32"), ("bfloat16", "bfloat16"), ("int4", "blocks4"), (Blocks(2), "blocks2"), (Coarse(), "own")],
    ids=["none", "float", "few-bits", "blocks", "own"],
)
def test_the_format_of_rows_follows_from_the_wire(wire: Wire, name: str) -> None:
    assert format_of(wire, torch.float32) == name
    assert name in FORMATS
