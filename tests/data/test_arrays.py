"""Features and targets from arrays, lists and tables."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from hmtl.data.arrays import check_list, column_names, features, targets
from hmtl.errors import DataError

X = np.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    "given",
    [
        X.tolist(),
        X.astype(int),
        np.asfortranarray(X),
        X.astype(">f8"),
        X.astype(object),
        torch.from_numpy(X),
        pd.DataFrame(X),
    ],
    ids=lambda given: type(given).__name__,
)
def test_features_are_a_copy_in_float(given):
    values = features(given, "x")
    assert (values.dtype, values.flags.c_contiguous) == (np.float64, True)
    assert np.array_equal(values, X)
    assert not np.shares_memory(values, X)
    assert features(X.astype(np.float32), "x").dtype == np.float32


def test_columns_are_selected_by_name():
    table = pd.DataFrame(X, columns=["a", "b", "c"]).assign(text="x")
    assert np.array_equal(features(table, "x", ["c", "a"]), X[:, [2, 0]])
    assert np.array_equal(features(X, "x", ["c", "a", "b"]), X)
    assert column_names(table) == ("a", "b", "c", "text")
    assert column_names(pd.DataFrame(X)) == column_names(X) == ()
    with pytest.raises(DataError, match="x has no column d"):
        features(table, "x", ["a", "d"])


@pytest.mark.parametrize("labels", [["no", "yes"], [3, 7], [-1.5, 1.0], [False, True]])
def test_targets_keep_their_kind(labels):
    for y in (labels, np.array(labels), np.array(labels, object), pd.Series(labels)):
        values = targets(y, "y")
        assert values.tolist() == labels
        assert values.dtype.kind == np.array(labels).dtype.kind


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: features([[1.0], [1.0, 2.0]], "X[1]"), "X[1] is not an array"),
        (lambda: features(X.astype(str), "X[1]"), "X[1] is not an array"),
        (lambda: features(torch.ones(2, 2).requires_grad_(), "X[1]"), "grad"),
        (lambda: targets([0, [1]], "y[0]"), "y[0] is not a list"),
        (lambda: targets(["p", "q", float("nan")], "y[0]"), "y[0] holds mixed"),
        (lambda: targets([True, "q"], "y[0]"), "y[0] holds mixed"),
        (lambda: targets(["a", None], "y[0]"), "y[0] holds mixed"),
        (lambda: targets([1.0, np.nan], "y[0]"), "y[0] is NaN or infinite in row 1"),
        (lambda: targets(np.ones((3, 1)), "y[0]"), "y[0] has shape [3, 1]"),
        (lambda: targets(np.ones(3) * 1j, "y[0]"), "complex128"),
        (lambda: check_list(X, "X", 2), "X is a single ndarray"),
        (lambda: check_list(pd.DataFrame(X), "X", 2), "X is a single DataFrame"),
        (lambda: check_list({0: X}, "X", 2), "X is a single dict"),
        (lambda: check_list((x for x in X), "X", 2), "X is a single generator"),
    ],
)
def test_refused(call, named):
    with pytest.raises(DataError, match=re.escape(named)):
        call()
