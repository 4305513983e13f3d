"""Skewed partitions: no row twice, the promised distribution, and too few rows."""

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hmtl.data import Dirichlet, Pathological, Quantity, Shards
from hmtl.errors import ConfigError, DataError

rng = np.random.default_rng
counts_of = st.lists(st.integers(1, 40), min_size=2, max_size=6)


def labels_of(counts, seed=0):
    """Classes 3, 10, 17, ...: numbers that are not positions."""
    return rng(seed).permutation(np.repeat(3 + 7 * np.arange(len(counts)), counts))


def table(labels, dealt):
    """Rows of each class [K, C], after a check that no row was dealt twice."""
    rows = np.concatenate(dealt)
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < len(labels)
    return np.array([[(labels[mine] == c).sum() for c in np.unique(labels)] for mine in dealt])


@given(
    counts=counts_of,
    K=st.integers(1, 8),
    alpha=st.floats(0.01, 1000),
    least=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
def test_dirichlet_and_quantity_deal_all_rows_and_enough_to_everybody(counts, K, alpha, least, seed):
    labels = labels_of(counts, seed)
    for kind in (Dirichlet, Quantity):
        if K * least > len(labels):
            with pytest.raises(DataError, match=f"need {K * least} rows, but there are {len(labels)}"):
                kind(alpha, least)(labels, K, rng(seed))
            continue
        try:
            held = table(labels, kind(alpha, least)(labels, K, rng(seed)))
        except DataError as error:
            assert kind is Dirichlet
            most = re.search(r"had at most (\d+)", str(error))
            assert int(most[1]) < least
            continue
        assert held.sum(axis=0).tolist() == counts
        assert held.sum(axis=1).min() >= least


@given(counts=counts_of, K=st.integers(1, 8), each=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_shards_are_of_one_size_and_next_to_each_other_among_the_sorted(counts, K, each, seed):
    labels = labels_of(counts, seed)
    size, C = len(labels) // (K * each), len(counts)
    if not size:
        with pytest.raises(DataError, match=f"need {K * each} rows, but there are {len(labels)}"):
            Shards(each)(labels, K, rng(seed))
        return
    dealt = Shards(each)(labels, K, rng(seed))
    held = table(labels, dealt)
    assert held.sum(axis=1).tolist() == [size * each] * K
    # sorted by class, shard i has the rows size·i to size·(i+1) − 1, of whichever classes lie there
    places = np.arange(K * each * size).reshape(-1, size)
    shards = [np.bincount(np.searchsorted(np.cumsum(counts), at, "right"), minlength=C).tolist() for at in places]
    got = [np.bincount((labels[part] - 3) // 7, minlength=C).tolist() for part in np.reshape(dealt, (-1, size))]
    assert sorted(got) == sorted(shards)


@given(counts=counts_of, K=st.integers(1, 30), each=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_pathological_users_have_so_many_classes_exactly(counts, K, each, seed):
    labels, C = labels_of(counts, seed), len(counts)
    assume(each <= C)
    most = min(counts) * C // each
    if most < K:
        with pytest.raises(DataError, match=f"at most K=({most}|{len(labels)})\\."):
            Pathological(each)(labels, K, rng(seed))
        return
    held = table(labels, Pathological(each)(labels, K, rng(seed)))
    assert ((held > 0).sum(axis=1) == each).all()
    users = (held > 0).sum(axis=0)
    assert np.ptp(users) <= 1
    for c in range(C):
        if users[c]:
            assert held[:, c].sum() == counts[c]
            assert np.ptp(held[held[:, c] > 0, c]) <= 1


def test_alpha_decides_how_uneven():
    """Hsu et al.: from nearly one class for each user to the same mix for all; quantity changes sizes, not mixes."""
    labels = labels_of([600] * 10)

    def largest_share(alpha):
        held = table(labels, Dirichlet(alpha, 1)(labels, 10, rng(0)))
        return float((held / held.sum(axis=1, keepdims=True)).max(axis=1).mean())

    found = [largest_share(alpha) for alpha in (0.03, 0.3, 3, 300)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.6
    assert found[-1] < 0.13
    sizes, mixes = [], []
    for alpha in (0.1, 1, 1000):
        held = table(labels, Quantity(alpha, 60)(labels, 10, rng(0)))
        sizes.append(int(np.ptp(held.sum(axis=1))))
        mixes.append(float((held / held.sum(axis=1, keepdims=True)).max()))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1000
    assert sizes[-1] < 100
    assert max(mixes) < 0.3


def test_dirichlet_shares_are_those_of_the_distribution():
    """A user's share of a class has mean 1/K and variance (K − 1)/(K² (Kα + 1))."""
    labels, K, alpha = labels_of([4000] * 4), 5, 0.7
    shares = np.concatenate([table(labels, Dirichlet(alpha, 1)(labels, K, rng(s))) / 4000 for s in range(40)])
    assert shares.mean() == pytest.approx(1 / K)
    assert shares.var() == pytest.approx((K - 1) / (K**2 * (K * alpha + 1)), rel=0.15)


@pytest.mark.parametrize("partition", [Dirichlet(1.0, 2), Pathological(2), Quantity(1.0, 2)])
def test_rows_come_from_the_generator_alone(partition):
    labels = labels_of([60] * 4)
    once, again, other = (partition(labels, 8, rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(once, other, strict=True))


@pytest.mark.parametrize(
    ("counts", "K", "partition", "kind", "named"),
    [
        ([50, 50], 0, Dirichlet(), ConfigError, "K=0"),
        ([50, 50], 20, Quantity(min_rows=6), DataError, "need 120 rows, but there are 100. Choose at most min_rows=5"),
        ([5, 5], 20, Quantity(min_rows=6), DataError, "at most K=1."),
        ([50, 50], 20, Dirichlet(0.01, 5), DataError, "Raise alpha, or lower K or min_rows=5"),
        ([50, 5], 8, Pathological(2), DataError, "class 10 has 5 rows, but 8 users. Choose at most K=5."),
        ([50, 50], 2, Pathological(3), ConfigError, "classes_per_user=3"),
    ],
)
def test_too_few_rows(counts, K, partition, kind, named):
    with pytest.raises(kind, match=re.escape(named)):
        partition(labels_of(counts), K, rng(0))


@pytest.mark.parametrize(
    ("kind", "settings_", "named"),
    [
        (Dirichlet, {"alpha": 0}, "alpha=0"),
        (Dirichlet, {"alpha": float("nan")}, "alpha=nan"),
        (Quantity, {"alpha": -1.0}, "alpha=-1"),
        (Quantity, {"min_rows": 0}, "min_rows=0"),
        (Pathological, {"classes_per_user": 0}, "classes_per_user=0"),
        (Shards, {"shards_per_user": 0}, "shards_per_user=0"),
    ],
)
def test_settings_out_of_range(kind, settings_, named):
    with pytest.raises(ConfigError, match=named):
        kind(**settings_)
