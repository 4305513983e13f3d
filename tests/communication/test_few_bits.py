"""Terms in few bits, compared with Python's integers."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication.few_bits import FEW_BITS, FewBits, sizes_of
from hmtl.errors import RangeError


def maximum_of(size: int) -> int:
    """The number that a bfloat16 stands for."""
    return int(struct.unpack(">f", struct.pack(">I", size << 16))[0])


@given(
    bits=st.sampled_from(sorted(FEW_BITS.values())),
    n=st.integers(0, 3),
    L=st.integers(1, 200),
    reach=st.integers(0, 60),
    grown=st.integers(-12, 12),
    seed=st.integers(0, 999),
)
def test_what_is_sent_and_what_is_left_over_add_up(
    bits: int, n: int, L: int, reach: int, grown: int, seed: int
) -> None:
    """On the scale of numbers that were up to 2^12 times larger or smaller."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(-(2**reach), 2**reach, (n, L), endpoint=True))
    before = torch.from_numpy(rng.integers(0, 2 ** min(60, max(0, reach + grown)), (1, L), endpoint=True))
    formats, sizes = FewBits(bits, 20, L), sizes_of(before)
    q, rest = formats.rounded(x, sizes)
    most = 2 ** (bits - 1) - 1
    for row, sent, left in zip(x.tolist(), q.tolist(), rest.tolist(), strict=True):
        for at, (number, word, remainder) in enumerate(zip(row, sent, left, strict=True)):
            scale = max(1, -(-maximum_of(int(sizes[0, at // 64])) // most))
            assert word * scale + remainder == number
            assert abs(word) <= most
            assert 2 * abs(remainder) <= scale or (abs(word) == most and abs(remainder) < abs(number))
    assert torch.equal(formats.values(q.sum(0, keepdim=True), sizes), (x - rest).sum(0, keepdim=True))


@given(L=st.integers(1, 200), reach=st.integers(0, 61), seed=st.integers(0, 999))
def test_a_size_is_the_largest_number_of_a_block_rounded_up(L: int, reach: int, seed: int) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).integers(-(2**reach), 2**reach, (2, L), endpoint=True))
    sizes = sizes_of(x)
    assert sizes.shape == (2, -(-L // 64))
    for row, of_row in zip(x.tolist(), sizes.tolist(), strict=True):
        for block, size in enumerate(of_row):
            largest = max(abs(number) for number in row[64 * block : 64 * block + 64])
            assert largest * (1 - 2**-24) <= maximum_of(size) <= largest * (1 + 2**-7)


@pytest.mark.parametrize(("K", "bits"), [(1, 4), (2, 5), (20, 9), (32, 9), (33, 10), (100, 11)])
def test_sums_of_all_users_fit(K: int, bits: int) -> None:
    formats = FewBits(4, K, 128)
    assert formats.sums.bits == bits
    assert 8 * formats.terms.nbytes / 128 == 4.25
    assert 8 * formats.sums.nbytes / 128 == bits + 0.25
    for total in (torch.full((1, 128), sign * 7 * K) for sign in (1, -1)):
        zeros = torch.zeros(1, 2, dtype=torch.int64)
        assert torch.equal(formats.sums.unpack(formats.sums.pack(total, zeros))[0], total)


def test_numbers_that_are_too_large_are_refused() -> None:
    largest = torch.full((1, 3), 2**61)
    with pytest.raises(RangeError):
        sizes_of(-largest - 1)
    with pytest.raises(RangeError):
        FewBits(4, 20, 3).values(torch.full((1, 3), 16), sizes_of(largest))
