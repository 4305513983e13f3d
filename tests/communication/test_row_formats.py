"""Rows as bytes: packed and added, and in shares that have the same bits modulo the length of a word."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.coding import sum_code
from hmtl.communication.row_formats import PlainRows, RowFormat, portions
from hmtl.topology import any_r


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
    bits=st.sampled_from((8, 64)), c=st.integers(1, 9), L=st.sampled_from((1, 7, 2**16 + 3)), seed=st.integers(0, 99)
)
@settings(max_examples=30)
def test_sums_are_cut_and_multiplied(bits: int, c: int, L: int, seed: int) -> None:
    """Modulo 2^64, with a last stretch that is padded, and added to what is there."""
    rng, row_format = np.random.default_rng(seed), RowFormat(L, bits)
    numbers = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, (3, L)))
    rows, stretch = row_format.pack(numbers), -(-L // c)
    A = torch.from_numpy(rng.choice([0, 0, 1, 3**30], (2, c)))
    before = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, (2, stretch)))
    padded = torch.nn.functional.pad(row_format.unpack(rows)[[2, 0]].sum(0), (0, c * stretch - L)).view(c, stretch)
    to = before.clone()
    row_format.add(rows, torch.tensor([2, 0]), A, to)
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
        assert shares.shape == (code.pieces, row_format.share_nbytes(code))
        assert torch.equal(row_format.join(shares, code, group), row)


def test_plain_rows_have_words_of_64_bits() -> None:
    formats = PlainRows(7)
    assert formats.up == {"int64": (formats.terms, formats.sums)}
    assert formats.terms == formats.sums
    assert formats.sums.nbytes == 56


def test_portions_are_small() -> None:
    for L in (1, 2**15, 2**17):
        pieces = list(portions(torch.arange(5), L))
        assert torch.cat(pieces).tolist() == [0, 1, 2, 3, 4]
        assert all(len(piece) == 1 or len(piece) * L <= 2**16 for piece in pieces)
    assert not list(portions(torch.arange(0), 8))
