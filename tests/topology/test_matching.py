"""Balanced assignment against Hall's condition."""

import math
from itertools import combinations

import numpy as np
from hypothesis import given

from hmtl.testing.topologies import topologies
from hmtl.topology import Topology


@given(topologies(max_H=6, max_K=40))
def test_serving_relay_hears_its_user_and_the_fullest_serves_as_few_as_possible(t):
    assert all(t.G[i, k] for k, i in enumerate(t.serving))
    # Hall: the users with no relay outside S share the relays of S, and some S determines the largest load.
    subsets = [set(S) for n in range(1, t.H + 1) for S in combinations(range(t.H), n)]
    confined = [sum(set(t.relays_of(k)) <= S for k in range(t.K)) for S in subsets]
    least = max(math.ceil(users / len(S)) for users, S in zip(confined, subsets, strict=True))
    assert np.bincount(t.serving).max() == least


def test_serving_moves_users_along_a_chain_of_relays():
    # Relay 0 alone hears five users and shares five with relay 1, which shares five with relay 2, and so on.
    columns = [[1, 0, 0, 0]] * 5 + [[1, 1, 0, 0]] * 5 + [[0, 1, 1, 0]] * 5 + [[0, 0, 1, 1]] * 5
    assert np.bincount(Topology(np.transpose(columns)).serving).tolist() == [5, 5, 5, 5]
