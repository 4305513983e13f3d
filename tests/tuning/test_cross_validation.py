"""`hmtl.tune`: honest folds, errors that independent solvers confirm, a result that training takes, what is kept."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import here
from omegaconf import DictConfig
from problems import split_task
from sklearn.svm import LinearSVC

from hmtl.config.build import build_algorithm, build_problem, build_tasks, compose
from hmtl.config.schema import flat
from hmtl.data import Preprocessing, prepare
from hmtl.data.preprocessing import Scope
from hmtl.errors import CheckpointError, ConfigError, DataError, HmtlError
from hmtl.train import train
from hmtl.training.checkpoint import load_checkpoint
from hmtl.tune import tune
from hmtl.tuning import cross_validation
from hmtl.tuning.cross_validation import _folds, _over_folds, cross_validate
from hmtl.tuning.grid import with_values

Configure = Callable[..., DictConfig]
SMALL = ("K=5", "dataset.rows_per_user=60", "tune.folds=3", "logger=none")
GRID = "tune.grid=[0.03,0.3]"
SVM: dict[str, Any] = {"loss": "hinge", "max_iter": 10**5}


def test_folds_part_the_training_rows(configure: Configure) -> None:
    tasks, _ = build_tasks(configure(*SMALL))
    folds = list(_folds(tasks, 3, seed=0))
    assert not torch.equal(next(_folds(tasks, 3, seed=1))[0].x_test, folds[0][0].x_test)
    for k, task in enumerate(tasks):
        rows = {row.numpy().tobytes() for row in task.x_train}
        parts = [{row.numpy().tobytes() for row in fold[k].x_test} for fold in folds]
        assert set().union(*parts) == rows
        assert sum(map(len, parts)) == len(rows)
        positive = [int((fold[k].y_test > 0).sum()) for fold in folds]
        assert max(positive) - min(positive) <= 1, "not by class"
        for fold in folds:
            kept = {row.numpy().tobytes() for row in fold[k].x_train}
            assert not kept & {row.numpy().tobytes() for row in fold[k].x_test}
            assert len(fold[k].x_train) + len(fold[k].x_test) == len(task.x_train)


@pytest.mark.parametrize("scope", ["task", "all"])
@pytest.mark.parametrize("test_fraction", [0.25, 0])
def test_folds_are_preprocessed_by_what_they_train_on(scope: Scope, test_fraction: float) -> None:
    rng = np.random.default_rng(0)
    plain = [
        split_task(str(k), rng.normal(k, 3, (40, 3)) ** 2, rng.normal(size=40), test_fraction, np.random.default_rng(1))
        for k in range(3)
    ]
    scaled = prepare(plain, Preprocessing(intercept=True, standardize=scope, center=scope))
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
    cfg = configure(*SMALL, GRID, "regularizer=ridge", "algorithm.omega_every=0", "rounds=10")
    tasks, _ = build_tasks(cfg)
    result = cross_validate(cfg, tasks)
    for point in result["points"]:
        for fold, error in zip(_folds(tasks, 3, seed=0), point["errors"], strict=True):
            expected = [
                1
                - LinearSVC(C=1 / (point["values"]["lam"] * len(t.y_train)), fit_intercept=False, **SVM)
                .fit(t.x_train.numpy(), t.y_train.numpy())
                .score(t.x_test.numpy(), t.y_test.numpy())
                for t in fold
            ]
            assert error == pytest.approx(np.mean(expected), abs=0.02)
        assert point["error"] == pytest.approx(np.mean(point["errors"]))
        assert point["sd"] == pytest.approx(np.std(point["errors"], ddof=1))
        assert point["relative_gap"] < 1e-3
        assert point["doubt"] == ""


@pytest.mark.parametrize(
    ("words", "least"),
    [
        ("algorithm.omega_every=3 algorithm.rounds=null lam=1e-4 rounds=6", "joint_primal"),
        ("algorithm=fedavg solver.step=1 validation_fraction=0.2 rounds=6 evaluate_every=2", "validation_error"),
    ],
    ids=["learned Ω", "validation rows"],
)
def test_the_models_that_a_run_would_hand_out_are_judged(configure: Configure, words: str, least: str) -> None:
    """Of the rounds that are evaluated, it is the one with the least objective at the best Ω, or validation error."""
    cfg = configure(*SMALL, *words.split())
    cfg.tune.grid = {"solver.passes": [2]} if least == "joint_primal" else {"solver.epochs": [1]}
    tasks, _ = build_tasks(cfg)
    (point,), last = cross_validate(cfg, tasks)["points"], []
    for fold, error in zip(_folds(tasks, 3, seed=0), point["errors"], strict=True):
        algorithm = build_algorithm(with_values(cfg, point["values"]), build_problem(cfg, fold))
        rows = []
        for round in range(cfg.rounds):
            algorithm.step(round)
            rows.append(algorithm.metrics())
        evaluated = [*rows[:: cfg.evaluate_every], rows[-1]]
        assert error == min(evaluated, key=lambda row: row[least])["test_error"]
        last.append(rows[-1]["test_error"])
    assert point["errors"] != last


def test_of_several_folds_the_one_that_has_converged_least_counts() -> None:
    figures = [{"error": 0.2, "change": change, "doubt": f"it changed by {change}"} for change in (0.3, 0.5, 0.4)]
    point = _over_folds({"lam": 0.1}, figures)
    assert (point["change"], point["doubt"]) == (0.5, "it changed by 0.5")


def test_of_equally_good_ones_the_largest(configure: Configure) -> None:
    grid = "tune.grid={lam:[1000,100],solver.passes:[1,2]}"  # so strong that the scale of models is all it changes
    cfg = configure(*SMALL, "regularizer=ridge", "algorithm.omega_every=0", "lam=1", "rounds=2", grid)
    result = cross_validate(cfg, build_tasks(cfg)[0])
    assert len({point["error"] for point in result["points"]}) == 1
    assert result["best"] == {"lam": 1000, "solver.passes": 2}


def warnings(cfg: DictConfig) -> list[str]:
    found: list[str] = cross_validate(cfg, build_tasks(cfg)[0])["warnings"]
    return found


@pytest.mark.parametrize(
    ("learner", "doubt"),
    [
        ("solver.passes=0.1", "relative gap"),
        pytest.param("solver.passes=0.1 algorithm.omega_every=0", "relative gap", marks=pytest.mark.slow),
        ("regularizer=clustered algorithm.omega_every=9 rounds=5", "Ω still changes"),
        ("algorithm=fedu", "objective changed by"),
        ("algorithm=fedu solver.step=1e30", "it diverges"),
    ],
)
def test_warns_of_what_has_not_converged(configure: Configure, learner: str, doubt: str) -> None:
    cfg = configure(*SMALL, GRID, "rounds=1", *learner.split())
    told = warnings(cfg)
    assert told[0].startswith(f"not converged: lam=0.03 ({doubt}")
    assert f". Try rounds={2 * cfg.rounds} or solver.{'epochs=' if 'fedu' in learner else 'passes='}" in told[0]
    assert ("a smaller solver.step" in told[0]) == ("fedu" in learner)


@pytest.mark.slow
def test_does_not_warn_of_what_has_converged(configure: Configure) -> None:
    cfg = configure(*SMALL, "tune.grid=[1e-3,1e-2,0.1,1]", "rounds=40")
    assert warnings(cfg) == []


def test_warns_of_neighbors_only(configure: Configure) -> None:
    """With two settings, the corner between two neighbors of the best is no neighbor itself."""
    grid = "tune.grid={lam:[0.03,0.3],solver.passes:[0.001,10]}"
    cfg = configure(*SMALL, "algorithm.omega_every=0", "regularizer=ridge", "rounds=5", grid)
    result = cross_validate(cfg, build_tasks(cfg)[0])
    doubtful = [point["values"] for point in result["points"] if point["doubt"]]
    assert doubtful == [{"lam": lam, "solver.passes": 0.001} for lam in (0.03, 0.3)]
    best, warning = result["best"], result["warnings"][0]
    assert best["solver.passes"] == 10
    assert warning.startswith(f"not converged: lam={best['lam']:g}, solver.passes=0.001 (relative gap ")
    assert warning.endswith("). Try rounds=10.")


@pytest.mark.parametrize(
    ("grid", "where"),
    [("[0.1,1e4]", "0.1 is the smallest"), pytest.param("[1e-9,0.03]", "0.03 is the largest", marks=pytest.mark.slow)],
)
def test_warns_at_the_edge(configure: Configure, grid: str, where: str) -> None:
    told = warnings(configure(*SMALL, f"tune.grid={grid}", "rounds=5"))
    assert told[-1] == f"lam={where} value in the grid; a better one may lie beyond."


def test_a_grid_of_one_value_has_no_edge(configure: Configure) -> None:
    told = warnings(configure(*SMALL, "tune.grid=[1]", "rounds=2"))
    assert not any("edge" in warning or "the grid" in warning for warning in told)


def test_all_settings_are_told(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tune(configure(*SMALL, "regularizer=mean", "tune.grid={lam:[0.03,0.3],regularizer.lam2:[0.1]}", "rounds=2"))
    out = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "tune.json").read_text())
    assert [line for line in out if line.startswith("warning: ")] == [f"warning: {w}" for w in result["warnings"]]
    assert result["warnings"]
    table = [line for line in out if not line.startswith(("warning: ", "Best: "))]
    assert max(map(len, table)) <= 80
    for name in ("lam", "regularizer.lam2"):
        assert any(name in line for line in table)
    assert set(result["best"]) == {"lam", "regularizer.lam2"}


@pytest.mark.slow
def test_training_takes_the_line_that_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a setting of the grid is one that the part's file lacks."""
    own = tmp_path / "my own conf" / "regularizer"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("_target_: hmtl.mtl.Mean\nlam: ${lam}\n")
    said = (*SMALL, "tune.grid={lam:[0.03,0.3],regularizer.lam2:[null,0.1]}", "rounds=2", "r=2", "topology=any_r")
    asked = ("--config-dir", "my own conf", *said, "regularizer=mine")
    monkeypatch.chdir(tmp_path)
    tuned = here("hmtl.tune", *asked, f"hydra.run.dir={tmp_path}")
    assert tuned.returncode == 0, tuned.stderr
    best = json.loads((tmp_path / "tune.json").read_text())["best"]
    told = shlex.split(tuned.stdout.splitlines()[-1])
    assert here("hmtl.train", *asked, *told, f"hydra.run.dir={tmp_path / 'train'}").returncode == 0
    expected = with_values(compose(*said, "regularizer=mean", "output_dir=x"), best)
    trained = load_checkpoint(tmp_path / "train")["identity"]
    assert trained == flat(expected, set(flat(expected)) - set(trained))


def test_a_stopped_one_continues_and_trains_nothing_again(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, calls, train_one = (*SMALL, GRID, "tune.folds=2", "rounds=1"), list[int](), cross_validation._train
    whole, stopped, resumed = folders = [tmp_path / name for name in ("whole", "stopped", "resumed")]
    for folder in folders:
        folder.mkdir()

    def interrupted_once(*given: Any) -> dict[str, Any]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train_one(*given)

    tune(configure(*words, f"output_dir={whole}"))
    monkeypatch.setattr(cross_validation, "_train", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        tune(configure(*words, f"output_dir={stopped}"))
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"after 2 of 4 trainings. To continue: resume={stopped}")
    assert not (stopped / "tune.json").exists()
    tune(configure(*words, f"resume={stopped}", f"output_dir={resumed}"))
    assert len(calls) == 5
    assert (resumed / "tune.json").read_bytes() == (whole / "tune.json").read_bytes()
    with pytest.raises(CheckpointError, match="rounds was 1, is 6"):
        tune(configure(*words, "rounds=6", f"resume={resumed}"))
    with pytest.raises(CheckpointError, match=r"tune\.folds was 2, is 4"):
        tune(configure(*words, "tune.folds=4", f"resume={resumed}"))


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("tune.grid=[]", ConfigError, "is empty"),
        ("tune.grid={lam:[1],regularizer.floor:[]}", ConfigError, "is empty"),
        ("tune.grid={lam:1}", ConfigError, "lam=1 is not a list"),
        ("tune.grid={lan:[1]}", ConfigError, "lan"),
        ("tune.grid={seed:[1]}", ConfigError, "seed cannot be tuned"),
        ("tune.grid={dataset.seed:[1]}", ConfigError, "dataset.seed cannot be tuned"),
        ("tune.grid={regularizer.lam3:[1]}", ConfigError, "regularizer.lam3"),
        ("tune.folds=1", ConfigError, "tune.folds=1"),
        ("tune.grid=[0]", ConfigError, "lam=0"),
        ("tune.folds=50", DataError, "Lower tune.folds=50"),
        ("algorithm=fedavg", ConfigError, "lam has no effect"),
        ("algorithm=fedper tune.grid={regularizer.floor:[0.1]}", ConfigError, "regularizer.floor has no effect"),
    ],
)
def test_bad_input(configure: Configure, override: str, kind: type[Exception], message: str) -> None:
    cfg = configure(*SMALL, *override.split())
    tasks, _ = build_tasks(cfg)
    with pytest.raises(kind, match=message):
        cross_validate(cfg, tasks)


@pytest.mark.parametrize(
    "override", ["rounds=0", "scheme=best", "d=0.5", "reduction=max", "participation.relays=[[3,9]]", "resume=none"]
)
def test_what_training_refuses(configure: Configure, override: str) -> None:
    told = []
    for task in (train, tune):
        with pytest.raises(HmtlError) as refused:
            task(configure(*SMALL, "rounds=1", "tune.grid=[1]", override))
        told.append(str(refused.value))
    assert told[0] == told[1]
