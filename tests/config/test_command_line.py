"""The command line: exit statuses, errors in one line, and what a sweep does with failed jobs."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from omegaconf import DictConfig
from omegaconf.errors import InterpolationKeyError

from hmtl.config.build import check
from hmtl.config.command_line import ERROR, main
from hmtl.errors import ConfigError, DataError, Interrupted
from hmtl.reporting.run_comparison import as_lines, comparison, find_runs
from hmtl.train import train
from hmtl.training.folder import run_name
from hmtl.training.trainer import Trainer

Run = Callable[..., tuple[int, str]]
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`run(task, "K=4", ...)` returns the exit status of the command and its stderr."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it; so it is restored afterwards

    def run(task: Callable[[DictConfig], None], *arguments: str, config: str = "config") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["hmtl", f"hydra.run.dir={tmp_path}", *arguments])
        with pytest.raises(SystemExit) as left:
            main(task, config)
        return left.value.code, capsys.readouterr().err

    return run


def raises(error: BaseException) -> Callable[[DictConfig], None]:
    def task(cfg: DictConfig) -> None:
        raise error

    return task


def test_the_task_gets_the_composed_configuration(run: Run) -> None:
    seen: list[DictConfig] = []
    assert run(seen.append, "K=7", "topology=any_r") == (0, "")
    assert (seen[0].K, seen[0].topology.K, seen[0].H) == (7, 7, 5)
    assert run(seen.append, "format=json", config="plan") == (0, "")
    assert seen[1].format == "json"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DataError("no data.\nFetch some."), 2, "error: no data. Fetch some.\n"),
        slow(InterpolationKeyError("no key 'lamda'"), 2, "error: no key 'lamda'\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: /x: Permission denied."),
        slow(MemoryError("1 PB"), 2, "error: "),
        (Interrupted(signal.SIGTERM), 128 + signal.SIGTERM, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_is_one_line_and_a_status(run: Run, error: BaseException, status: int, message: str) -> None:
    code, stderr = run(raises(error))
    assert code == status
    assert stderr.startswith(message)
    assert stderr.count("\n") == bool(message)


def test_a_defect_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["hmtl", f"hydra.run.dir={tmp_path}"])
    for defect in (ValueError("shape"), ZeroDivisionError("oh")):
        with pytest.raises(type(defect), match=str(defect)):
            main(raises(defect), "config")


@pytest.mark.parametrize(
    "override",
    [
        *("loss=null", "rouns=3", "topology=ring", "K=abc", "rounds=ten"),
        *(slow(each) for each in ("topology.q=1", "topology=[any_r,ring]", "K==3", "lam=null")),
    ],
)
def test_what_hydra_refuses_is_one_line(run: Run, override: str) -> None:
    code, stderr = run(raises(AssertionError("the task was run")), override)
    assert code == 2
    assert stderr.startswith("error: ")
    assert override.split("=")[0] in stderr or override == "loss=null"
    assert "hydra.run.dir" not in stderr, "it is no file that cannot be written"
    assert ("this is not a whole number" in stderr) == override.endswith(("abc", "ten"))
    assert stderr.count("\n") == 1


def test_a_setting_that_is_added_by_mistake_suggests_a_similar_one(run: Run) -> None:
    for added, similar in (("+rouns=3", "rounds"), ("+solver.pases=3", "solver.passes")):
        assert similar in run(check, added)[1]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("partition.alpha=0.1",), ("partition.alpha",)),
        slow(("+partition.alpha=0.1",), ("partition",)),
        slow(("logger=none", "logger.console.x=1"), ("logger.console.x",)),
        (("loss._target_=sys.exit",), ("loss._target_=sys.exit",)),
        (("algorithm=mocha", "loss=cross_entropy"), ("CrossEntropy",)),
    ],
)
def test_what_no_run_can_use_is_found_before_data_are_read(
    run: Run, words: tuple[str, ...], named: tuple[str, ...]
) -> None:
    code, stderr = run(check, *words)
    assert (code, stderr.count("\n")) == (2, 1)
    assert all(name in stderr for name in named)


def test_a_part_that_is_chosen_has_settings(run: Run) -> None:
    assert run(check, "partition=dirichlet", "partition.alpha=0.1") == (0, "")


@pytest.mark.slow
def test_only_jobs_of_this_sweep_have_failed(run: Run, tmp_path: Path) -> None:
    """Not those of an earlier one in the same folder, whose errors are kept; a job that is a number is called one."""

    def task(cfg: DictConfig) -> None:
        if cfg.seed in unlucky:
            raise ConfigError("unlucky.")

    def sweep(*words: str) -> tuple[int, str]:
        with redirect_stdout(StringIO()) as out:
            code, _ = run(task, *words, f"hydra.sweep.dir={tmp_path}/sweep", "logger=none", "-m")
        return code, out.getvalue()

    unlucky = {1, 4}
    code, said = sweep("seed=0,1")
    assert code == 2
    assert "seed=1" in said.splitlines()[-1]
    assert sweep("seed=2,3")[0] == 0
    code, said = sweep("seed=3,4")
    assert code == 2
    assert "seed=1" not in said
    assert "seed=4" in said.splitlines()[-1]
    assert sorted(path.parent.name for path in tmp_path.rglob(ERROR)) == ["seed=1", "seed=4"]
    code, said = sweep("seed=1,3", "dataset=mnist", "dataset.path=a/b,c")
    assert (code, "number 0; number 1." in said.splitlines()[-1]) == (2, True)


def test_a_failed_job_does_not_stop_a_sweep(run: Run, tmp_path: Path) -> None:
    seen: list[int] = []

    def task(cfg: DictConfig) -> None:
        seen.append(cfg.seed)
        if cfg.seed == 1:
            raise ConfigError("seed=1 is unlucky.")

    code, stderr = run(task, "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep", "--multirun")
    assert (code, seen, stderr) == (2, [1, 2], "error: Job seed=1: seed=1 is unlucky.\n")
    assert [path.parent.name for path in tmp_path.rglob(ERROR)] == ["seed=1"]


@pytest.mark.slow
def test_each_job_of_a_sweep_has_the_settings_of_its_own_parts(run: Run, tmp_path: Path) -> None:
    """Values arrive as they are typed, also those that only the swept choice can have."""
    seen: list[DictConfig] = []
    words = ["algorithm=ditto,fedavg", "algorithm.model._target_=hmtl.mtl.cnn", "+algorithm.model.shape=[1,28,28]"]
    values = ["dataset.class_weight=null", "~logger.tensorboard", "+measures.f._target_=math.fsum"]
    values += ["seed=3,5", "lam=${K}"]
    assert run(seen.append, *words, *values, f"hydra.sweep.dir={tmp_path}/sweep", "-m") == (0, "")
    made = [(cfg.algorithm._target_, cfg.seed) for cfg in seen]
    assert made == [(f"hmtl.mtl.{name}", seed) for name in ("Ditto", "FedAvg") for seed in (3, 5)]
    for cfg in seen:
        assert (cfg.algorithm.model._target_, cfg.algorithm.model.shape) == ("hmtl.mtl.cnn", [1, 28, 28])
        assert (cfg.dataset.class_weight, cfg.lam, [*cfg.logger], [*cfg.measures]) == (None, 20, ["console"], ["f"])
    names = [f"algorithm={name},seed={seed}" for name in ("ditto", "fedavg") for seed in (3, 5)]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == names
    assert run(seen.append, f"resume={tmp_path}/sweep/{names[0]}") == (0, "")
    assert seen[-1].resume == f"{tmp_path}/sweep/{names[0]}"


@pytest.mark.parametrize(
    ("words", "job", "says"),
    [
        (("algorithm=fedavg,mocha", "solver.epochs=1", "seed=0,1"), "algorithm=mocha,seed=0", "solver.epochs"),
        (("solver.passes=3,0",), "solver.passes=0", "passes"),
        (("seed=0,1", "solver.passes=[1"), "", "[1"),
        slow(("algorithm=mocha,fedavg", "regularizer=graph"), "algorithm=fedavg", "regularizer"),
        slow(("algorithm=mocha,fedavg", "loss=cross_entropy"), "algorithm=mocha", "CrossEntropy"),
        slow(("algorithm=fedavg", "solver=sgd,sdca"), "solver=sdca", "SDCA"),
        slow(("seed=0,1", "partition.alpha=0.1"), "seed=0", "partition.alpha"),
        slow(("loss._target_=hmtl.mtl.Hinge,sys.exit",), "loss._target_=sys.exit", "sys.exit"),
    ],
)
@pytest.mark.slow
def test_a_sweep_with_a_wrong_job_does_not_begin(
    run: Run, tmp_path: Path, words: tuple[str, ...], job: str, says: str
) -> None:
    task = raises(AssertionError("a job was run"))
    code, stderr = run(task, *words, f"hydra.sweep.dir={tmp_path}/sweep", "-m")
    assert (code, stderr.count("\n")) == (2, 1)
    assert f"Job {job}: " in stderr or not job
    assert says in stderr


@pytest.mark.parametrize(
    ("changed", "words", "says"),
    [
        ({"a": ["1", "x", "2", "3"]}, (), "dataset.categories"),
        slow({"a": [1.0, float("nan"), 2.0, 3.0]}, (), "dataset.missing"),
        slow({}, ("dataset.task=user",), "user"),
        slow({}, ("dataset.path=nowhere.csv",), "nowhere.csv"),
        slow({"y": ["A", "B", "C", "A"]}, ("loss=logistic,squared",), "loss=squared"),
    ],
)
def test_tables_are_read_once_before_a_sweep_begins(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, list[Any]], words: Any, says: str
) -> None:
    table = {"who": ["u", "u", "v", "v"], "a": [1.0, 2.0, 3.0, 4.0], "y": [0, 1, 1, 0]}
    pd.DataFrame(table | changed).to_csv(tmp_path / "table.csv", index=False)
    monkeypatch.setattr(pd, "read_csv", read := Mock(wraps=pd.read_csv))
    data = ["dataset=files", f"dataset.path={tmp_path}/table.csv", "dataset.task=who", "topology=any_r", *words]
    sweep = ("algorithm=fedavg,ditto", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep", "-m")
    code, stderr = run(raises(AssertionError("a job was run")), *data, *sweep)
    assert (code, stderr.count("\n")) == (2, 1)
    assert says in stderr
    pd.DataFrame(table).to_csv(tmp_path / "table.csv", index=False)
    read.reset_mock()
    assert run(lambda cfg: None, *data[:4], *sweep) == (0, "")
    assert sum("nrows" in call.kwargs for call in read.call_args_list) == 1, "the header of the table"


@pytest.mark.slow
def test_jobs_whose_names_no_folder_can_have_are_numbered(run: Run, tmp_path: Path) -> None:
    words = ("logger=none", "dataset.path=a/b,c", f"hydra.sweep.dir={tmp_path}/sweep")
    assert run(lambda cfg: None, "dataset=mnist", *words, "-m") == (0, "")
    folders = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [path.name for path in folders] == ["0", "1"]
    names = [f"mocha,dataset.path={path}" for path in ("a/b", "c")]
    assert [run_name(path) for path in folders] == names, "as TensorBoard names them"


@pytest.mark.slow
def test_a_reader_that_has_closed_the_output(tmp_path: Path) -> None:
    code = "from hmtl.config.command_line import main; main(lambda cfg: print('x' * 10**6), 'config')"
    pipe, command = subprocess.PIPE, [sys.executable, "-c", code, f"hydra.run.dir={tmp_path}"]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as writer:
        assert writer.stdout is not None
        writer.stdout.close()
        _, stderr = writer.communicate()
    assert (writer.returncode, stderr) == (128 + signal.SIGPIPE, b"")


def test_warnings_of_libraries_are_shown_and_their_information_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logging.getLogger("matplotlib").setLevel(logging.NOTSET)

    def task(cfg: DictConfig) -> None:
        log = logging.getLogger("matplotlib.font_manager")
        log.info("generated new fontManager")
        log.warning("there are none")

    monkeypatch.setattr(sys, "argv", ["hmtl", f"hydra.run.dir={tmp_path}"])
    with pytest.raises(SystemExit):
        main(task, "config")
    shown = "".join(capsys.readouterr())
    assert "fontManager" not in shown
    assert "there are none" in shown


SWEEP_OF_FOUR = ["-m", "seed=0,1,2,3", "K=4", "H=3", "r=2", "topology=any_r"]
SWEEP_OF_FOUR += ["rounds=6", "checkpoint_every=2", "baseline=null", "logger=none"]


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_when_the_same_command_is_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is stopped in the fourth round of its third job; its table is then that of an undisturbed sweep."""
    played, play_round = list[Path](), Trainer._round

    def stop(trainer: Trainer, number: int) -> dict[str, float]:
        played.append(trainer.settings.folder)
        if len(played) == 2 * 6 + 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return play_round(trainer, number)

    def sweep(*words: str) -> tuple[int, str]:
        played.clear()
        monkeypatch.setattr(sys, "argv", ["hmtl", *SWEEP_OF_FOUR, *words])
        with pytest.raises(SystemExit) as left:
            main(train, "config", resumable=True)
        return left.value.code, capsys.readouterr().out

    def rounds_of_jobs() -> dict[str, int]:
        return {name: sum(folder.name == name for folder in played) for name in sorted({path.name for path in played})}

    def numbers(folder: Path) -> pd.DataFrame:
        table = comparison(as_lines(find_runs([folder]), over_seeds=False))
        return table[["run", "rounds", "average", "worst", "Mbit", "communication_s", "communication_saved"]]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    whole = {f"seed={n}": 6 for n in range(4)}
    monkeypatch.setattr(Trainer, "_round", stop)
    status, said = sweep()
    assert (status, "give the same command again" in said) == (128 + signal.SIGTERM, True)
    assert rounds_of_jobs() == {"seed=0": 6, "seed=1": 6, "seed=2": 4}
    status, said = sweep()
    assert (status, said.count("finished before")) == (0, 2)
    assert rounds_of_jobs() == {"seed=2": 2, "seed=3": 6}
    (stopped,) = tmp_path.glob("multirun/*/*")
    monkeypatch.setattr(Trainer, "_round", play_round)
    assert sweep("hydra.sweep.dir=undisturbed")[0] == 0
    pd.testing.assert_frame_equal(numbers(stopped), numbers(tmp_path / "undisturbed"))
    monkeypatch.setattr(Trainer, "_round", stop)
    assert sweep("hydra.sweep.dir=undisturbed", "rounds=7")[0] == 0  # jobs go on if they get more rounds
    assert rounds_of_jobs() == dict.fromkeys(whole, 1)
    assert sweep("hydra.sweep.dir=undisturbed", "rounds=7", "lam=0.1")[0] != 0  # others begin anew
    assert rounds_of_jobs()["seed=0"] == 7
