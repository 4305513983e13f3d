"""Task and split: what is kept, and every error with what it names."""

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


def test_arrays_of_any_kind_become_float64_tensors():
    given_ = parts()
    task = Task("a", given_["x_train"].astype(np.float32), torch.tensor([1, -1] * 3), given_["x_test"], [1, 1, 1, -1])
    for field in ("x_train", "y_train", "x_test", "y_test"):
        assert getattr(task, field).dtype == torch.float64
    assert torch.equal(task.x_train, torch.arange(18.0, dtype=torch.float64).reshape(6, 3))
    assert task.y_test.tolist() == [1, 1, 1, -1]


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
        (parts() | {"x_test": np.ones((0, 3)), "y_test": np.ones(0)}, ["x_test has shape [0, 3]", "empty"]),
        (parts() | {"x_train": np.ones((6, 0))}, ["x_train has shape [6, 0]", "empty"]),
        (parts() | {"x_test": np.ones((4, 2))}, ["x_train has 3 columns, x_test 2"]),
        (with_value("x_train", (4, 1), np.nan), ["x_train", "row 4", "0 more"]),
        (with_value("x_test", ([1, 3], 0), -np.inf), ["x_test", "row 1", "1 more"]),
        (with_value("y_train", 5, np.inf), ["y_train", "row 5"]),
        (parts() | {"y_train": -np.ones(6)}, ["y_train is -1 in all rows", "drop the task"]),
    ],
)
def test_what_does_not_fit_is_named(changed, words):
    with pytest.raises(DataError) as error:
        Task("ward 7", **changed)
    for word in ["ward 7", *words]:
        assert word in str(error.value)


@settings(deadline=None, max_examples=50)
@given(plus=st.integers(2, 40), minus=st.integers(2, 40), fraction=st.floats(0.2, 0.8), seed=st.integers(0, 2**32 - 1))
def test_split_deals_each_row_once_and_each_class_to_both_parts(plus, minus, fraction, seed):
    n = plus + minus
    x, y = np.arange(n, dtype=float)[:, None] * [1, 10], np.repeat([1.0, -1.0], [plus, minus])
    n_test = int(np.ceil(n * fraction))
    if min(n_test, n - n_test) < 2:
        return
    x_train, y_train, x_test, y_test = split(x, y, fraction, np.random.default_rng(seed))
    assert (len(x_train), len(x_test)) == (n - n_test, n_test)
    assert sorted(torch.cat([x_train, x_test])[:, 0].tolist()) == list(range(n))
    for part_x, part_y in ((x_train, y_train), (x_test, y_test)):
        assert part_y.tolist() == y[part_x[:, 0].int()].tolist()
        assert abs(int((part_y == 1).sum()) - len(part_y) * plus / n) < 1


def test_split_comes_from_the_generator_alone():
    x, y = np.arange(40.0)[:, None], np.repeat([1.0, -1.0], 20)
    once, again, other = (split(x, y, 0.25, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(once[2], again[2])
    assert not torch.equal(once[2], other[2])


def test_split_takes_real_targets():
    _, _, x_test, y_test = split(np.arange(8.0)[:, None], np.arange(8.0) ** 2, 0.25, np.random.default_rng(0))
    assert len(y_test) == 2
    assert torch.equal(x_test[:, 0] ** 2, y_test)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, float("nan")])
def test_split_refuses_a_fraction_that_leaves_nothing(fraction):
    with pytest.raises(ConfigError, match=f"test_fraction={fraction}"):
        split(np.ones((8, 1)), np.repeat([1.0, -1.0], 4), fraction, np.random.default_rng(0))


@pytest.mark.parametrize(("n", "fraction"), [(2, 0.5), (4, 0.2), (1, 0.5), (100, 0.001)])
def test_split_says_when_the_rows_do_not_suffice(n, fraction):
    y = np.where(np.arange(n) % 2, 1.0, -1.0)
    with pytest.raises(DataError, match=rf"^{n} rows .* test_fraction={fraction} .*Give more rows"):
        split(np.ones((n, 1)), y, fraction, np.random.default_rng(0))
