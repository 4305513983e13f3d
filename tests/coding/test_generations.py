"""Groups have each user once and equal sizes, and each relay and type has its share of each group."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding.generations import similar_groups
from hmtl.testing.topologies import topologies
from hmtl.topology import any_r, geometric, heterogeneous


@given(t=topologies(), data=st.data())
def test_each_user_is_dealt_once_in_groups_of_even_size(t, data):
    groups = similar_groups(t.G, data.draw(st.integers(1, t.K)))
    assert sorted(k for group in groups for k in group) == list(range(t.K))
    assert np.ptp([len(group) for group in groups]) <= 1
    for group in groups:
        columns = [tuple(t.G[:, k]) for k in group]
        assert len(list(groupby(columns))) == len(set(columns)), "users of a type stand together"


@pytest.mark.parametrize("t", [any_r(1000, 10, 3), heterogeneous(1000, 4, 2, 0.2), geometric(1000, 10, 0.3)], ids=repr)
def test_each_relay_and_each_type_gets_its_share_of_each_group(t):
    groups = 10
    dealt = similar_groups(t.G, groups)
    heard = np.array([t.G[:, group].sum(axis=1) for group in dealt])
    assert abs(heard - t.G.sum(axis=1) / groups).max() <= 2
    for users in t.types.values():
        assert np.ptp([np.isin(group, users).sum() for group in dealt]) <= 4
