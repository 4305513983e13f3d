"""Graphs of users: files, neighbors with similar problems, and regularizers that keep their own graph."""

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.data import Task
from hmtl.errors import ConfigError, DataError
from hmtl.mtl import Graph, Hinge, LowRank, Problem
from hmtl.mtl.graph import covariance, nearest, read_weights

WEIGHTS = np.array([[0.0, 1.5, 0.0], [1.5, 0.0, 2.0], [0.0, 2.0, 0.0]])


def tasks(seed, models, n=60):
    """Labels sign(w·x + constant) on uncentered features; the test rows have the opposite labels."""
    rng = np.random.default_rng(seed)
    made = []
    for k, w in enumerate(models):
        x = rng.normal(size=(n, len(w)))
        y = np.sign(x @ w + 0.1)
        x, y = torch.from_numpy(x + rng.normal(size=len(w))), torch.from_numpy(y)
        made.append(Task(str(k), x, y, x, -y))
    return made


def neighbors(tasks, neighbors):
    return nearest(torch.stack([covariance(task) for task in tasks]), neighbors).numpy()


def test_files(tmp_path):
    np.savetxt(tmp_path / "a.csv", WEIGHTS, delimiter=",")
    np.savez(tmp_path / "a.npz", weights=WEIGHTS)
    for name in ("a.csv", "a.npz"):
        np.testing.assert_array_equal(read_weights(tmp_path / name, 3).numpy(), WEIGHTS)
    regularizer = Graph(0.5, 0.25, path=tmp_path / "a.csv")
    regularizer = Problem(tasks(0, np.eye(3)), Hinge(), regularizer).regularizer
    A = [[1.0, -0.75, 0], [-0.75, 2.0, -1.0], [0, -1.0, 1.25]]
    np.testing.assert_allclose(regularizer.coupling(LowRank.multiple(1, 3)).dense().numpy(), A)


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("0,1\n1,0", r"\(3, 3\)"),
        ("0,1,2\n1,0,3\n2,4,0", "users 1 and 2"),
        ("0,1,2\n1,0,-3\n2,-3,0", "-3 of users 1 and 2"),
        ("0,1,nan\n1,0,3\nnan,3,0", "nan of users 0 and 2"),
        ("0,one,2\n1,0,3\n2,3,0", "one"),
        ("", "a.csv"),
    ],
)
def test_bad_files(tmp_path, text, named):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=named):
        read_weights(path, 3)


def test_bad_archives(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match=r"a\.npz"):
        read_weights(path, 3)
    np.savez(path, a=WEIGHTS, b=WEIGHTS)
    with pytest.raises(DataError, match=r"a\.npz"):
        read_weights(path, 3)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"a\.npz"):
        read_weights(path, 3)


@given(seed=st.integers(0, 10**6))
@examples(5)
def test_neighbors_have_similar_problems(seed):
    """Two groups of users have opposite models; all neighbors are in the same group."""
    w = np.array([1.0, 0, 0, 0, 0, 1.0])
    a = neighbors(tasks(seed, [w, -w, w, -w, w, -w]), 2)
    group = np.arange(6) % 2
    np.testing.assert_array_equal(a, (group[:, None] == group) & ~np.eye(6, dtype=bool))


def test_neighbors_by_classes():
    """Two groups number the same three clouds of points differently; features are float32."""
    rng = np.random.default_rng(0)
    clouds = 5 * np.eye(3, 4)
    users = []
    for k in range(6):
        y = np.arange(30) % 3
        x = (clouds[(y + k % 2) % 3] + rng.normal(size=(30, 4))).astype(np.float32)
        users.append(Task(f"user {k}", torch.from_numpy(x), y, torch.from_numpy(x), y, classes=3))
    group = np.arange(6) % 2
    expected = (group[:, None] == group) & ~np.eye(6, dtype=bool)
    np.testing.assert_array_equal(neighbors(users, 2), expected)


@pytest.mark.parametrize("neighbors", [0, 3, 5])
def test_too_few_users(neighbors):
    with pytest.raises(ConfigError, match=f"neighbors={neighbors}"):
        Problem(tasks(0, np.eye(3)), Hinge(), Graph(0.1, neighbors=neighbors))


def test_two_problems_that_share_a_graph():
    """Each has its own neighbors; the caller's regularizer and loss do not change."""
    w = np.array([1.0, 0, 0])
    graph, loss = Graph(0.5, neighbors=1), Hinge()
    pairs, Omega = ([w, w, -w, -w], [w, -w, w, -w]), LowRank.multiple(1, 4)
    first, second = (Problem(tasks(0, models), loss, graph) for models in pairs)
    before = first.regularizer.coupling(Omega).dense()
    third = second.regularized(graph)
    assert not torch.equal(before, second.regularizer.coupling(Omega).dense())
    assert torch.equal(third.regularizer.coupling(Omega).dense(), second.regularizer.coupling(Omega).dense())
    assert torch.equal(first.regularizer.coupling(Omega).dense(), before)
    assert not graph.state_dict()
    for problem in (first, second, third):
        assert problem.regularizer is not graph
        assert problem.loss is not loss
