"""Numbers to bytes and back."""

import struct

import pytest
import torch

from hmtl.communication.wire import from_bytes, to_bytes
from hmtl.errors import CodingError


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_round_trip_is_bit_for_bit(dtype):
    x = torch.tensor([[0.0, -0.0, float("nan")], [float("-inf"), 5e-324, 1 / 3]], dtype=dtype)
    for given in (x, x.T.contiguous().T, x.repeat(1, 2)[:, :3]):
        packets = to_bytes(given)
        assert packets.shape == (2, 3 * dtype.itemsize)
        assert torch.equal(from_bytes(packets, dtype).view(torch.uint8), x.view(torch.uint8))


def test_bytes_are_those_of_the_machine():
    assert bytes(to_bytes(torch.tensor([[1.5, -2.0]], dtype=torch.float64))[0].tolist()) == struct.pack("=2d", 1.5, -2)


def test_from_bytes_takes_padded_and_misaligned_rows():
    x = torch.rand(3, 4, dtype=torch.float64)
    padded = torch.zeros(3, 37, dtype=torch.uint8)
    padded[:, 1:33] = to_bytes(x)
    assert torch.equal(from_bytes(padded[:, 1:33], torch.float64), x)
    with pytest.raises(CodingError, match=r"37 bytes hold no whole number of torch\.float64"):
        from_bytes(padded, torch.float64)
