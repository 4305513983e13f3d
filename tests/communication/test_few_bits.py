"""Terms in few bits, compared with Python's integers."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication.few_bits import FEW_BITS, FewBits, RowFormat, portions, sizes_of
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


@given(bits=st.integers(2, 64), n=st.integers(1, 4), L=st.integers(1, 200), seed=st.integers(0, 999))
def test_rows_are_added_and_sizes_compared(bits: int, n: int, L: int, seed: int) -> None:
    rng, row_format = np.random.default_rng(seed), RowFormat(L, bits)
    numbers = torch.from_numpy(rng.integers(-(2 ** (bits - 2)), 2 ** (bits - 2), (n, L)))
    sizes = torch.from_numpy(rng.integers(0, 2**15, (n, -(-L // 64))))
    rows = row_format.pack(numbers, sizes)
    assert rows.shape == (n, row_format.nbytes)
    for ours, theirs in zip(row_format.unpack(rows), (numbers, sizes), strict=True):
        assert torch.equal(ours, theirs)
    at = torch.from_numpy(rng.permutation(n)[: n // 2])
    total, largest = row_format.added(rows, at)
    assert torch.equal(total[0], numbers[at].sum(0))
    assert largest[0].tolist() == [max([0, *column]) for column in sizes[at].T.tolist()]


def test_long_rows_are_added_one_by_one() -> None:
    row_format = RowFormat(2**16, 8)
    numbers, sizes = torch.tensor([[3], [1], [-2]]).expand(3, 2**16), torch.tensor([[5], [9], [7]]).expand(3, 2**10)
    total, largest = row_format.added(row_format.pack(numbers, sizes), torch.arange(3))
    assert total.unique().tolist() == [2]
    assert largest.unique().tolist() == [9]


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


def test_portions_are_small() -> None:
    for L in (1, 2**15, 2**17):
        pieces = list(portions(torch.arange(5), L))
        assert torch.cat(pieces).tolist() == [0, 1, 2, 3, 4]
        assert all(len(piece) == 1 or len(piece) * L <= 2**16 for piece in pieces)
    assert not list(portions(torch.arange(0), 8))
