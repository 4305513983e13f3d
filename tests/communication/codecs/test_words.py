"""Rows as bytes: words as of Python's integers, added, and in shares that have the same bits modulo a word's length."""

import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import sum_code
from hmtl.communication.codecs.rows import numbers_to_bytes
from hmtl.communication.codecs.words import PlainRows, RowFormat, portions, unpacked
from hmtl.errors import CodingError
from hmtl.topology import any_r


def as_bits(numbers: list[int], bits: int) -> bytes:
    """Return the words of `numbers` as one long integer of Python."""
    value = sum((number % 2**bits) << (bits * at) for at, number in enumerate(numbers))
    content: bytes = value.to_bytes(-(-bits * len(numbers) // 8), "little")
    return content


def signed(number: int, bits: int) -> int:
    half: int = 2 ** (bits - 1)
    return (number + half) % (2 * half) - half


@given(
    bits=st.integers(1, 64),
    n=st.integers(0, 3),
    L=st.integers(0, 70),
    seed=st.integers(0, 99),
    reach=st.integers(1, 63),
)
def test_words_hold_the_low_bits_of_integers(bits: int, n: int, L: int, seed: int, reach: int) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).integers(-(2**reach), 2**reach - 1, (n, L), endpoint=True))
    row_format = RowFormat(L, bits)
    rows = row_format.pack(x)
    assert rows.dtype == torch.uint8
    assert rows.shape == (n, row_format.nbytes)
    assert [bytes(row.tolist()) for row in rows] == [as_bits(row, bits) for row in x.tolist()]
    assert row_format.unpack(rows).tolist() == [[signed(number, bits) for number in row] for row in x.tolist()]


@given(bits=st.integers(1, 64), value=st.integers(-(2**63), 2**63 - 1))
def test_rows_that_are_not_contiguous(bits: int, value: int) -> None:
    x = torch.tensor([[value, 5, -1], [3, value, 0]])
    row_format, columns = RowFormat(2, bits), x.T
    expected = row_format.pack(columns.contiguous())
    assert torch.equal(row_format.pack(columns), expected)
    wide = torch.cat([expected, expected], dim=1)[:, : expected.shape[1]]
    assert torch.equal(row_format.unpack(wide), row_format.unpack(expected))
    one = expected[:1].expand(3, -1)
    assert torch.equal(row_format.unpack(one), row_format.unpack(expected[:1]).expand(3, -1))


def test_words_of_64_bits_are_not_copied() -> None:
    x = torch.arange(12).view(2, 6)
    rows = RowFormat(6, 64).pack(x)
    assert rows.data_ptr() == x.data_ptr()
    assert RowFormat(6, 64).unpack(rows).data_ptr() == x.data_ptr()


@given(bits=st.integers(2, 64), n=st.integers(1, 4), L=st.integers(1, 200), seed=st.integers(0, 999))
def test_rows_are_added_word_by_word(bits: int, n: int, L: int, seed: int) -> None:
    rng, row_format = np.random.default_rng(seed), RowFormat(L, bits)
    numbers = torch.from_numpy(rng.integers(-(2 ** (bits - 2)), 2 ** (bits - 2), (n, L)))
    rows = row_format.pack(numbers)
    assert rows.shape == (n, row_format.nbytes)
    assert torch.equal(row_format.unpack(rows), numbers)
    at = torch.from_numpy(rng.permutation(n)[: n // 2])
    total = torch.full((1, L), 5)
    row_format.add(rows, at, torch.ones(1, 1, dtype=torch.int64), total)
    assert torch.equal(total[0], 5 + numbers[at].sum(0))


@given(
    bits=st.sampled_from((8, 64)),
    c=st.integers(1, 9),
    L=st.sampled_from((1, 7, 2**16 + 3)),
    at=st.sampled_from(([2, 0], [1])),
    seed=st.integers(0, 99),
)
@examples(30)
def test_sums_are_cut_and_multiplied(bits: int, c: int, L: int, at: list[int], seed: int) -> None:
    """Modulo 2^64, with a last stretch that is padded, and added to what is there; words of 64 bits in two blocks."""
    rng, row_format = np.random.default_rng(seed), RowFormat(L, bits)
    numbers = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, (3, L)))
    rows, stretch = row_format.pack(numbers), -(-L // c)
    A = torch.from_numpy(rng.choice([0, 0, 1, 3**30], (2, c)))
    before = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, (2, stretch)))
    padded = torch.nn.functional.pad(row_format.unpack(rows)[at].sum(0), (0, c * stretch - L)).view(c, stretch)
    to, first = before.clone(), L // 3 if bits == 64 else 0
    for block, start in ((rows[:, : 8 * first], 0), (rows[:, 8 * first :], first)):
        row_format.add(block, torch.tensor(at), A, to, start)
    assert torch.equal(to, before + torch.mm(A, padded))


@given(
    bits=st.integers(1, 64),
    L=st.integers(1, 90),
    r=st.integers(1, 6),
    most_pieces=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_shares_of_a_set_give_the_row(bits: int, L: int, r: int, most_pieces: int, seed: int) -> None:
    rng, row_format = np.random.default_rng(seed), RowFormat(L, bits)
    code = sum_code(any_r(12, 6, r, seed), None, most_pieces)
    row = row_format.pack(torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, (1, L))))
    for group, chosen in enumerate(code.sets):
        shares = row_format.split(row, code, chosen)
        assert shares.shape == (code.pieces, row_format.share(code).nbytes)
        assert torch.equal(row_format.join(shares, code, group), row)


def test_plain_rows_have_words_of_64_bits() -> None:
    formats = PlainRows(7, torch.int64, 0)
    assert formats.up == {"int64": (formats.terms, formats.sums)}
    assert formats.terms == formats.sums
    assert formats.sums.nbytes == 56


def test_portions_are_small() -> None:
    for L in (1, 2**15, 2**17):
        pieces = list(portions(torch.arange(5), L))
        assert torch.cat(pieces).tolist() == [0, 1, 2, 3, 4]
        assert all(len(piece) == 1 or len(piece) * L <= 2**16 for piece in pieces)
    assert not list(portions(torch.arange(0), 8))


def test_receipts_that_would_grow_take_no_memory() -> None:
    """3 MB of receipts would grow to 3 GB."""
    packer, zeros = zlib.compressobj(), bytes(2**20)
    first, block = (packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    packed = np.frombuffer(first + 3071 * block, np.uint8)
    content = np.concatenate([packed, numbers_to_bytes([len(packed)])])
    tracemalloc.start()
    with pytest.raises(CodingError, match="receipts"):
        unpacked(content, 10)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert zlib.decompressobj().decompress(first + block) == 2 * zeros
    assert most < 4 * len(packed)
