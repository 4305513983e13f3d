"""Numbers in few bits, checked against a plain account in Python."""

import math
import struct
from typing import cast

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication.codecs.block_loops import SIGNS
from hmtl.communication.codecs.blocks import QUANTISERS, Blocks
from hmtl.communication.codecs.wires import Wire, check_wire, rounding, row_bits
from hmtl.errors import ConfigError, RangeError
from hmtl.testing import QuantiserContract


class TestInt8(QuantiserContract):
    def make(self) -> Blocks:
        return Blocks(8)


class TestInt3(QuantiserContract):
    def make(self) -> Blocks:
        return Blocks(3)


def bfloat16_above(x: float) -> float:
    """Return the smallest bfloat16 that is at least x."""
    bits = struct.unpack("<I", struct.pack("<f", np.float32(x)))[0] & 0xFFFF0000
    while struct.unpack("<f", struct.pack("<I", bits))[0] < x:
        bits += 0x10000
    return struct.unpack("<f", struct.pack("<I", bits))[0]


@given(
    width=st.sampled_from((8, 4, 3, 2)),
    m=st.integers(1, 200),
    n=st.integers(0, 3),
    exponent=st.integers(-30, 30),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    seed=st.integers(0, 10**6),
)
def test_a_rotated_number_becomes_the_nearest_multiple_of_its_blocks_scale(
    width: int, m: int, n: int, exponent: int, dtype: torch.dtype, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, m)) * 10.0**exponent).to(dtype)
    blocks = Blocks(width)
    rows = blocks.encode(x)
    assert rows.shape == (n, blocks.bits(m) // 8)
    decoded = torch.empty_like(x)
    blocks.decode(rows, decoded)
    hadamard = scipy.linalg.hadamard(64) / 8  # symmetric and orthogonal, up to the order of its rows
    for row, got in zip(x.double().numpy(), decoded.double().numpy(), strict=True):
        for start in range(0, m, 64):
            block, back = row[start : start + 64], got[start : start + 64]
            if len(block) == 64:
                block, back = hadamard @ (SIGNS * block), hadamard @ (SIGNS * back)
            scale = bfloat16_above(float(abs(block).max()) / (2 ** (width - 1) - 1))
            np.testing.assert_allclose(back / scale, np.round(back / scale), atol=1e-4)
            assert (abs(block - back) <= scale * (0.5 + 1e-4)).all()


def test_errors_of_small_numbers_have_no_direction() -> None:
    """One large number per block: without a rotation, all others would become zero."""
    x = torch.full((200, 640), 0.04, dtype=torch.float64)
    x[:, ::64] = 1
    x *= 1 + 0.1 * torch.rand(200, 640, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    decoded = torch.empty_like(x)
    Blocks(4).decode(Blocks(4).encode(x), decoded)
    assert abs(float((decoded.sum() - x.sum()) / x.sum())) < 0.05


@pytest.mark.parametrize(("width", "expected"), [(8, 8.25), (4, 4.25), (3, 3.25), (2, 2.25)])
def test_bits_of_a_number(width: int, expected: float) -> None:
    assert row_bits(f"int{width}", 6400, torch.float64) == 6400 * expected
    assert row_bits(None, 6400, torch.float64) == 6400 * 64
    assert row_bits("float16", 6400, torch.float64) == 6400 * 16


def test_zeros_stay_zeros_and_tiny_numbers_become_zeros() -> None:
    x = torch.zeros(1, 70, dtype=torch.float64)
    x[0, 66] = 1e-300
    decoded = torch.ones_like(x)
    Blocks(4).decode(Blocks(4).encode(x), decoded)
    assert torch.equal(decoded, torch.zeros_like(x))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("place", [0, 63, 64, 69])
def test_what_has_no_encoding_is_refused(bad: float, place: int) -> None:
    x = torch.ones(3, 70, dtype=torch.float64)
    x[1, place] = bad
    with pytest.raises(RangeError, match="not finite"):
        Blocks(4).encode(x)


def test_unknown_widths_are_refused() -> None:
    with pytest.raises(ConfigError, match="5-bit"):
        Blocks(5)


class Named:
    """Looks like a quantiser, but cannot decode."""

    bits = encode = int


def test_what_is_not_a_wire_is_refused() -> None:
    for wire, named in (("int5", "wire=int5"), (Named(), "wire=Named"), (4, "wire=int")):
        with pytest.raises(ConfigError, match=named):
            check_wire(cast("Wire", wire))
    for known in ("int4", "float16", Blocks(4), None):
        check_wire(known)


def test_the_report_says_that_numbers_are_rounded() -> None:
    assert "int4" in rounding("int4", "float64")
    assert "travel as Blocks;" in rounding(Blocks(4), "float64")
    assert "float16" in rounding("float16", "float64")
    assert rounding("float16", "bfloat16") == ""
    assert rounding("float64", "float32") == rounding(None, "float64") == ""
    assert set(QUANTISERS) == {"int8", "int4", "int3", "int2"}
