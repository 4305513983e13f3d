"""Task: dtypes, shapes, and the faults that it names; `prepare` from raw rows."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from hmtl.data import Preprocessing, Task, prepare
from hmtl.data.tasks import classified
from hmtl.errors import ConfigError, DataError

FIELDS = ("x_train", "y_train", "x_test", "y_test")
VALID = {"x_validation": np.ones((2, 3)), "y_validation": np.ones(2)}


def fields(n=6, d=3, n_test=4):
    return {
        "x_train": np.arange(n * d, dtype=float).reshape(n, d),
        "y_train": np.where(np.arange(n) % 2, 1.0, -1.0),
        "x_test": np.ones((n_test, d)),
        "y_test": np.ones(n_test),
    }


@pytest.mark.parametrize("narrow", [True, False])
def test_arrays_become_tensors_and_float32_features_stay(narrow):
    arrays = fields()
    dtype, kept = (np.float32, torch.float32) if narrow else (np.int32, torch.float64)
    x_train, x_test = arrays["x_train"].astype(dtype), arrays["x_test"].astype(dtype)
    task = Task("a", x_train, torch.tensor([1, -1] * 3), x_test, np.float32([1, 1, 1, -1]))
    assert [getattr(task, field).dtype for field in FIELDS] == [kept, torch.float64, kept, torch.float64]
    assert torch.equal(task.x_train, torch.arange(18.0, dtype=kept).reshape(6, 3))
    assert task.y_test.tolist() == [1, 1, 1, -1]


def test_class_numbers_become_integers():
    task = Task("a", **(fields() | {"y_train": np.uint8([0, 1, 5, 2, 0, 0]), "y_test": [5.0, 0, 0, 3]}), classes=6)
    assert (task.y_train.dtype, task.y_test.dtype) == (torch.int64, torch.int64)
    assert (task.y_train.tolist(), task.y_test.tolist()) == ([0, 1, 5, 2, 0, 0], [5, 0, 0, 3])
    assert Task("a", **(fields() | {"y_train": [2] * 6}), classes=3).y_train.tolist() == [2] * 6


def test_images_and_their_vectors():
    x = np.arange(6 * 12, dtype=np.float32).reshape(6, 3, 2, 2)
    task = Task("a", **(fields() | {"x_train": x, "x_test": x[:4]}))
    assert torch.equal(task.x_train, torch.from_numpy(x))
    assert torch.equal(task.flat.x_train, torch.from_numpy(x.reshape(6, 12)))
    assert torch.equal(task.flat.y_test, task.y_test)


def with_value(field, index, value):
    changed = fields()
    changed[field][index] = value
    return changed


IMAGES = np.ones((6, 3, 2, 2))


@pytest.mark.parametrize(
    ("changed", "classes", "named"),
    [
        (fields() | {"x_train": np.ones(6)}, None, "x_train has shape [6]"),
        (fields() | {"y_test": np.ones((4, 1))}, None, "x_test has shape [4, 3], y_test [4, 1]"),
        (fields() | {"y_train": np.ones(5)}, None, "x_train has shape [6, 3], y_train [5]"),
        (fields() | {"x_train": np.ones((0, 3)), "y_train": np.ones(0)}, None, "x_train has shape [0, 3]"),
        (fields() | {"x_train": np.ones((6, 0))}, None, "x_train has shape [6, 0]"),
        (fields() | {"x_test": np.ones((4, 2))}, None, "x_train has 3 columns, x_test 2"),
        (fields() | VALID | {"x_validation": np.ones((2, 2))}, None, "x_train has 3 columns, x_validation 2"),
        (fields() | VALID | {"y_validation": [1, np.nan]}, None, "y_validation is NaN or infinite in row 1"),
        (fields() | {"sample_weight": np.ones(5)}, None, "sample_weight has to be"),
        (fields() | {"sample_weight": np.array([1.0, 1, 0, 1, 1, 1])}, None, "sample_weight has to be"),
        (fields() | {"x_train": IMAGES, "x_test": IMAGES[:4, :2]}, None, "x_train has 3 × 2 × 2 columns, x_test 2"),
        (with_value("x_train", (4, 1), np.nan), None, "x_train is NaN or infinite in row 4 (from 0)"),
        (with_value("x_test", ([1, 3], 0), -np.inf), None, "x_test is NaN or infinite in row 1 (from 0; 1 more)"),
        (with_value("y_train", 5, np.inf), None, "y_train is NaN or infinite in row 5"),
        (with_value("x_train", (4, 1), -1e160), None, "x_train has a number of size 1e+160"),
        (with_value("y_test", 2, 1e160), None, "y_test has a number of size 1e+160"),
        (fields() | {"y_train": [0, 1, 2, 3, 0, 0]}, 3, "y_train is 3 in row 3"),
        (fields() | {"y_train": [0, 1, -1, 2, 0, 0]}, 3, "y_train is -1 in row 2"),
        (fields() | {"y_train": [0, 0.5, 1, 2, 0, 0]}, 3, "y_train is 0.5 in row 1"),
    ],
)
def test_faults_name_task_array_and_row(changed, classes, named):
    with pytest.raises(DataError, match=re.escape(f"'ward 7': {named}")):
        Task("ward 7", **changed, classes=classes)


def test_without_rows_only_shapes_are_known():
    (task,) = prepare([Task("a", **fields(), sample_weight=np.arange(1.0, 7))], Preprocessing(True, "task"))
    known = task.without_rows()
    assert known.sample_weight is None
    assert known.raw.sample_weight is None
    assert (task.is_local, known.is_local, known.raw.is_local) == (True, False, False)
    assert [getattr(known, field).shape for field in FIELDS] == [getattr(task, field).shape for field in FIELDS]


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("rows", [[1, 4], [0, 2, 3, 5], []])
def test_rows_are_held_out_with_all_that_belongs_to_them(split, rows):
    x, y = torch.from_numpy(fields()["x_train"]), torch.arange(6.0)
    task = Task("a", **(fields() | {"y_train": y}), sample_weight=np.arange(1.0, 7), dataset=TensorDataset(x, y))
    part, rest = task.held_out(np.array(rows, dtype=np.int64), split), [n for n in range(6) if n not in rows]
    assert getattr(part, f"y_{split}").tolist() == rows
    assert part.y_train.tolist() == [float(part.dataset[n][1]) for n in range(len(rest))] == rest
    assert part.sample_weight.tolist() == [n + 1 for n in rest]
    assert torch.equal(part.x_train, x[rest])
    assert torch.equal(getattr(part, f"x_{split}"), x[rows])
    other = {"test": "validation", "validation": "test"}[split]
    assert torch.equal(getattr(part, f"y_{other}"), getattr(task, f"y_{other}"))


def test_preparing_again_starts_from_the_raw_rows():
    tasks = [Task(f"t{k}", **with_value("x_train", (0, k), 7.0)) for k in range(3)]
    once = prepare(tasks, Preprocessing(True, "task", "task"))
    again = prepare(once, Preprocessing(True, "all"))
    for expected, task in zip(prepare(tasks, Preprocessing(True, "all")), again, strict=True):
        assert torch.equal(expected.x_train, task.x_train)
        assert torch.equal(expected.y_train, task.y_train)
    assert all(raw is task for raw, task in zip(prepare(once, Preprocessing()), tasks, strict=True))
    assert once[0].preprocessing == Preprocessing(True, "task", "task")


def test_test_rows_do_not_influence_the_scaling():
    first = [Task(f"t{k}", **with_value("x_train", (0, k), 7.0)) for k in range(3)]
    second = [Task(task.name, task.x_train, task.y_train, task.x_test * 1e3 + 5, task.y_test - 70) for task in first]
    for scope in ("task", "all"):
        for a, b in zip(*(prepare(each, Preprocessing(True, scope, scope)) for each in (first, second)), strict=True):
            assert torch.equal(a.x_train, b.x_train)
            assert torch.equal(a.y_train, b.y_train)


def test_classes_are_not_centered():
    tasks = [Task("a", **(fields() | {"y_train": [0, 1, 2, 2, 1, 0]}), classes=3)]
    assert torch.equal(prepare(tasks, Preprocessing(True, "all"))[0].y_train, tasks[0].y_train)
    with pytest.raises(ConfigError, match="center=task"):
        prepare(tasks, Preprocessing(center="task"))


@pytest.mark.parametrize("values", [(0, 1), (3, 4, 9), (False, True), (-1, 0, 1)])
def test_integers_are_classes(values):
    """Over all tasks, of which one has not all of them; also after preprocessing. Numbers and ±1 stay what they are."""
    first = fields() | {"y_train": np.array(values * 6)[:6], "y_test": np.array(values * 4)[:4]}
    second = fields() | {"y_train": np.array(values[1:2] * 6), "y_test": np.array(values[1:2] * 4)}
    first |= VALID | {"y_validation": np.array(values[:2])}
    second |= VALID | {"y_validation": np.array(values[-1:] * 2)}
    tasks = prepare([Task("a", **first), Task("b", **second)], Preprocessing(True, "all"))
    for raw, task in zip((first, second), classified(tasks), strict=True):
        for part in ("y_train", "y_test", "y_validation"):
            y = getattr(task, part)
            number = y.int() if len(values) > 2 else (y.int() + 1) // 2
            assert [task.labels[c] for c in number] == raw[part].tolist()
        assert task.classes == (len(values) if len(values) > 2 else None)
        assert (task.x_train.shape, task.raw.labels) == ((6, 4), tuple(values))
    for y in (np.array([3.0, 4, 9] * 2), np.array([1, -1] * 3)):
        task = Task("a", **(fields() | {"y_train": y, "y_test": y[:4]}))
        assert classified([task]) == (task,)
    with pytest.raises(DataError, match="2 in all rows"):
        classified([Task("a", **(fields() | {"y_train": np.array([2] * 6), "y_test": np.array([2] * 4)}))])
