"""The paper's partitions: counts, disjointness, evenness, and exactly how far the rows suffice (by brute force)."""

import re

import networkx as nx
import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.data.partitions import even_sets, one_vs_rest
from hmtl.errors import ConfigError, DataError


def feasible(counts, K, half):
    """A flow from classes to the users' two halves, user by user."""
    g = nx.DiGraph()
    for c, count in enumerate(counts):
        g.add_edge("s", ("class", c), capacity=count)
    for k in range(K):
        own = k % len(counts)
        g.add_edge(("class", own), ("own", k), capacity=half)
        g.add_edge(("own", k), "t", capacity=half)
        g.add_edge(("others", k), "t", capacity=half)
        for c in range(len(counts)):
            if c != own:
                g.add_edge(("class", c), ("others", k), capacity=half)
    return nx.maximum_flow_value(g, "s", "t") == 2 * K * half


def labels_of(counts, seed=0):
    """Classes 3, 10, 17, ...: numbers that are not positions."""
    return np.random.default_rng(seed).permutation(np.repeat(3 + 7 * np.arange(len(counts)), counts))


def table(labels, counts, dealt):
    """Rows of each class [K, C], after the checks that hold for every partition."""
    rows = np.concatenate([rows for _, rows in dealt])
    assert len(np.unique(rows)) == len(rows), "a row was dealt twice"
    assert rows.min() >= 0
    assert rows.max() < len(labels)
    C = len(counts)
    held = np.array([[int((labels[rows] == 3 + 7 * c).sum()) for c in range(C)] for _, rows in dealt])
    for k, (own, rows) in enumerate(dealt):
        half = len(rows) // 2
        assert own == 3 + 7 * (k % C)
        assert (labels[rows[:half]] == own).all()
        assert held[k, k % C] == half == held[k].sum() - half
    return held


small = st.lists(st.integers(1, 14), min_size=2, max_size=5)


@examples(20)
@given(counts=small, K=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_deals_whenever_the_rows_suffice_and_names_the_largest_number_otherwise(counts, K, seed):
    labels = labels_of(counts, seed)
    most = 0
    while feasible(counts, K, most + 1):
        most += 1
    if most:
        dealt = one_vs_rest(labels, K, 2 * most, np.random.default_rng(seed))
        assert {len(rows) for _, rows in dealt} == {2 * most}
        table(labels, counts, dealt)
        assert len(one_vs_rest(labels, K, None, np.random.default_rng(seed))[0][1]) == 2 * most
    with pytest.raises(DataError) as error:
        one_vs_rest(labels, K, 2 * most + 2, np.random.default_rng(seed))
    limit = re.search(r"rows_per_user=(\d+)", str(error.value))
    assert (int(limit[1]) if limit else 0) == 2 * most


@examples(15)
@given(C=st.integers(2, 8), K=st.integers(1, 20), half=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_others_are_even_where_the_data_allow(C, K, half, seed):
    counts = [(K // C + 1) * half * 2 + C] * C
    labels = labels_of(counts, seed)
    held = table(labels, counts, one_vs_rest(labels, K, 2 * half, np.random.default_rng(seed)))
    for k in range(K):
        others = np.delete(held[k], k % C)
        assert set(others) <= {half // (C - 1), -(-half // (C - 1))}


def test_a_short_class_is_shared_evenly_and_the_rest_stays_even():
    counts = [2000, 2000, 2000, 250]  # the last class's own two users take 200, the other six share 50
    labels = labels_of(counts)
    held = table(labels, counts, one_vs_rest(labels, 8, 200, np.random.default_rng(0)))
    for k in range(8):
        if k % 4 != 3:
            assert 8 <= held[k, 3] <= 9
            assert set(np.delete(held[k], [k % 4, 3])) <= {45, 46}
        else:
            assert set(np.delete(held[k], 3)) <= {33, 34}


def test_a_short_class_is_shared_by_users_not_by_classes():
    counts = [200, 200, 60]  # users 0, 1, 3 share the 30 rows of the last class that user 2 leaves
    labels = labels_of(counts)
    held = table(labels, counts, one_vs_rest(labels, 4, 60, np.random.default_rng(0)))
    assert held.tolist() == [[30, 20, 10], [20, 30, 10], [15, 15, 30], [30, 20, 10]]


def test_all_rows_are_used_at_the_limit_of_ten_equal_classes():
    counts = [500] * 10
    labels = labels_of(counts)
    for K in (10, 20, 50):
        held = table(labels, counts, one_vs_rest(labels, K, 5000 // K, np.random.default_rng(K)))
        assert held.sum(axis=0).tolist() == counts


def test_seventy_thousand_uneven_digits():
    counts = [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]  # MNIST's
    labels = labels_of(counts)
    held = table(labels, counts, one_vs_rest(labels, 140, 500, np.random.default_rng(0)))
    assert held.sum() == 70_000
    assert len(one_vs_rest(labels, 20, None, np.random.default_rng(0))[0][1]) == 500
    for own in range(10):  # users of one digit differ by one row at most
        assert np.ptp(held[own::10], axis=0).max() <= 1


def test_rows_come_from_the_generator_alone():
    labels = labels_of([60] * 4)
    once, again, other = (one_vs_rest(labels, 8, 20, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(once, again, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(once, other, strict=True))


@pytest.mark.parametrize(("K", "rows", "word"), [(0, 10, "K=0"), (None, 10, "K=None"), (3, 7, "=7"), (3, 0, "=0")])
def test_impossible_numbers(K, rows, word):
    with pytest.raises(ConfigError, match=word):
        one_vs_rest(labels_of([50] * 4), K, rows, np.random.default_rng(0))


@examples(20)
@given(counts=small, K=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_even_sets_are_even_and_reach_exactly_as_far_as_the_rows(counts, K, seed):
    labels = labels_of(counts, seed)
    n, most = len(labels), len(labels) // K
    if most:
        for m in {1, most, None}:
            sets = even_sets(labels, K, m, np.random.default_rng(seed))
            rows = np.concatenate(sets)
            assert [len(s) for s in sets] == [m or most] * K
            assert len(np.unique(rows)) == len(rows)
            assert 0 <= rows.min() <= rows.max() < n
            held = np.array([[(labels[s] == c).sum() for c in np.unique(labels)] for s in sets])
            assert np.ptp(held, axis=0).max() <= 1
    with pytest.raises(DataError, match=f"need {K * (most + 1)} rows, but there are {n}") as error:
        even_sets(labels, K, most + 1, np.random.default_rng(seed))
    assert (f"at most rows_per_user={most}," if most else "Lower K.") in str(error.value)


def test_even_sets_without_numbers():
    labels = labels_of([900, 500])
    rng = np.random.default_rng
    assert [len(s) for s in even_sets(labels, None, None, rng(0))] == [500, 500]
    assert [len(s) for s in even_sets(labels, None, 200, rng(0))] == [200] * 7
    assert [len(s) for s in even_sets(labels, 4, None, rng(0))] == [350] * 4
    assert not np.array_equal(even_sets(labels, 2, 9, rng(0)), even_sets(labels, 2, 9, rng(1)))
    for K, rows, word in ((0, 5, "K=0"), (3, 0, "rows_per_user=0"), (-1, None, "K=-1")):
        with pytest.raises(ConfigError, match=word):
            even_sets(labels, K, rows, rng(0))
