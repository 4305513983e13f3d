"""Terms in few bits, compared with Python's integers."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from adding import rounded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hmtl.communication.codecs.few_bit_words import FewBits, longest_absence
from hmtl.communication.codecs.formats import FEW_BITS
from hmtl.errors import RangeError

BITS = st.sampled_from(sorted(FEW_BITS.values()))


def powers(exponents: list[int]) -> Tensor:
    return torch.tensor([[2**e for e in exponents], [0] * len(exponents)])


@given(
    bits=BITS,
    K=st.integers(1, 40),
    masked=st.booleans(),
    n=st.integers(0, 3),
    m=st.integers(1, 200),
    reach=st.integers(0, 60),
    seed=st.integers(0, 999),
)
def test_terms_and_what_is_owed_are_rounded_and_packed_as_by_definition(
    bits: int, K: int, masked: bool, n: int, m: int, reach: int, seed: int
) -> None:
    """On scales that are too large or too small, or fit; with users in any rows, and others that stay as they are."""
    rng, formats, h = np.random.default_rng(seed), FewBits(bits, K, m, masked), 2 * n + 2
    terms, errors = (torch.from_numpy(rng.integers(-(2**reach), 2**reach, (x, m), endpoint=True)) for x in (n, h))
    exponents = np.clip(reach - bits + 2 + rng.integers(-12, 12, formats.blocks), 0, 55).tolist()
    places = torch.from_numpy(rng.permutation(h))
    owed, rest, others = places[:n], places[n : 2 * n], places[2 * n :]
    before, most, word = errors.clone(), 2 ** (bits - 1) - 1, formats.terms.bits
    rows = formats.rounded(terms, powers(exponents), errors, owed, rest)
    assert torch.equal(errors[others], before[others])
    assert torch.equal(errors[owed], before[owed])
    for k in range(n):
        x = [int(a) + int(b) for a, b in zip(terms[k], before[owed[k]], strict=True)]
        q, left, misfits, needs = [], [], [], []
        for block, e in enumerate(exponents):
            these, scale = x[64 * block : 64 * block + 64], 2**e
            q += [max(-most, min(most, math.floor(Fraction(number, scale) + Fraction(1, 2)))) for number in these]
            limit = most * scale * Fraction(3, 2)
            misfits.append(max(map(abs, these)) > math.floor(limit))
            needs.append(max(map(abs, these)) > math.floor(limit / 2))
        left = [number - each * 2 ** exponents[at // 64] for at, (number, each) in enumerate(zip(x, q, strict=True))]
        value = sum((int(each) % 2**word) << (word * at) for at, each in enumerate([*q, *misfits, *needs]))
        assert bytes(rows[k].tolist()) == value.to_bytes(formats.terms.nbytes, "little")
        assert errors[rest[k]].tolist() == left


@given(bits=BITS, m=st.integers(1, 130), seed=st.integers(0, 99))
def test_terms_on_unknown_scales_travel_as_they_are(bits: int, m: int, seed: int) -> None:
    rng, formats = np.random.default_rng(seed), FewBits(bits, 20, m)
    terms, errors = (torch.from_numpy(rng.integers(-(2**60), 2**60, (h, m))) for h in (2, 4))
    x = terms + errors[[2, 0]]
    rows = formats.rounded(terms, powers([0] * formats.blocks) * 0, errors, torch.tensor([2, 0]), torch.tensor([3, 1]))
    numbers, *votes = formats.split(formats.whole.unpack(rows))
    assert torch.equal(numbers, x)
    assert not torch.cat(votes).any()
    assert not errors[[3, 1]].any()


@given(bits=BITS, m=st.integers(1, 200), reach=st.integers(0, 50), seed=st.integers(0, 99))
def test_values_are_what_users_no_longer_owe(bits: int, m: int, reach: int, seed: int) -> None:
    rng, formats = np.random.default_rng(seed), FewBits(bits, 20, m)
    x = torch.from_numpy(rng.integers(-(2**reach), 2**reach, (3, m), endpoint=True))
    scales = powers(rng.integers(0, 50, formats.blocks).tolist())
    rows, rest = rounded(formats, x, scales)
    assert torch.equal(formats.values(rows.sum(0, keepdim=True), scales), (x - rest).sum(0, keepdim=True))


@given(bits=BITS, reach=st.integers(0, 55), far=st.integers(-8, 8), K=st.integers(1, 30), seed=st.integers(0, 999))
def test_scales_come_to_fit_the_largest_term(bits: int, reach: int, far: int, K: int, seed: int) -> None:
    """From any start, within as many rounds as there are doublings between, and then stay; leftovers stay bounded."""
    m, most = 70, 2 ** (bits - 1) - 1
    rng, formats = np.random.default_rng(seed), FewBits(bits, K, m)
    scales = powers([max(0, reach - bits + 2 + far)] * 2)
    x = torch.from_numpy(rng.integers(-(2**reach), 2**reach, (K, m), endpoint=True))
    for _ in range(30):
        rows, _ = rounded(formats, x, scales)
        scales = formats.next_scales(rows.sum(0, keepdim=True), scales)
    for e, block in zip(scales[0].tolist(), (x[:, :64], x[:, 64:]), strict=True):
        peak = int(block.abs().max())
        assert peak <= 1.5 * most * e
        assert e <= max(1, peak * 4 / (3 * most) + 2) or e == int(scales.max()) >> 10
    owed = torch.zeros_like(x)
    for _ in range(50):  # the same terms again and again
        rows, owed = rounded(formats, x + owed, scales)
        scales = formats.next_scales(rows.sum(0, keepdim=True), scales)
    assert int(owed.abs().max()) <= 2 ** (reach + 2)


def test_a_block_that_was_zero_is_not_far_behind() -> None:
    formats, x = FewBits(4, 20, 128), torch.zeros(1, 128, dtype=torch.int64)
    x[0, 0] = 7 * 2**30
    scales = formats.first_scales(x, 1)
    assert scales.tolist() == [[2**31, 2**21], [0, 0]]
    assert formats.next_scales(rounded(formats, 0 * x, scales)[0], scales).tolist() == [[2**30, 2**20], [0, 0]]


def test_a_scale_outlasts_rounds_without_the_user_who_needs_it() -> None:
    """A user whose terms are 32 times those of the others takes part in every fifth round, and is never far behind."""
    formats, scales = FewBits(4, 2, 1), powers([10])
    small, large = torch.tensor([[7 * 2**10]]), torch.tensor([[7 * 2**15]])
    owed = torch.zeros_like(large)
    for round in range(200):
        rows, _ = rounded(formats, small, scales)
        if round % 5 == 0:
            own, owed = rounded(formats, large + owed, scales)
            rows = rows + own
        scales = formats.next_scales(rows, scales)
    assert int(owed) < 2 * int(large)


@given(bits=BITS, peak=st.integers(1, 2**61), n=st.integers(1, 200))
def test_first_scales_fit_independent_terms(bits: int, peak: int, n: int) -> None:
    formats, most = FewBits(bits, 200, 3), 2 ** (bits - 1) - 1
    (scale,), _ = formats.first_scales(torch.tensor([[1, -peak, 0]]), n).tolist()
    of_one = peak // math.isqrt(n)
    assert scale == 1 << (of_one // most).bit_length()
    assert of_one <= most * scale


@pytest.mark.parametrize(("K", "bits"), [(1, 4), (2, 5), (20, 9), (32, 9), (33, 10), (100, 11)])
def test_sums_of_all_users_fit(K: int, bits: int) -> None:
    formats = FewBits(4, K, 128)
    assert formats.L == 132
    assert (formats.terms.bits, formats.sums.bits, formats.whole.bits) == (4, bits, 64)
    for total in (torch.full((1, 132), sign * 7 * K) for sign in (1, -1)):
        assert torch.equal(formats.sums.unpack(formats.sums.pack(total)), total)


def test_numbers_that_are_too_large_are_refused() -> None:
    formats, largest = FewBits(4, 20, 3), torch.full((1, 3), 2**61)
    for scales in (powers([0]), 0 * powers([0])):
        for far in (-largest - 1, largest + 1):
            with pytest.raises(RangeError):
                rounded(formats, far, scales)
        rounded(formats, largest, scales)
    with pytest.raises(RangeError):
        formats.values(torch.full((1, 5), 16), powers([59]))
    assert (formats.values(torch.full((1, 5), 8), powers([59])) == 2**62).all()


def test_rounds_that_need_a_scale_do_not_use_up_its_hold() -> None:
    """A block that has doubled outlasts 8 rounds in which nobody needs it, however many between them do."""
    formats, scales = FewBits(4, 20, 1), powers([10])
    too_large, needing, small = (torch.tensor([[number * 2**10]]) for number in (11, 14, 1))

    def after(x: Tensor, scales: Tensor) -> Tensor:
        return formats.next_scales(rounded(formats, x, scales)[0], scales)

    scales = after(too_large, scales)
    for _ in range(8):
        scales = after(small, after(needing, after(needing, scales)))
        assert scales[0].tolist() == [2**11]
    assert after(small, scales)[0].tolist() == [2**10]


@pytest.mark.parametrize(
    ("counted", "longest"), [([9, 9], 1), ([9, 7, 8], 3), ([9, 4], 6), ([9, 3], 1), ([-2, -2], 1)], ids=str
)
def test_who_was_away_for_more_than_half_of_all_rounds_is_left_out(counted: list[int], longest: int) -> None:
    assert longest_absence(np.array(counted), round=9) == longest
