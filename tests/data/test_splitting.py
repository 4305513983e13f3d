"""Dealt and split rows: each row once with its label, classes in proportion, and too few rows."""

import math

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import split_task

from hmtl.data import Dirichlet, Pathological, Preprocessing, with_validation
from hmtl.data.splitting import Splitting
from hmtl.errors import ConfigError, DataError

rng = np.random.default_rng


@given(
    counts=st.lists(st.integers(1, 25), min_size=1, max_size=5),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_row_once_and_each_class_in_proportion(counts, fraction, seed):
    n, C = sum(counts), len(counts)
    n_test = math.ceil(n * fraction)
    assume(n_test < n)
    y = rng(seed).permutation(np.repeat(np.arange(C) if C > 2 else [-1.0, 1.0][:C], counts))
    x = np.arange(n, dtype=float)[:, None] * [1, 10]
    task, again = (split_task("a", x, y, fraction, rng(seed), classes=C if C > 2 else None) for _ in range(2))
    assert torch.equal(task.x_train, again.x_train)
    assert (len(task.x_train), len(task.x_test)) == (n - n_test, n_test)
    assert sorted(torch.cat([task.x_train, task.x_test])[:, 0].tolist()) == list(range(n))
    for part_x, part_y in ((task.x_train, task.y_train), (task.x_test, task.y_test)):
        numbers = part_x[:, 0].int().numpy()
        assert part_y.tolist() == y[numbers].tolist()
        assert numbers.tolist() == sorted(numbers)
        for value, count in zip(np.unique(y), counts, strict=True):
            assert abs(int((part_y == value).sum()) - len(part_y) * count / n) < 1


@examples(10)
@given(n=st.integers(2, 30), fraction=st.floats(0.01, 0.45), seed=st.integers(0, 1000))
def test_validation_rows_are_taken_from_the_training_rows(n, fraction, seed):
    """Each in proportion to its class, scaled by the rows that remain, and as many if another process has the rows."""
    y = rng(seed).permutation(np.arange(4 * n) % 4)
    x = np.arange(4.0 * n)[:, None]
    splitting = Splitting(0.25, seed, Preprocessing(standardize="task"))
    (task,) = before = splitting.tasks(lambda rows: x[rows], y, {"a": np.arange(4 * n)}, classes=4)
    (after,) = with_validation(before, fraction, seed)
    assert torch.equal(after.raw.x_test, task.raw.x_test)
    parts = torch.cat([after.raw.x_train, after.raw.x_validation])[:, 0], task.raw.x_train[:, 0]
    assert sorted(parts[0].tolist()) == sorted(parts[1].tolist())
    held = after.raw.x_validation[:, 0].long()
    assert len(held) == math.ceil(fraction * len(task.y_train))
    assert after.y_validation.tolist() == [y[row] for row in held.tolist()]
    share = len(held) / len(task.y_train)
    assert all(abs((after.y_validation == c).sum() - share * (task.y_train == c).sum()) < 1 for c in range(4))
    own = after.raw.x_train
    scaled = (after.raw.x_validation - own.mean(0)) / own.std(0, unbiased=False)
    torch.testing.assert_close(after.x_validation[:, :1], scaled, rtol=0, atol=1e-9)
    assert torch.equal(with_validation([after], 0.3, seed + 1)[0].x_validation, after.x_validation)
    (elsewhere,) = with_validation([task.raw.without_rows()], fraction, seed)
    assert (elsewhere.x_train.shape, elsewhere.x_validation.shape) == (own.shape, after.raw.x_validation.shape)


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (np.array([0] * 9 + [1] * 9 + [2] * 2), 3),  # fewer rows of a class than 1 / test_fraction
        (np.where(np.arange(20) < 7, 1.0, -1.0), None),
        (np.arange(20.0), None),
    ],
)
def test_each_row_is_as_often_a_test_row_and_with_any_other(y, classes):
    x, draws = np.arange(20.0)[:, None], 1000
    together = np.zeros((20, 20))
    for seed in range(draws):
        rows = split_task("a", x, y, 0.25, rng(seed), classes=classes).x_test[:, 0].int()
        together[np.ix_(rows, rows)] += 1 / draws
    assert abs(np.diag(together) - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / draws)
    for value in np.unique(y):
        own = np.flatnonzero(y == value) if classes or len(np.unique(y)) < 3 else np.arange(20)
        pairs = together[np.ix_(own, own)][~np.eye(len(own), dtype=bool)]
        assert np.ptp(pairs) < 10 * math.sqrt(0.0625 / draws)


def test_numbers_and_no_test_rows():
    x = np.arange(8.0)[:, None]
    task = split_task("a", x, x[:, 0] ** 2, 0.25, rng(0))
    assert torch.equal(task.x_test[:, 0] ** 2, task.y_test)
    task = split_task("a", x, x[:, 0], 0, rng(0))
    assert task.x_train[:, 0].tolist() == task.y_train.tolist() == list(range(8))
    assert (task.x_test.shape, task.y_test.shape) == ((0, 1), (0,))


def test_users_without_local_rows_have_the_same_shapes():
    users, y = {f"u{k}": np.arange(10 * k, 10 * k + 9) for k in range(3)}, np.tile([1.0, -1.0, 1.0], 10)
    x = np.arange(60, dtype=np.float32).reshape(30, 2)
    whole = Splitting(0.3, 1).tasks(lambda rows: x[rows], y, users)
    part = Splitting(0.3, 1, wanted=lambda K: {K - 1}).tasks(lambda rows: x[rows], y, users)
    assert [task.is_local for task in part] == [False, False, True]
    others = {"a": users["u1"][:4], "b": users["u0"], "u2": users["u2"]}
    assert torch.equal(Splitting(0.3, 1).tasks(lambda rows: x[rows], y, others)[2].x_test, whole[2].x_test)
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
        with pytest.raises(DataError, match=f"'a': {n} rows .* {fraction} .*test_fraction"):
            split_task("a", np.ones((n, 1)), np.where(np.arange(n) % 2, 1.0, -1.0), fraction, rng(0))
