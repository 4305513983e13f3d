"""Words of a few bits, compared with Python's integers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication.words import Words


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
    words = Words(bits)
    rows = words.pack(x)
    assert rows.dtype == torch.uint8
    assert rows.shape == (n, words.nbytes(L))
    assert [bytes(row.tolist()) for row in rows] == [as_bits(row, bits) for row in x.tolist()]
    assert words.unpack(rows, L).tolist() == [[signed(number, bits) for number in row] for row in x.tolist()]


@given(bits=st.integers(1, 64), value=st.integers(-(2**63), 2**63 - 1))
def test_rows_that_are_not_contiguous(bits: int, value: int) -> None:
    x = torch.tensor([[value, 5, -1], [3, value, 0]])
    words, columns = Words(bits), x.T
    expected = words.pack(columns.contiguous())
    assert torch.equal(words.pack(columns), expected)
    wide = torch.cat([expected, expected], dim=1)[:, : expected.shape[1]]
    assert torch.equal(words.unpack(wide, 2), words.unpack(expected, 2))
    one = expected[:1].expand(3, -1)
    assert torch.equal(words.unpack(one, 2), words.unpack(expected[:1], 2).expand(3, -1))


def test_words_of_64_bits_are_not_copied() -> None:
    x = torch.arange(12).view(2, 6)
    rows = Words(64).pack(x)
    assert rows.data_ptr() == x.data_ptr()
    assert Words(64).unpack(rows, 6).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("bits", [0, 65, -1])
def test_other_lengths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        Words(bits)
