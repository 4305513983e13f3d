"""Rows as bytes: packed and added, and in shares that have the same bits modulo the length of a word."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import sum_code
from hmtl.communication.row_formats import PlainRows, RowFormat, portions
from hmtl.topology import any_r


@given(
    bits=st.integers(2, 64),
    n=st.integers(1, 4),
    L=st.integers(1, 200),
    blocks=st.integers(0, 4),
    seed=st.integers(0, 999),
)
def test_rows_are_added_and_sizes_compared(bits: int, n: int, L: int, blocks: int, seed: int) -> None:
    rng, row_format = np.random.default_rng(seed), RowFormat(L, bits, blocks)
    numbers = torch.from_numpy(rng.integers(-(2 ** (bits - 2)), 2 ** (bits - 2), (n, L)))
    sizes = torch.from_numpy(rng.integers(0, 2**15, (n, blocks)))
    rows = row_format.pack(numbers, sizes)
    assert rows.shape == (n, row_format.nbytes)
    for ours, theirs in zip(row_format.unpack(rows), (numbers, sizes), strict=True):
        assert torch.equal(ours, theirs)
    at = torch.from_numpy(rng.permutation(n)[: n // 2])
    total, largest = row_format.added(rows, at)
    assert torch.equal(total[0], numbers[at].sum(0))
    assert largest[0].tolist() == [max([0, *column]) for column in sizes[at].T.tolist()]


def test_long_rows_are_added_one_by_one() -> None:
    row_format = RowFormat(2**16, 8, 2**10)
    numbers, sizes = torch.tensor([[3], [1], [-2]]).expand(3, 2**16), torch.tensor([[5], [9], [7]]).expand(3, 2**10)
    total, largest = row_format.added(row_format.pack(numbers, sizes), torch.arange(3))
    assert total.unique().tolist() == [2]
    assert largest.unique().tolist() == [9]


@given(
    bits=st.integers(1, 64),
    L=st.integers(1, 90),
    blocks=st.integers(0, 4),
    r=st.integers(1, 6),
    most_pieces=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_shares_of_a_set_give_the_row(bits: int, L: int, blocks: int, r: int, most_pieces: int, seed: int) -> None:
    rng, row_format, code = (
        np.random.default_rng(seed),
        RowFormat(L, bits, blocks),
        sum_code(any_r(12, 6, r, seed), None, most_pieces),
    )
    row = row_format.pack(
        torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, (1, L))),
        torch.from_numpy(rng.integers(0, 2**15, (1, blocks))),
    )
    for group, chosen in enumerate(code.sets):
        shares = row_format.split(row, code, chosen)
        assert shares.shape == (code.pieces, row_format.share_nbytes(code))
        assert torch.equal(row_format.join(shares, code, group), row)


def test_plain_rows_have_words_of_64_bits() -> None:
    formats = PlainRows(7)
    assert formats.terms == formats.sums == formats.whole
    assert formats.sums.nbytes == 56


def test_portions_are_small() -> None:
    for L in (1, 2**15, 2**17):
        pieces = list(portions(torch.arange(5), L))
        assert torch.cat(pieces).tolist() == [0, 1, 2, 3, 4]
        assert all(len(piece) == 1 or len(piece) * L <= 2**16 for piece in pieces)
    assert not list(portions(torch.arange(0), 8))
