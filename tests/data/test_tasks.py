"""Task and split: what is kept, how rows are split, and every error with what it names."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.data import Task
from hmtl.data.tasks import split
from hmtl.errors import ConfigError, DataError


def parts(n=6, d=3, n_test=4):
    return {
        "x_train": np.arange(n * d, dtype=float).reshape(n, d),
        "y_train": np.where(np.arange(n) % 2, 1.0, -1.0),
        "x_test": np.ones((n_test, d)),
        "y_test": np.ones(n_test),
    }


FIELDS = ("x_train", "y_train", "x_test", "y_test")


@pytest.mark.parametrize("narrow", [True, False])
def test_arrays_of_any_kind_become_tensors_and_float32_features_stay(narrow):
    given_ = parts()
    dtype = np.float32 if narrow else np.int32
    x_train, x_test = given_["x_train"].astype(dtype), given_["x_test"].astype(dtype)
    task = Task("a", x_train, torch.tensor([1, -1] * 3), x_test, np.float32([1, 1, 1, -1]))
    kept = torch.float32 if narrow else torch.float64
    assert [getattr(task, field).dtype for field in FIELDS] == [kept, torch.float64, kept, torch.float64]
    assert torch.equal(task.x_train, torch.arange(18.0, dtype=kept).reshape(6, 3))
    assert task.y_test.tolist() == [1, 1, 1, -1]


def test_class_numbers_stay_integers():
    task = Task("a", **(parts() | {"y_train": np.uint8([0, 1, 5, 2, 0, 0]), "y_test": [5.0, 0, 0, 3]}), classes=6)
    assert (task.y_train.dtype, task.y_test.dtype, task.classes) == (torch.int64, torch.int64, 6)
    assert task.y_train.tolist() == [0, 1, 5, 2, 0, 0]
    assert task.y_test.tolist() == [5, 0, 0, 3]


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([0, 1, 2, 3, 0, 0], "y_train is 3 in row 3 (from 0), which is not one of 3 classes. Number them 0..2"),
        ([0, 1, -1, 2, 0, 0], "y_train is -1 in row 2"),
        ([0, 0.5, 1, 2, 0, 0], "y_train is 0.5 in row 1"),
        ([2, 2, np.nan, 2, 2, 2], "y_train is NaN or infinite in row 2"),
    ],
)
def test_class_numbers_that_are_none(y, words):
    with pytest.raises(DataError, match=re.escape(f"Task 'ward 7': {words}")):
        Task("ward 7", **(parts() | {"y_train": y}), classes=3)


def test_a_user_may_have_rows_of_one_class_among_several():
    """As the partitions of federated benchmarks deal them; of two classes, ±1, it has nothing to tell apart."""
    assert Task("a", **(parts() | {"y_train": [2] * 6}), classes=3).y_train.tolist() == [2] * 6


def test_rows_of_a_shape_and_as_vectors():
    x = np.arange(6 * 12, dtype=np.float32).reshape(6, 3, 2, 2)
    task = Task("a", **(parts() | {"x_train": x, "x_test": x[:4]}))
    assert torch.equal(task.x_train, torch.from_numpy(x))
    assert torch.equal(task.flat.x_train, torch.from_numpy(x.reshape(6, 12)))
    assert torch.equal(task.flat.y_test, task.y_test)
    assert task.x_test.shape == (4, 3, 2, 2)
    with pytest.raises(DataError, match="x_train has 3 × 2 × 2 columns, x_test 3 × 4"):
        Task("a", **(parts() | {"x_train": x, "x_test": x[:4].reshape(4, 3, 4)}))
    wrong = x.copy()
    wrong[3, 1, 0, 1] = np.nan
    with pytest.raises(DataError, match="x_train is NaN or infinite in row 3 "):
        Task("a", **(parts() | {"x_train": wrong, "x_test": x[:4]}))


def with_value(field, index, value):
    changed = parts()
    changed[field][index] = value
    return changed


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (parts() | {"x_train": np.ones(6)}, ["x_train has shape [6]", "[rows, columns]"]),
        (parts() | {"y_test": np.ones((4, 1))}, ["y_test [4, 1]"]),
        (parts() | {"y_train": np.ones(5)}, ["x_train has shape [6, 3], y_train [5]"]),
        (parts() | {"x_train": np.ones((0, 3)), "y_train": np.ones(0)}, ["x_train has shape [0, 3]", "empty"]),
        (parts() | {"x_test": np.ones((0, 2)), "y_test": np.ones(0)}, ["x_train has 3 columns, x_test 2"]),
        (parts() | {"x_train": np.ones((6, 0))}, ["x_train has shape [6, 0]", "empty"]),
        (parts() | {"x_test": np.ones((4, 2))}, ["x_train has 3 columns, x_test 2"]),
        (with_value("x_train", (4, 1), np.nan), ["x_train", "row 4", "0 more"]),
        (with_value("x_test", ([1, 3], 0), -np.inf), ["x_test", "row 1", "1 more"]),
        (with_value("y_train", 5, np.inf), ["y_train", "row 5"]),
    ],
)
def test_what_does_not_fit_is_named(changed, words):
    with pytest.raises(DataError) as error:
        Task("ward 7", **changed)
    for word in ["ward 7", *words]:
        assert word in str(error.value)


@settings(deadline=None, max_examples=50)
@given(
    counts=st.lists(st.integers(2, 25), min_size=2, max_size=4),
    fraction=st.floats(0.2, 0.8),
    seed=st.integers(0, 2**32 - 1),
)
def test_deals_each_row_once_and_each_class_to_both_parts(counts, fraction, seed):
    n, C = sum(counts), len(counts)
    y = np.repeat(np.arange(C) if C > 2 else [-1.0, 1.0], counts)
    x = np.arange(n, dtype=float)[:, None] * [1, 10]
    n_test = int(np.ceil(n * fraction))
    if min(counts) * min(n_test, n - n_test) < n:  # the rarest class is too rare to be in both
        return
    task = split("a", x, y, fraction, np.random.default_rng(seed), C if C > 2 else None)
    assert (len(task.x_train), len(task.x_test)) == (n - n_test, n_test)
    assert sorted(torch.cat([task.x_train, task.x_test])[:, 0].tolist()) == list(range(n))
    for part_x, part_y in ((task.x_train, task.y_train), (task.x_test, task.y_test)):
        assert part_y.tolist() == y[part_x[:, 0].int()].tolist()
        for value, count in zip(np.unique(y), counts, strict=True):
            assert abs(int((part_y == value).sum()) - len(part_y) * count / n) < (1 if C == 2 else 2)


def test_a_rare_class_among_several_falls_where_it_falls():
    y = np.array([0] * 9 + [1] * 9 + [2])
    homes = {2 in split("a", y[:, None], y, 0.4, np.random.default_rng(s), 3).y_train.tolist() for s in range(20)}
    assert homes == {True, False}


def test_deal_comes_from_the_generator_alone():
    x, y = np.arange(40.0)[:, None], np.repeat([1.0, -1.0], 20)
    once, again, other = (split("a", x, y, 0.25, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(once.x_test, again.x_test)
    assert not torch.equal(once.x_test, other.x_test)


def test_deal_takes_real_targets():
    task = split("a", np.arange(8.0)[:, None], np.arange(8.0) ** 2, 0.25, np.random.default_rng(0))
    assert len(task.y_test) == 2
    assert torch.equal(task.x_test[:, 0] ** 2, task.y_test)


@pytest.mark.parametrize(("values", "classes"), [((17.0, 23.0), None), ((0, 2), 3)])
def test_a_rare_one_of_two_numbers_or_of_three_classes_falls_where_it_falls(values, classes):
    y = np.repeat(values, (11, 1))
    task = split("a", y[:, None], y, 0.25, np.random.default_rng(1), classes)
    assert sorted(task.y_train.tolist()) == [*[values[0]] * 8, values[1]]


def test_no_tests_at_all():
    x, y = np.arange(8.0)[:, None], np.tile([1.0, -1.0], 4)
    task = split("a", x, y, 0, np.random.default_rng(0))
    assert torch.equal(task.x_train[:, 0], torch.arange(8.0, dtype=torch.float64))
    assert task.y_train.tolist() == y.tolist()
    assert (task.x_test.shape, task.y_test.shape) == ((0, 1), (0,))


@pytest.mark.parametrize(("y", "classes"), [(5.0, None), (1.0, None), (-1.0, None), (2, 3)])
def test_a_number_to_predict_or_a_class_may_be_the_same_throughout(y, classes):
    task = split("a", np.zeros((8, 1)), np.full(8, y), 0.25, np.random.default_rng(0), classes)
    assert task.y_train.tolist() == [y] * 6
    assert task.y_test.tolist() == [y] * 2


@pytest.mark.parametrize("fraction", [1, -0.5, 1.5, float("nan")])
def test_deal_refuses_a_fraction_that_leaves_nothing(fraction):
    with pytest.raises(ConfigError, match=f"test_fraction={fraction}"):
        split("a", np.ones((8, 1)), np.repeat([1.0, -1.0], 4), fraction, np.random.default_rng(0))


@pytest.mark.parametrize(("n", "fraction"), [(1, 0.5), (1, 0.001), (4, 0.8), (9, 0.95)])
def test_deal_says_when_the_rows_do_not_suffice(n, fraction):
    y = np.where(np.arange(n) % 2, 1.0, -1.0)
    with pytest.raises(DataError, match=rf"^Task 'a': {n} rows .* test_fraction={fraction}: .*Give more rows"):
        split("a", np.ones((n, 1)), y, fraction, np.random.default_rng(0))


@pytest.mark.parametrize(("values", "classes"), [((3, 7), 10), ((-1.0, 1.0), None)])
def test_of_classes_a_rare_one_falls_where_it_falls(values, classes):
    y = np.repeat(values, (11, 1))
    task = split("a", np.ones((12, 2)), y, 0.25, np.random.default_rng(0), classes)
    assert sorted([*task.y_train.tolist(), *task.y_test.tolist()]) == sorted(y)
