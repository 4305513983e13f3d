"""Preprocessing against scikit-learn's scaler and sums by hand; what is left alone, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from hmtl.data import Preprocessing, Task
from hmtl.errors import ConfigError, DataError

SCOPES = ("task", "all", "none")


def tasks(seed, K=3, d=4, dtype=np.float64, classes=None, n_test=3):
    """Unequal tasks around different means; the last column is one constant, the one before it one in each task."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(K):
        n = int(rng.integers(3, 15))
        x = rng.normal(rng.normal(0, 5, d), 10.0 ** rng.integers(-3, 4, d), (n + n_test, d))
        x[:, -2:] = rng.normal(), 0.1
        y = np.arange(n + n_test) % classes if classes else rng.normal(20, 5, n + n_test)
        x = x.astype(dtype)
        made.append(Task(f"t{k}", x[:n], y[:n], x[n:], y[n:], classes))
    return made


def pooled(given_, scope, name):
    """For each task, the rows that it is fitted to."""
    own = [getattr(task, name).numpy().astype(np.float64) for task in given_]
    return [np.concatenate(own)] * len(own) if scope == "all" else own


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    intercept=st.booleans(),
    standardize=st.sampled_from(SCOPES),
    center=st.sampled_from(SCOPES),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_against_scikit_learn(seed, intercept, standardize, center, dtype):
    given_ = tasks(seed, dtype=dtype)
    made = Preprocessing(intercept, standardize, center)(given_)
    x_from, y_from = pooled(given_, standardize, "x_train"), pooled(given_, center, "y_train")
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype is np.float64 else {"rtol": 1e-5, "atol": 1e-5}
    for raw, task, fit_x, fit_y in zip(given_, made, x_from, y_from, strict=True):
        constant = fit_x.max(0) == fit_x.min(0)
        assert constant[-1]
        scaler = StandardScaler().fit(fit_x)
        for part in ("train", "test"):
            x, y = getattr(raw, f"x_{part}").numpy(), getattr(raw, f"y_{part}").numpy()
            found = getattr(task, f"x_{part}").numpy()
            assert found.dtype == x.dtype
            assert found.shape[1] == 4 + intercept
            if standardize == "none":
                np.testing.assert_array_equal(found[:, :4], x)
            else:
                np.testing.assert_array_equal(found[:, :4][:, constant], x[:, constant])
                there = ~constant
                np.testing.assert_allclose(
                    found[:, :4][:, there], scaler.transform(x.astype(np.float64))[:, there], **tolerance
                )
            assert (found[:, 4:] == 1).all()
            mean = 0 if center == "none" else fit_y.mean()
            np.testing.assert_allclose(getattr(task, f"y_{part}").numpy(), y - mean, atol=1e-10)
        assert task.raw is raw
        np.testing.assert_array_equal(task.scaling.features(raw.x_test).numpy(), task.x_test.numpy())
        np.testing.assert_allclose(task.y_test + task.scaling.target_mean, raw.y_test, atol=1e-10)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3e7, 1 / 3])
@pytest.mark.parametrize("scope", ["task", "all"])
def test_what_rounding_makes_of_a_constant_stays(value, scope):
    """0.1 + 0.2 beside 0.3: the difference is no feature."""
    x = np.full((50, 1), value)
    x[::2] = np.nextafter(value, np.inf) if value else 0.0
    made = Preprocessing(standardize=scope)([Task("a", x, np.arange(50.0), x, np.arange(50.0))])
    np.testing.assert_array_equal(made[0].x_train.numpy(), x)


def test_fitting_anew_starts_from_the_raw_rows():
    given_ = tasks(0)
    once = Preprocessing(True, "task", "task")(given_)
    again = Preprocessing(True, "all")(once)
    for one, two in zip(Preprocessing(True, "all")(given_), again, strict=True):
        assert torch.equal(one.x_train, two.x_train)
        assert torch.equal(one.y_train, two.y_train)
    assert all(a is b for a, b in zip(Preprocessing()(once), given_, strict=True))


def test_a_test_row_changes_nothing():
    given_ = tasks(1)
    other = [dataclasses.replace(task, x_test=task.x_test * 1e3 + 5, y_test=task.y_test - 70) for task in given_]
    for scope in SCOPES:
        for a, b in zip(*(Preprocessing(True, scope, scope)(each) for each in (given_, other)), strict=True):
            assert torch.equal(a.x_train, b.x_train)
            assert torch.equal(a.y_train, b.y_train)


def test_without_tests():
    made = Preprocessing(True, "all", "all")(tasks(2, n_test=0))
    assert [(task.x_test.shape, task.y_test.shape) for task in made] == [((0, 5), (0,))] * 3


def test_classes_stay_what_they_are():
    given_ = tasks(3, classes=3)
    for raw, task in zip(given_, Preprocessing(True, "all")(given_), strict=True):
        assert task.classes == 3
        assert torch.equal(task.y_train, raw.y_train)
    with pytest.raises(ConfigError, match=r"center=task, but y is the number of a class\. Set center=none"):
        Preprocessing(center="task")(given_)


def test_tasks_of_other_columns():
    with pytest.raises(DataError, match="Tasks have 4 to 5 columns"):
        Preprocessing(True)([*tasks(0), *tasks(0, d=5)])


@pytest.mark.parametrize("asked", [{"intercept": True}, {"standardize": "all"}, {"standardize": "task"}])
def test_images_have_no_columns(asked):
    x, y = np.arange(24.0).reshape(4, 1, 2, 3), [0, 1, 0, 1]
    given_ = [Task("a", x, y, x[:0], y[:0], 2)]
    assert Preprocessing()(given_) == tuple(given_)
    with pytest.raises(DataError, match=r"the shape \[1, 2, 3\].* Set intercept=false and standardize=none"):
        Preprocessing(**asked)(given_)
