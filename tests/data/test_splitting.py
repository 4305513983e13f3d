"""Dealt and split rows: each row once with its label, each class in both parts, and too few rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.data import Dirichlet, Pathological
from hmtl.data.splitting import Splitting, split
from hmtl.errors import ConfigError, DataError

rng = np.random.default_rng


@settings(max_examples=25)
@given(
    counts=st.lists(st.integers(2, 25), min_size=2, max_size=4),
    fraction=st.floats(0.2, 0.8),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_row_once_and_each_class_in_both_parts(counts, fraction, seed):
    n, C = sum(counts), len(counts)
    y = np.repeat(np.arange(C) if C > 2 else [-1.0, 1.0], counts)
    x = np.arange(n, dtype=float)[:, None] * [1, 10]
    n_test = int(np.ceil(n * fraction))
    if min(counts) * min(n_test, n - n_test) < n:  # the rarest class is too rare to be in both
        return
    task = split("a", x, y, fraction, rng(seed), classes=C if C > 2 else None)
    assert (len(task.x_train), len(task.x_test)) == (n - n_test, n_test)
    assert sorted(torch.cat([task.x_train, task.x_test])[:, 0].tolist()) == list(range(n))
    for part_x, part_y in ((task.x_train, task.y_train), (task.x_test, task.y_test)):
        assert part_y.tolist() == y[part_x[:, 0].int()].tolist()
        for value, count in zip(np.unique(y), counts, strict=True):
            assert abs(int((part_y == value).sum()) - len(part_y) * count / n) < (1 if C == 2 else 2)


def test_the_rows_are_those_of_earlier_versions():
    task = split("a", np.arange(12.0)[:, None], np.tile([1.0, -1.0, 1.0], 4), 0.25, rng(7))
    assert task.x_test[:, 0].tolist() == [9, 10, 5]
    assert task.x_train[:4, 0].tolist() == [7, 8, 2, 4]


def test_a_rare_class_is_split_at_random():
    y = np.array([0] * 9 + [1] * 9 + [2])
    places = {2 in split("a", y[:, None], y, 0.4, rng(seed), classes=3).y_train.tolist() for seed in range(20)}
    assert places == {True, False}
    for values, classes in (((-1.0, 1.0), None), ((17.0, 23.0), None), ((3, 7), 10)):
        y = np.repeat(values, (11, 1))
        task = split("a", y[:, None], y, 0.25, rng(1), classes=classes)
        assert (len(task.y_train), len(task.y_test)) == (9, 3)
        assert sorted([*task.y_train.tolist(), *task.y_test.tolist()]) == sorted(y)


def test_numbers_and_no_test_rows():
    x = np.arange(8.0)[:, None]
    task = split("a", x, x[:, 0] ** 2, 0.25, rng(0))
    assert torch.equal(task.x_test[:, 0] ** 2, task.y_test)
    task = split("a", x, x[:, 0], 0, rng(0))
    assert task.x_train[:, 0].tolist() == task.y_train.tolist() == list(range(8))
    assert (task.x_test.shape, task.y_test.shape) == ((0, 1), (0,))


def test_users_without_local_rows_have_the_same_shapes():
    users, y = {f"u{k}": np.arange(10 * k, 10 * k + 9) for k in range(3)}, np.tile([1.0, -1.0, 1.0], 10)
    x = np.arange(60, dtype=np.float32).reshape(30, 2)
    whole = Splitting(0.3, 1).tasks(lambda rows: x[rows], y, users)
    part = Splitting(0.3, 1, wanted=lambda K: {K - 1}).tasks(lambda rows: x[rows], y, users)
    assert [task.is_local for task in part] == [False, False, True]
    for one, other in zip(whole, part, strict=True):
        for field in ("x_train", "y_train", "x_test", "y_test"):
            held, known = getattr(one, field), getattr(other, field)
            assert (held.shape, held.dtype) == (known.shape, known.dtype)
            assert not other.is_local or torch.equal(held, known)


@pytest.mark.parametrize("C", [2, 5])
def test_dealt_rows_keep_their_labels(C):
    labels = np.array([f"class {c}" for c in range(C)])[np.random.default_rng(0).integers(C, size=300)]
    x = np.arange(300.0)
    tasks = Splitting(0.25, 7).deal(lambda rows: x[rows, None, None] + np.zeros((2, 3)), labels, 4, Dirichlet(20))
    dealt = []
    for task in tasks:
        assert task.classes == (C if C > 2 else None)
        for rows, y in ((task.x_train, task.y_train), (task.x_test, task.y_test)):
            assert rows.shape[1:] == (2, 3)
            numbers = rows[:, 0, 0].long().numpy()
            dealt += numbers.tolist()
            classes = [int(labels[i].split()[1]) for i in numbers]
            assert y.tolist() == (classes if C > 2 else [2 * c - 1 for c in classes])
    assert sorted(dealt) == list(range(300))
    assert [task.name for task in tasks] == ["user 0", "user 1", "user 2", "user 3"]
    alone = Splitting(0.25, 7).deal(lambda rows: x[rows, None], labels, C, Pathological(1))
    assert [len(set(task.y_train.tolist())) for task in alone] == [1] * C
    with pytest.raises(ConfigError, match="K is not set"):
        Splitting(0.25, 7).deal(lambda rows: x[rows, None], labels, None, Pathological(1))


def test_refused():
    for fraction in (1, -0.5, float("nan")):
        with pytest.raises(ConfigError, match=f"test_fraction={fraction}"):
            Splitting(fraction, 0)
    for n, fraction in ((1, 0.5), (4, 0.8), (9, 0.95)):
        with pytest.raises(DataError, match=f"'a': {n} rows .* test_fraction={fraction}"):
            split("a", np.ones((n, 1)), np.where(np.arange(n) % 2, 1.0, -1.0), fraction, rng(0))
