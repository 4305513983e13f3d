"""`hmtl.tune`: honest folds, errors that an independent solver confirms, a result that training reads."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from sklearn.svm import LinearSVC

from hmtl.config import build_problem, build_tasks, compose
from hmtl.data import Preprocessing
from hmtl.data.preprocessing import Scope
from hmtl.data.tasks import split
from hmtl.errors import ConfigError, DataError
from hmtl.mtl import FedU, LocalSGD
from hmtl.tune import _folds, cross_validate, train_side_by_side, tune

Configure = Callable[..., DictConfig]
SMALL = ("K=10", "dataset.rows_per_user=60", "tune.folds=3", "tune.grid=[0.03,0.3]", "logger=none")


def test_folds_part_the_training_rows(configure: Configure) -> None:
    tasks, _ = build_tasks(configure(*SMALL))
    folds = list(_folds(tasks, 3, seed=0))
    assert not torch.equal(next(_folds(tasks, 3, seed=1))[0].x_test, folds[0][0].x_test)
    for k, task in enumerate(tasks):
        rows = {row.numpy().tobytes() for row in task.x_train}
        parts = [{row.numpy().tobytes() for row in fold[k].x_test} for fold in folds]
        assert set().union(*parts) == rows
        assert sum(map(len, parts)) == len(rows)
        for fold in folds:
            kept = {row.numpy().tobytes() for row in fold[k].x_train}
            assert not kept & {row.numpy().tobytes() for row in fold[k].x_test}
            assert len(fold[k].x_train) + len(fold[k].x_test) == len(task.x_train)


@pytest.mark.parametrize("scope", ["task", "all"])
@pytest.mark.parametrize("test_fraction", [0.25, 0])
def test_folds_are_preprocessed_by_what_they_train_on(scope: Scope, test_fraction: float) -> None:
    rng = np.random.default_rng(0)
    plain = [
        split(str(k), rng.normal(k, 3, (40, 3)) ** 2, rng.normal(size=40), test_fraction, np.random.default_rng(1))
        for k in range(3)
    ]
    scaled = Preprocessing(intercept=True, standardize=scope, center=scope)(plain)
    for raws, fold in zip(_folds(plain, 3, seed=0), _folds(scaled, 3, seed=0), strict=True):
        for raw, task in zip(raws, fold, strict=True):
            own = raws if scope == "all" else [raw]
            x, y = (torch.cat([getattr(r, name) for r in own]) for name in ("x_train", "y_train"))
            for part in ("train", "test"):
                expected = (getattr(raw, f"x_{part}") - x.mean(0)) / x.std(0, correction=0)
                found = getattr(task, f"x_{part}")
                torch.testing.assert_close(found[:, :3], expected)
                assert (found[:, 3] == 1).all()
                torch.testing.assert_close(getattr(task, f"y_{part}"), getattr(raw, f"y_{part}") - y.mean())


def test_errors_are_those_of_liblinear(configure: Configure) -> None:
    """Without coupling each fold and λ is an ordinary support vector machine."""
    cfg = configure(*SMALL, "regularizer=ridge", "algorithm.omega_every=0", "rounds=300")
    tasks, _ = build_tasks(cfg)
    result = cross_validate(cfg, tasks)
    for lam, errors in zip(result["grid"], result["errors"], strict=True):
        for fold, error in zip(_folds(tasks, 3, seed=0), errors, strict=True):
            expected = [
                1
                - LinearSVC(C=1 / (lam * len(t.y_train)), loss="hinge", fit_intercept=False, max_iter=10**5)
                .fit(t.x_train.numpy(), t.y_train.numpy())
                .score(t.x_test.numpy(), t.y_test.numpy())
                for t in fold
            ]
            assert error == pytest.approx(np.mean(expected), abs=0.02)
    assert max(result["relative_gap"]) < 1e-3
    least = min(np.mean(errors) for errors in result["errors"])
    assert result["best"] == max(
        lam for lam, errors in zip(result["grid"], result["errors"], strict=True) if np.mean(errors) == least
    )


def test_training_reads_the_result(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tune(configure(*SMALL, "rounds=5"))
    out = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in out if "--config-dir" not in line) <= 80
    result = json.loads((tmp_path / "tune.json").read_text())
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")
    cfg = compose(f"hydra.searchpath=[file://{tmp_path}]", "experiment=tuned", "output_dir=x")
    assert cfg.lam == result["best"]
    assert cfg.regularizer.lam == result["best"]


def test_same_seed_same_errors(configure: Configure) -> None:
    cfg = configure(*SMALL, "rounds=5")
    tasks, _ = build_tasks(cfg)
    assert cross_validate(cfg, tasks) == cross_validate(cfg, tasks)


def with_dropout(d: int, C: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(d, 16), torch.nn.Dropout(), torch.nn.Linear(16, C))


def test_models_side_by_side_draw_as_if_alone(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = configure(*SMALL, "algorithm=fedu")
    problem, W = build_problem(cfg, build_tasks(cfg)[0]), []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        members = [FedU(problem, LocalSGD(epochs=1), with_dropout, seed=seed) for seed in range(4)]
        train_side_by_side(members, 3)
        W.append(torch.stack([member.W for member in members]))
    assert torch.equal(*W)


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("tune.grid=[]", ConfigError, "at least one value"),
        ("tune.folds=1", ConfigError, "tune.folds=1"),
        ("tune.grid=[0]", ConfigError, "lam=0"),
        ("tune.folds=40", DataError, "Lower tune.folds=40"),
    ],
)
def test_bad_input(configure: Configure, override: str, kind: type[Exception], message: str) -> None:
    cfg = configure(*SMALL, override)
    tasks, _ = build_tasks(cfg)
    with pytest.raises(kind, match=message):
        cross_validate(cfg, tasks)
