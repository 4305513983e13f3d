"""A run hands out the models of the round with the least joint primal, also if it is stopped after a change of Ω."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.table import Table
from torch import Tensor

from hmtl.config.build import compose
from hmtl.errors import Interrupted
from hmtl.io.npz import load_arrays
from hmtl.mtl import Ridge
from hmtl.mtl.symmetric import Dense, Symmetric
from hmtl.reporting.console_logger import run_report
from hmtl.train import train
from hmtl.training.checkpoint import load_checkpoint
from hmtl.training.history import History
from hmtl.training.summary import Summary

RUN = ("K=8", "H=4", "r=2", "dataset.rows_per_user=40", "algorithm.omega_every=4", "logger=none", "checkpoint_every=3")


def start(folder: Path, *words: str) -> tuple[dict[str, Any], np.ndarray]:
    """Return the summary and the models of a run."""
    folder.mkdir(exist_ok=True)
    train(compose(*RUN, *words, f"output_dir={folder}"))
    return json.loads((folder / "summary.json").read_text()), load_arrays(folder / "models.npz")["W"]


def stop_after(folder: Path, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    append = History.append

    def append_and_stop(self: History, row: dict[str, float]) -> None:
        append(self, row)
        if len(self) == rounds:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(History, "append", append_and_stop)
        with pytest.raises(Interrupted):
            start(folder, "rounds=12")


@pytest.mark.parametrize("rounds", [4, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_stopped_after_a_change_and_resumed_to_end_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """The models are those before the change, after round 3, and so are all figures and the measures of users."""
    stopped = tmp_path / "stopped"
    stop_after(stopped, rounds, monkeypatch)
    columns = load_checkpoint(stopped)["history"]["columns"]
    assert len(columns["joint_primal"]) == rounds
    assert columns["joint_primal"][3] > 1.05 * columns["joint_primal"][2]  # Ω has changed
    summary, W = start(stopped, f"rounds={rounds}", f"resume={stopped}")
    before, want = start(tmp_path / "before", "rounds=3")
    assert summary["models_after"] == 3
    assert summary["rounds"] == rounds
    assert np.array_equal(W, want)
    assert np.array_equal(W, load_checkpoint(tmp_path / "before")["algorithm"]["users"]["W"])
    for name in ("joint_primal", "primal", "gap", "test_error", "test_error_worst", "worst_users"):
        assert summary[name] == before[name], name
    assert (stopped / "users.csv").read_bytes() == (tmp_path / "before" / "users.csv").read_bytes()
    remarks = [part for part in run_report(Summary.model_validate(summary)) if isinstance(part, str)]
    assert sum("after round 3" in remark for remark in remarks) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [4, 7])
def test_a_resumed_run_hands_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    stop_after(tmp_path / "stopped", rounds, monkeypatch)
    summary, W = start(tmp_path / "stopped", "rounds=12", f"resume={tmp_path / 'stopped'}")
    whole, want = start(tmp_path / "whole", "rounds=12")
    assert np.array_equal(W, want)
    assert {**summary, "time": 0} == {**whole, "time": 0}


def test_without_a_learned_omega_the_last_models_count(tmp_path: Path) -> None:
    summary, _ = start(tmp_path / "run", "rounds=3", "regularizer=mean")
    assert "models_after" not in summary


def saved_models(folder: Path) -> Any:
    """Return the models of all users, of which a file has each once."""
    arrays = load_arrays(folder / "models.npz")
    return arrays["W"][arrays["W_rows"]]


LEARNERS = {
    "ditto": ("algorithm=ditto", "lam=0.5", "solver.step=1"),
    "fedavg": ("algorithm=fedavg", "solver.step=1"),
    "mocha": ("algorithm.omega_every=4", "lam=1e-4"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "learner",
    ["ditto", "fedavg", "mocha"],
)
def test_the_models_with_the_least_validation_error(tmp_path: Path, learner: str) -> None:
    """They are those after that round, also if the run is stopped early, and resumed before."""
    words = (*RUN[:4], *RUN[5:], *LEARNERS[learner], "validation_fraction=0.25")
    for name, more in {
        "whole": ("rounds=15", "early_stopping=4"),
        "part": ("rounds=3", "early_stopping=4"),
        "resumed": ("rounds=15", "early_stopping=4", f"resume={tmp_path / 'part'}"),
    }.items():
        (tmp_path / name).mkdir()
        train(compose(*words, *more, f"output_dir={tmp_path / name}"))
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "resumed")]
    if learner != "mocha":  # whose last rounds before the first stop differ, as Ω stays fixed in them
        assert {**summaries[0], "time": 0} == {**summaries[1], "time": 0}
    history = np.genfromtxt(tmp_path / "whole" / "metrics.csv", delimiter=",", names=True)["validation_error"]
    best = int(history.argmin())
    assert summaries[0]["models_after"] == best + 1
    assert summaries[0]["validation_error"] == history[best]
    assert summaries[0]["rounds"] == len(history) == min(best + 5, 15)
    assert summaries[0].get("stopped_early", False) == (len(history) == best + 5)
    kept = load_checkpoint(tmp_path / "whole")["algorithm"]["users"]["kept"].numpy()
    W, resumed = (saved_models(tmp_path / name) for name in ("whole", "resumed"))
    assert np.array_equal(W, kept)
    if learner != "mocha":
        (tmp_path / "until").mkdir()
        train(compose(*words, f"rounds={best + 1}", f"output_dir={tmp_path / 'until'}"))
        users = load_checkpoint(tmp_path / "until")["algorithm"]["users"]  # after the last round, whatever was kept
        assert np.array_equal(W, users["v" if learner == "ditto" else "averaged"].numpy())
        assert np.array_equal(W, resumed)


class Worse(Ridge):
    """It learns an Ω whose penalty is a thousand times larger, but has the same models at first."""

    def coupling(self, Omega: Symmetric) -> Symmetric:
        return Dense(self.lam * Omega.dense())

    def update_omega(self, W: Tensor, Omega: Symmetric) -> Symmetric:
        return Dense(1000 * torch.eye(len(Omega), dtype=W.dtype) * len(Omega))


def test_an_omega_that_is_worse_is_named_and_so_is_the_round_of_the_models(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary, _ = start(tmp_path / "run", "rounds=9", "regularizer=ridge", f"regularizer._target_={__name__}.Worse")
    assert summary["models_after"] < 4
    assert [each.levelname for each in caplog.records if "Worse" in each.getMessage()] == ["WARNING"]
    table, *remarks = run_report(Summary.model_validate(summary))
    assert isinstance(table, Table)
    assert f"after round {summary['models_after']}" in str(table.title), "not only below it"
    assert "best Ω" not in " ".join(map(str, remarks)), "as nobody knows it"
