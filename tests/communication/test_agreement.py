"""Digests tell sets of rows apart."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication.agreement import FOLD, Digest, check_rows


@given(n=st.integers(1, 60), L=st.sampled_from((1, 7, 200, FOLD // 4, FOLD)), seed=st.integers(0, 10**6))
def test_a_changed_byte_changes_the_digest(n: int, L: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.integers(0, 256, (n, L), np.uint8))
    other = rows.clone()
    other[rng.integers(n), rng.integers(L)] ^= int(rng.integers(1, 256))
    values = []
    for content in (rows, rows.clone(), other):
        digest = Digest()
        digest.add_rows(content)
        values.append(digest.value())
    assert values[0] == values[1] != values[2]


def test_check_rows_are_the_same_everywhere_and_use_every_row() -> None:
    assert torch.equal(check_rows(40), check_rows.__wrapped__(40))
    assert (check_rows(1000) != 0).any(dim=0).all()
