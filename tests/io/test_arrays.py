"""Numbers of users among others."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hmtl.io.arrays import are_among


@given(st.lists(st.integers(-3, 9)), st.sets(st.integers(0, 6)))
def test_numbers_are_among_ids_as_sets_say(numbers: list[int], ids: set[int]) -> None:
    found = are_among(np.array(numbers, dtype=np.int64), np.array(sorted(ids), dtype=np.int64))
    assert found == ({*numbers} <= ids)
