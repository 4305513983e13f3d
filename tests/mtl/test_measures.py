"""Measures of each user's predictions and their summaries, against scikit-learn and NumPy."""

import csv
import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from hmtl import load_run
from hmtl.config.build import build_tasks
from hmtl.data import Task
from hmtl.errors import ConfigError
from hmtl.mtl import CrossEntropy, Hinge, Problem, Ridge, Squared, TorchLoss
from hmtl.mtl.measures import summarize
from hmtl.train import train


def users_with(counts, classes, seed):
    """Users with these numbers of test rows and of classes (None: numbers to predict), and predictions on the rows."""
    rng, tasks, predictions = np.random.default_rng(seed), [], []
    for k, n in enumerate(counts):
        y = rng.normal(size=n) if classes is None else rng.integers(classes, size=n)
        y = 2.0 * y - 1 if classes == 2 else y
        known = y[:0] if classes else np.array([0.5])
        start = np.concatenate([known, np.arange(classes or 0) if classes != 2 else [-1.0, 1.0]])
        x, x_test = torch.ones(len(start), 2), torch.ones(n, 2)
        tasks.append(Task(str(k), x, start, x_test, y, classes if classes and classes > 2 else None))
        shape = (n, classes) if classes and classes > 2 else (n,)
        predictions.append(rng.integers(-3, 4, size=shape) / 2.0)  # with ties, and zeros
    return tasks, predictions


def measured(tasks, predictions, loss, **own):
    problem = Problem(tasks, loss, Ridge(1.0), measures=own)
    return problem, problem.measure("test", torch.from_numpy(np.concatenate(predictions)).float())


draw = {
    "counts": st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any),
    "seed": st.integers(0, 2**32 - 1),
}


@given(**draw)
def test_two_classes(counts, seed):
    tasks, predictions = users_with(counts, 2, seed)
    _, got = measured(tasks, predictions, Hinge())
    for k, (task, p) in enumerate(zip(tasks, predictions, strict=True)):
        y = task.y_test.numpy()
        if not len(y):
            assert all(values[k].isnan() for values in got.values())
            continue
        signs = np.where(p > 0, 1, np.where(p < 0, -1, -y))  # a prediction of 0 is wrong
        assert got["test_error"][k] == pytest.approx(1 - metrics.accuracy_score(y, signs))
        recalls = [np.mean(signs[y == c] == c) for c in set(y)]
        assert got["test_balanced_error"][k] == pytest.approx(1 - np.mean(recalls))
        if len(set(y)) == 2:
            assert got["test_auc"][k] == pytest.approx(metrics.roc_auc_score(y, p))
        else:
            assert got["test_auc"][k].isnan()


@given(**draw)
def test_two_scores_have_the_auc_of_their_difference(counts, seed):
    tasks, predictions = users_with(counts, 2, seed)
    signs = Problem(tasks, Hinge(), Ridge(1.0))
    pairs = np.stack([-np.concatenate(predictions), np.concatenate(predictions)], axis=1) / 2
    numbered = [
        Task(task.name, task.x_train, task.y_train > 0, task.x_test, task.y_test > 0, classes=2) for task in tasks
    ]
    for loss in (CrossEntropy(), TorchLoss(torch.nn.CrossEntropyLoss())):
        rows = np.append(pairs, np.zeros((len(pairs), 1)), 1) if isinstance(loss, TorchLoss) else pairs  # and the loss
        got = Problem(numbered, loss, Ridge(1.0)).measure("test", torch.from_numpy(rows).float())["test_auc"]
        want = signs.measure("test", torch.from_numpy(np.concatenate(predictions)).float())["test_auc"]
        assert torch.equal(got.nan_to_num(-1), want.nan_to_num(-1))


@pytest.mark.parametrize("loss", [Hinge, CrossEntropy])
@given(**draw)
def test_several_classes(loss, counts, seed):
    tasks, predictions = users_with(counts, 4, seed)
    _, got = measured(tasks, predictions, loss())
    assert set(got) == {"test_error", "test_balanced_error"}
    for k, (task, p) in enumerate(zip(tasks, predictions, strict=True)):
        if len(p):
            with warnings.catch_warnings(action="ignore"):  # of classes that are only predicted
                balanced = metrics.balanced_accuracy_score(task.y_test, p.argmax(1))
            assert got["test_balanced_error"][k] == pytest.approx(1 - balanced)


@given(values=st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_summaries(values, seed):
    counts = np.random.default_rng(seed).integers(0, 5, size=len(values))
    for name, worst in (("train_error", np.nanmax), ("test_my_loss", np.nanmax), ("test_auc", np.nanmin)):
        got = summarize(name, torch.tensor(values), torch.from_numpy(counts))
        kept = (counts > 0) & ~np.isnan(values)
        own, rows = np.float32(values)[kept].astype(float), counts[kept]
        expected = [math.nan] * 4
        if len(own):
            expected = [np.mean(own), np.average(own, weights=rows), np.median(own), worst(own)]
        assert [*got.values()][:4] == pytest.approx(expected, nan_ok=True)
        assert [*got][:4] == [name + end for end in ("", "_weighted", "_median", "_worst")]
        assert got.get(f"{name}_users", (counts > 0).sum()) == len(own)


@given(**draw)
def test_own_measures_get_targets_before_centring(counts, seed):
    tasks, predictions = users_with(counts, None, seed)

    def mean_of_targets(p, y):
        return y.sum() + 100 * p.sum()

    _, got = measured(tasks, predictions, Squared(), mine=mean_of_targets)
    for k, p in enumerate(predictions):
        if len(p):
            assert got["test_mine"][k] == pytest.approx(float(tasks[k].y_test.sum()) + 100 * p.sum(), abs=1e-4)


def test_own_measures_that_cannot_be_used():
    tasks, predictions = users_with([3], 2, 0)
    taken = [({name: max}, name) for name in ("auc", "auc_users", "error_worst", "r2", "my-own")]
    for own, message in (*taken, ({"mine": lambda p: 1}, "mine")):
        with pytest.raises(ConfigError, match=message):
            measured(tasks, predictions, Hinge(), **own)


def recall(predictions, y, threshold=0.0):
    return float((predictions[y > 0] > threshold).mean())


def test_measures_of_a_run(configure, tmp_path):
    """Own and usual measures in all files, from the models that were saved."""
    cfg = configure("K=4", "H=2", "r=2", "rounds=3", "dataset.rows_per_user=40", "logger=none")
    cfg.measures = {"recall": {"_target_": f"{__name__}.recall", "threshold": 0.1}}
    train(cfg)
    models, (tasks, _) = load_run(tmp_path), build_tasks(cfg)
    with (tmp_path / "users.csv").open() as file:
        users = list(csv.DictReader(file))
    with (tmp_path / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name, measure in {
        "recall": lambda y, p: np.mean(p[y > 0] > 0.1),
        "auc": metrics.roc_auc_score,
        "balanced_error": lambda y, p: 1 - metrics.balanced_accuracy_score(y, np.sign(p)),
    }.items():
        expected = [measure(t.y_test.numpy(), models.scores(t.name, t.x_test.numpy())) for t in tasks]
        assert [float(user[f"test_{name}"]) for user in users] == pytest.approx(expected)
        assert float(last[f"test_{name}"]) == summary[f"test_{name}"] == pytest.approx(np.mean(expected))
