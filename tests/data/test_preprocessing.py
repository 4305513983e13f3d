"""Preprocessing against scikit-learn's scaler; what stays unchanged, and what is refused."""

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from hmtl.data import Preprocessing
from hmtl.errors import ConfigError, DataError

SCOPES = ("task", "all", "none")


def random_rows(seed, K=3, d=4, dtype=np.float64):
    """Unequal tasks around different means; the last column is constant, the one before it within each task."""
    rng = np.random.default_rng(seed)
    x, y = [], []
    for _ in range(K):
        n = int(rng.integers(3, 15))
        rows = rng.normal(rng.normal(0, 5, d), 10.0 ** rng.integers(-3, 4, d), (n, d))
        rows[:, -2:] = rng.normal(), 0.1
        x.append(rows.astype(dtype))
        y.append(rng.normal(20, 5, n))
    return x, y


def fit(preprocessing, x, y):
    return preprocessing.fit([torch.from_numpy(rows) for rows in x], [torch.from_numpy(each) for each in y])


@examples(20)
@given(
    seed=st.integers(0, 2**32 - 1),
    intercept=st.booleans(),
    standardize=st.sampled_from(SCOPES),
    center=st.sampled_from(SCOPES),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_against_scikit_learn(seed, intercept, standardize, center, dtype):
    x, y = random_rows(seed, dtype=dtype)
    tolerance = 1e-9 if dtype is np.float64 else 1e-5
    for k, scaling in enumerate(fit(Preprocessing(intercept, standardize, center), x, y)):
        fitted_x = np.concatenate(x) if standardize == "all" else x[k]
        fitted_y = np.concatenate(y) if center == "all" else y[k]
        scaled = scaling.features(torch.from_numpy(x[k])).numpy()
        assert scaled.dtype == dtype
        assert scaled.shape[1] == 4 + intercept
        assert (scaled[:, 4:] == 1).all()
        varies = (fitted_x.max(0) > fitted_x.min(0)) & (standardize != "none")
        np.testing.assert_array_equal(scaled[:, :4][:, ~varies], x[k][:, ~varies])
        if varies.any():
            expected = StandardScaler().fit(fitted_x.astype(np.float64)).transform(x[k].astype(np.float64))
            np.testing.assert_allclose(scaled[:, :4][:, varies], expected[:, varies], rtol=tolerance, atol=tolerance)
        assert scaling.target_mean == pytest.approx(0 if center == "none" else fitted_y.mean(), abs=1e-10)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
@pytest.mark.parametrize("scope", ["task", "all"])
def test_a_constant_stays_up_to_rounding(value, scope):
    """0.1 + 0.2 beside 0.3: the difference is not a feature."""
    x = np.full((50, 1), value)
    x[::2] = np.nextafter(value, np.inf) if value else 0.0
    (scaling,) = fit(Preprocessing(standardize=scope), [x], [np.arange(50.0)])
    np.testing.assert_array_equal(scaling.features(torch.from_numpy(x)).numpy(), x)


def test_users_send_the_moments_that_are_pooled():
    x, y = random_rows(0)
    rows, targets = [torch.from_numpy(each) for each in x], [torch.from_numpy(each) for each in y]
    assert Preprocessing(True, "task", "task").shared_moments(rows, targets) == []
    of_x, of_y = Preprocessing(True, "all", "all").shared_moments(rows, targets)
    assert (of_x.shape, of_y.shape) == ((3, 1 + 2 * 4), (3, 3))
    for k in range(3):
        np.testing.assert_allclose(of_x[k], [len(x[k]), *x[k].mean(0), *x[k].var(0)], atol=1e-12)
        np.testing.assert_allclose(of_y[k], [len(y[k]), y[k].mean(), y[k].var()])


def test_refused():
    x, y = random_rows(0)
    with pytest.raises(DataError, match="4 to 5 columns"):
        fit(Preprocessing(True), [*x, *random_rows(0, d=5)[0]], y * 2)
    for name in ("standardize", "center"):
        with pytest.raises(ConfigError, match=f"{name}=both"):
            Preprocessing(**{name: "both"})
    for settings_ in ({"intercept": True}, {"standardize": "all"}):
        with pytest.raises(DataError, match=r"\[1, 2, 3\]"):
            fit(Preprocessing(**settings_), [np.arange(24.0).reshape(4, 1, 2, 3)], [np.ones(4)])
