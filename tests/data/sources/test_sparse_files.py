"""Sparse files: svmlight and NPZ give the tasks that were written, and each bad file has an error that names it."""

import numpy as np
import pandas as pd
import pytest
from examples import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import dump_svmlight_file

from hmtl.data import Quantity, files
from hmtl.errors import ConfigError, DataError

plain = {"intercept": False, "standardize": "none", "test_fraction": 0.0}


def drawn(rng, n, d=9):
    """Rows with empty ones among them; the last column is never empty, as svmlight does not say how many there are."""
    x = sparse.random_array((n, d), density=rng.choice([0.05, 0.4]), rng=rng, format="lil")
    x[0] = 0
    x[n - 1, d - 1] = 1.5
    x = x.tocsr()
    x.data = np.ceil(64 * x.data) / 64  # numbers that text files hold exactly
    return x


def write(file, x, y, **further):
    if file.suffix == ".npz":
        np.savez(file, data=x.data, indices=x.indices, indptr=x.indptr, shape=x.shape, y=y, **further)
    else:
        dump_svmlight_file(x, y, str(file), zero_based=False, query_id=further.get("qid"))


@pytest.mark.parametrize("ending", ["svm", "libsvm", "npz"])
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["two", "classes", "numbers"]))
@examples(4, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_round_trip(tmp_path_factory, ending, seed, kind):
    rng, folder, written = np.random.default_rng(seed), tmp_path_factory.mktemp("sparse"), []
    for k in range(3):
        x = drawn(rng, int(rng.integers(4, 12)))
        y = np.arange(x.shape[0]) / 4 if kind == "numbers" else rng.integers(3, 5 + (kind == "classes"), x.shape[0])
        if kind != "numbers":
            y[: 2 + (kind == "classes")] = range(3, 5 + (kind == "classes"))
        written.append((x, y))
        write(folder / f"user {k}.{ending}", x, y)
    tasks = files(folder, kind="regression" if kind == "numbers" else "auto", center="none", **plain)
    assert [task.name for task in tasks] == ["user 0", "user 1", "user 2"]
    for task, (x, y) in zip(tasks, written, strict=True):
        assert task.is_sparse
        np.testing.assert_array_equal(task.x_train.toarray(), x.toarray())
        wanted = {"two": 2 * y - 7, "classes": y - 3, "numbers": y}[kind]
        np.testing.assert_array_equal(task.y_train.numpy(), wanted)
        assert task.labels == {"two": (3, 4), "classes": (3, 4, 5), "numbers": None}[kind]


@pytest.mark.parametrize("ending", ["svm", "npz"])
def test_one_file_for_all_tasks(tmp_path, ending):
    """With a column that names the tasks, qid in svmlight, or a partition; an intercept; and separate test rows."""
    rng = np.random.default_rng(0)
    x, y, owner = drawn(rng, 60), rng.choice([-1, 1], size=60), rng.permutation(np.repeat([10, 2, 7], 20))
    order = owner.argsort(kind="stable") if ending == "svm" else np.arange(60)
    for name, rows in (("train", order), ("test", order[::2])):
        write(tmp_path / f"{name}.{ending}", x[rows], y[rows], qid=owner[rows])
    options = {**plain, "intercept": True, "task": "qid", "test_path": tmp_path / f"test.{ending}"}
    tasks = files(tmp_path / f"train.{ending}", **options)
    assert [task.name for task in tasks] == ["2", "7", "10"]
    for task in tasks:
        for rows, part in ((order, task.x_train), (order[::2], task.x_test)):
            own = rows[owner[rows] == int(task.name)]
            np.testing.assert_array_equal(part.toarray(), np.hstack([x[own].toarray(), np.ones((len(own), 1))]))
    dealt = files(tmp_path / f"train.{ending}", 4, partition=Quantity(5), **plain | {"test_fraction": 0.25})
    assert sum(task.x_train.shape[0] + task.x_test.shape[0] for task in dealt) == 60
    total = sum(task.x_train.sum() + task.x_test.sum() for task in dealt)
    assert total == pytest.approx(x.sum())


def test_svmlight_files_of_unequal_width(tmp_path):
    """Features that a file does not name are zero."""
    (tmp_path / "a.svm").write_text("1 1:2\n-1 2:1\n")
    (tmp_path / "b.svm").write_text("1 5:1\n-1\n")
    first, second = files(tmp_path, **plain)
    assert first.x_train.toarray().tolist() == [[2, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert second.x_train.toarray().tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]


def test_bad_files(tmp_path):
    x, y = sparse.csr_array(np.eye(4)), np.array([0, 1, 0, 1])
    write(tmp_path / "good.npz", x, y)
    with pytest.raises(DataError, match="Set standardize=none"):
        files(tmp_path)
    arrays = {"data": x.data, "indices": x.indices, "indptr": x.indptr, "shape": x.shape, "y": y}
    for change in (
        {"indices": np.array([0, 1, 2, 4])},
        {"indices": x.indices.astype(float)},
        {"indices": np.array([0, 1, 2, -1])},
        {"indptr": np.array([0, 3, 2, 3, 4])},
        {"indptr": np.array([0, 1, 2, 3, 9])},
        {"shape": np.array([4])},
        {"format": "csc"},
        {"y": y[:3]},
    ):
        np.savez(tmp_path / "bad.npz", **arrays | change)
        with pytest.raises(DataError, match=r"bad\.npz cannot be read"):
            files(tmp_path, **plain)
    write(tmp_path / "bad.npz", x[:, :3], y)
    with pytest.raises(DataError, match="differ in the number of columns"):
        files(tmp_path, **plain)
    (tmp_path / "bad.npz").unlink()
    pd.DataFrame({"a": [1.0, 2], "y": [0, 1]}).to_csv(tmp_path / "dense.csv", index=False)
    with pytest.raises(DataError, match="lacks"):
        files(tmp_path, **plain)
    for text, message in (("1 0:2\n", "cannot be read"), ("one 1:2\n", "cannot be read"), ("1 1:nan\n0 1:1\n", "NaN")):
        (tmp_path / "bad.svm").write_text(text)
        with pytest.raises(DataError, match=message):
            files(tmp_path / "bad.sv*", **plain)
    with pytest.raises(ConfigError, match="K=3"):
        files(tmp_path / "good*", 3, **plain)
