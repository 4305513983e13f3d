"""IVs and models in few bits, checked against a plain account in Python, and what coders remember of them.

Both ends agree, and learners may overwrite the IVs that they get.
"""

import math
import struct

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hmtl.communication.codecs.block_loops import SIGNS
from hmtl.communication.codecs.few_bit_blocks import Blocks, QuantizedAggregatorCoder, QuantizedUserCoder
from hmtl.communication.codecs.plain import HeardUsers
from hmtl.errors import ConfigError, RangeError
from hmtl.io.row_layout import RowLayout
from hmtl.testing import QuantizerContract

K, M = 4, 70
ALL = np.arange(K)


def numbers(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(K, M)))


def ends(changes: bool = False) -> tuple[QuantizedUserCoder, QuantizedAggregatorCoder]:
    layout = RowLayout.zeros(M, changes=changes)
    return QuantizedUserCoder(layout, Blocks(4), ALL), QuantizedAggregatorCoder(layout, Blocks(4), len(ALL))


def counted(users: np.ndarray) -> HeardUsers:
    """These users' IVs counted in round 3."""
    return HeardUsers(users, np.where(np.isin(ALL, users), 3, 2), 3, requested=False)


def test_an_aggregator_may_overwrite_ivs() -> None:
    host, aggregator = ends()
    target = numbers(1)
    for _ in range(30):
        ivs = aggregator.decode(ALL, *host.encode(ALL, target, 0), torch.float64, "blocks4")
        got = ivs.clone()
        ivs.zero_()
        host.commit(ALL)
        assert torch.equal(got, aggregator.held)
        assert torch.equal(got, host.held)
    torch.testing.assert_close(got, target, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lost", [False, True])
def test_a_model_is_a_change_of_what_the_user_is_known_to_hold(lost: bool) -> None:
    """If the IV of user 2 is lost, its base stays; so it does at both ends."""
    host, aggregator = ends()
    nobody = np.empty(0, np.int64)
    payload, overhead, row_format = aggregator.encode(numbers(2), torch.float64, counted(nobody))
    assert row_format == "blocks4"
    got: Tensor = host.decode(ALL, payload, overhead[:, :-4], torch.float64, row_format)
    heard = ALL[ALL != 2] if lost else ALL
    host.commit(heard)
    payload, overhead, row_format = aggregator.encode(numbers(3), torch.float64, counted(heard))
    assert torch.equal(aggregator.base, host.base)
    assert torch.equal(host.base[heard], got[heard])
    assert torch.equal(host.base[2], torch.zeros(M, dtype=torch.float64)) == lost
    assert torch.equal(host.decode(ALL, payload, overhead[:, :-4], torch.float64, row_format), aggregator.newest)


@pytest.mark.parametrize("changes", [False, True])
def test_an_iv_that_did_not_count_leaves_no_trace(changes: bool) -> None:
    """The next one is encoded as if it had never been, and both ends hold the same bits."""
    (host, aggregator), (plain, _) = ends(changes), ends(changes)
    host.encode(ALL, numbers(1), 0)  # is lost
    lost, first = (each.encode(ALL, numbers(2), 0) for each in (host, plain))
    assert all(map(torch.equal, lost, first))
    aggregator.decode(ALL, *lost, torch.float64, "blocks4")
    host.commit(ALL)
    assert changes or torch.equal(host.held, aggregator.held)


class TestInt8(QuantizerContract):
    def make(self) -> Blocks:
        return Blocks(8)


class TestInt3(QuantizerContract):
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
