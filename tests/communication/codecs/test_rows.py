"""Numbers to bytes and back."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication.codecs.rows import from_bytes, put, to_bytes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_round_trip_is_bit_for_bit(dtype):
    x = torch.tensor([[0.0, -0.0, float("nan")], [float("-inf"), 5e-324, 1 / 3]], dtype=dtype)
    for numbers in (x, x.T.contiguous().T, x.repeat(1, 2)[:, :3]):
        packets = to_bytes(numbers)
        assert packets.shape == (2, 3 * dtype.itemsize)
        assert torch.equal(from_bytes(packets, dtype).view(torch.uint8), x.view(torch.uint8))


def test_bytes_are_those_of_the_machine():
    assert bytes(to_bytes(torch.tensor([[1.5, -2.0]], dtype=torch.float64))[0].tolist()) == struct.pack("=2d", 1.5, -2)


def test_from_bytes_takes_padded_and_misaligned_rows():
    x = torch.rand(3, 4, dtype=torch.float64)
    padded = torch.zeros(3, 37, dtype=torch.uint8)
    padded[:, 1:33] = to_bytes(x)
    assert torch.equal(from_bytes(padded[:, 1:33], torch.float64), x)


@given(
    n=st.integers(1, 12),
    width=st.integers(0, 40),
    seed=st.integers(0, 10**6),
)
def test_rows_are_put_in_their_place(n: int, width: int, seed: int) -> None:
    """Whatever their order; the others stay as they are."""
    rng = np.random.default_rng(seed)
    rows, source = (torch.from_numpy(rng.integers(0, 256, (n, width + 3), np.uint8))[:, :width] for _ in range(2))
    to, at = (torch.from_numpy(rng.permutation(n)[: n // 2 + 1]) for _ in range(2))
    want = rows.numpy().copy()
    want[to.numpy()] = source.numpy()[at.numpy()]
    put(rows, to, source, at)
    np.testing.assert_array_equal(rows, want)


def test_rows_of_any_layout_become_bytes():
    """Also columns of one number, and no rows at all, which count as contiguous whatever their strides are."""
    x = torch.arange(12, dtype=torch.int64).view(3, 4)
    for rows in (x.T, x.T[:, :1], x.T[:0], x[:0], x[:, 1:3]):
        assert torch.equal(from_bytes(to_bytes(rows), torch.int64), rows.clone())
