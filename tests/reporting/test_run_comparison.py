"""Reports of runs and sweeps: numbers as the runs' own files have them, names that tell runs apart, a closing table."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import commands
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from hmtl.communication import TIERS
from hmtl.errors import ConfigError, DataError
from hmtl.report import report
from hmtl.reporting.console import Console
from hmtl.reporting.run_comparison import comparison_rows, comparison_table, find_runs, run_names
from hmtl.reporting.run_comparison_picture import comparison_picture
from hmtl.train import train

SMALL = ("K=6", "H=3", "rounds=3", "dataset.rows_per_user=20", "logger=none")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, commands.Done]:
    """Three jobs that end, and one in between that cannot begin."""
    folder = tmp_path_factory.mktemp("sweep")
    words = (*SMALL, f"hydra.sweep.dir={folder}", "r=2,4", "algorithm=mocha,local")
    return folder, commands.here("hmtl.train", "-m", *words, "hydra.job.chdir=false")


def test_a_sweep_closes_with_one_table(sweep: tuple[Path, commands.Done]) -> None:
    folder, done = sweep
    assert done.returncode == 2, "as one of its jobs"
    assert done.stderr.count("error: r=4") == 2
    closing = done.stdout[done.stdout.index("2 runs; Mbit: between relays and server") :]
    assert "algorithm=mocha" in closing
    assert "algorithm=local" in closing
    assert f"python -m hmtl.report {folder}" in closing
    assert "Jobs that failed: 2, 3." in done.stdout


def test_a_folder_swept_again(sweep: tuple[Path, commands.Done], tmp_path: Path) -> None:
    """What failed in it before has not failed now."""
    (tmp_path / "1" / ".hydra").mkdir(parents=True)
    (tmp_path / "1" / ".hydra" / "failed").write_text("2")
    done = commands.here("hmtl.train", "-m", *SMALL, "r=2", f"hydra.sweep.dir={tmp_path}", "hydra.job.chdir=false")
    assert (done.returncode, "ended with an error" in done.stdout) == (0, False)


def test_what_is_reported_is_what_the_runs_say(sweep: tuple[Path, commands.Done]) -> None:
    folder, _ = sweep
    for line, run, job in zip(comparison_rows(runs := find_runs([folder])), runs, ("0", "1"), strict=True):
        summary = json.loads((folder / job / "summary.json").read_text())
        with (folder / job / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert run.folder == folder / job
        bits = sum(float(row["bits/relays_to_server"]) + float(row["bits/server_to_relays"]) for row in rows)
        assert line["Mbit"] == pytest.approx(bits / 1e6)
        assert line["error"] == summary["test_error"] == float(rows[-1]["test_error"])
        assert line["total_s"] == summary["time"]["total_s"]
        assert line["Mbit_uncoded"] == pytest.approx(3 * 12 * summary["V_bits"] / 1e6, rel=0.01)
        if job == "0":
            assert line["communication_saved"] == pytest.approx(2 / 6, abs=1e-3)
    assert run_names(runs) == ["algorithm=mocha", "algorithm=local"]
    assert run_names(runs[:1]) == [str(folder / "0")]


def test_the_table_fits_80_columns(
    sweep: tuple[Path, commands.Done], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a sweep over two settings: where there is no room, their words go on in the next line."""
    run, words = find_runs([sweep[0]])[0], ["regularizer=task_relationship", "regularizer=mean_regularized"]
    runs = [replace(run, overrides=(word, lam)) for word in words for lam in ("lam=0.01", "lam=0.1")]
    for columns in (200, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        Console().table(comparison_table(runs))
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= columns
        cells = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
        told = "".join(cells).replace(" ", "")
        assert told == "".join(f"{word}{lam}" for word in words for lam in ("lam=0.01", "lam=0.1"))
        assert (words[0] in printed) == (columns == 200)


def test_files_and_picture(
    sweep: tuple[Path, commands.Done], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = sweep
    report([str(folder / "0"), str(folder / "1"), f"output={tmp_path}/both"])
    out = capsys.readouterr().out
    assert "algorithm=local" in out
    with (tmp_path / "both.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["algorithm=mocha", "algorithm=local"]
    assert Image.open(tmp_path / "both.png").size[0] > 1000
    left, right = comparison_picture(find_runs([folder])).axes
    coded, dashed = (line for line in left.lines if len(line.get_xdata()) == 3)
    assert (dashed.get_xdata() / coded.get_xdata()).tolist() == pytest.approx([12 / 4] * 3, rel=0.01), (
        "K=6 each way, 4 in all"
    )
    assert coded.get_ydata().tolist() == dashed.get_ydata().tolist()
    assert "s]" in right.get_xlabel()
    assert sum(len(line.get_xdata()) == 3 for line in right.lines) == 4, "each of two runs, and the same uncoded"
    _, plain = (line for line in right.lines[:2])
    uncoded = find_runs([folder])[0].rounds["uncoded_s"].tolist()
    assert plain.get_xdata().tolist() == pytest.approx([sum(uncoded[: n + 1]) for n in range(3)])


@pytest.mark.parametrize(
    "span",
    [1.5, 40, 1e8, *(pytest.param(span, marks=pytest.mark.slow) for span in (8, 15, 70, 90, 110, 200, 900, 1e5))],
)
@pytest.mark.parametrize("first", [0.016, *(pytest.param(first, marks=pytest.mark.slow) for first in (0.3, 7000.0))])
def test_numbers_on_the_axes_are_there_and_apart(sweep: tuple[Path, commands.Done], span: float, first: float) -> None:
    (run,) = find_runs([sweep[0] / "0"])
    whole = [first, first * span]
    each = [whole[0], whole[1] - whole[0]]
    bits = pd.DataFrame({f"bits/{tier}": each for tier in TIERS}) * 5e5
    seconds = pd.DataFrame(dict.fromkeys(("compute_s", "communication_s", "uncoded_s"), each)) / 2
    vars(run)["rounds"] = pd.concat([bits, seconds], axis=1).assign(test_error=0.1, users=6)
    figure = comparison_picture([run])
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [*axes.xaxis.get_major_ticks(), *axes.xaxis.get_minor_ticks()]
        shown = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
        ends = sorted((box.x0, box.x1) for box in (label.get_window_extent() for label in shown))
        assert len(ends) >= 2
        assert all(end < start for (_, end), (start, _) in pairwise(ends))


def test_runs_that_send_nothing(sweep: tuple[Path, commands.Done], tmp_path: Path) -> None:
    report([str(sweep[0] / "1"), f"output={tmp_path}/local"])
    assert (tmp_path / "local.png").exists()
    (run,) = find_runs([sweep[0] / "1"])
    left, right = comparison_picture([run]).axes
    (level,) = (line for line in left.lines if len(line.get_xdata()))
    assert set(level.get_ydata()) == {run.summary.figures["test_error"]}
    assert len(right.lines[0].get_xdata()) == len(run.rounds)


def test_mistakes(sweep: tuple[Path, commands.Done], tmp_path: Path) -> None:
    folder, _ = sweep
    for words, says in (
        ([], "No folder was given"),
        ([str(tmp_path)], "has no finished run"),
        ([str(tmp_path / "none")], "has no finished run"),
    ):
        with pytest.raises(DataError, match=says):
            report(words)
    (tmp_path / "summary.json").write_text((folder / "0" / "summary.json").read_text())
    with pytest.raises(DataError, match=r"metrics\.csv cannot be read .*Leave this run out"):
        report([str(tmp_path)])
    header, *rows = (folder / "0" / "metrics.csv").read_text().splitlines()
    without_error = header.replace("test_error,", "other,")
    for lines in (
        [],
        [header],
        [header, *rows[:-1], rows[-1][:20]],  # the process was killed while it wrote
        [without_error, *rows],
        [header, rows[0].replace(",", ",x", 1)],
    ):
        (tmp_path / "metrics.csv").write_text("\n".join(lines))
        with pytest.raises(DataError, match=r"metrics\.csv cannot be read .*Leave this run out"):
            report([str(tmp_path)])
    summary = json.loads((folder / "0" / "summary.json").read_text())
    without_time = {name: value for name, value in summary.items() if name != "time"}
    for text in ("{", "{}", "[]", "3", "null", json.dumps(without_time), json.dumps({**summary, "time": {}})):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(DataError, match=r"summary\.json cannot be read .*Leave this run out"):
            report([str(tmp_path)])
    for output in ("", ".", "/"):
        with pytest.raises(ConfigError, match="not the name of a file"):
            report([str(folder), f"output={output}"])
    done = commands.here("hmtl.report", folder, f"output={tmp_path}/none/x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "output" in done.stderr


@pytest.mark.parametrize(
    "absent", ["participation.dropout=0.5", pytest.param("participation.relays=0.4", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("learner", [(), ("regularizer=mean", "regularizer.lam2=${lam}")], ids=["coded", "sums"])
def test_beside_each_run_is_what_it_would_send_uncoded(
    configure: Callable[..., DictConfig], tmp_path: Path, learner: tuple[str, ...], absent: str
) -> None:
    """Of users who are absent, nothing. A command line may have words that stand for others."""
    for name in ("coded", "uncoded"):
        words = [*SMALL, "r=2", *learner, absent, f"communicator={name}", "rounds=10", f"output_dir={tmp_path / name}"]
        (tmp_path / name / ".hydra").mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(words), tmp_path / name / ".hydra" / "overrides.yaml")
        train(configure(*words))
    coded, uncoded = comparison_rows(runs := find_runs([tmp_path, tmp_path / "coded"]))
    assert [run.folder.name for run in runs] == ["coded", "uncoded"]
    assert coded["Mbit"] < 0.9 * uncoded["Mbit"]
    assert runs[0].rounds["users"].min() < 6
    assert uncoded["Mbit_uncoded"] == pytest.approx(uncoded["Mbit"], rel=0.02)
    if "relays" not in absent:  # without which the coded run may have empty rounds, where the uncoded one has none
        assert coded["Mbit_uncoded"] == pytest.approx(uncoded["Mbit"], rel=0.02)
    assert run_names(runs) == ["communicator=coded", "communicator=uncoded"]


def test_runs_of_different_measures(
    sweep: tuple[Path, commands.Done], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors in one column or on one axis that are not alike are named; names are shown as they are."""
    run = find_runs([sweep[0]])[0]
    words = ("x=${lam}_a_b y=${K}", "_old")
    runs = [replace(run, overrides=(word,)) for word in words]
    summary = run.summary.model_copy(update={"error_measure": "mean squared error"})
    runs[1] = replace(runs[1], summary=summary)
    monkeypatch.setenv("COLUMNS", "120")
    Console().table(comparison_table(runs))
    printed = capsys.readouterr().out
    assert "mean squared error" in printed
    assert "share misclassified" in printed
    figure = comparison_picture(runs)
    figure.draw_without_rendering()
    label = figure.axes[0].yaxis.label
    assert label.get_text().count("error:") == 2
    assert label.get_window_extent().height < figure.bbox.height
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text.replace("\\$", "$").lstrip("\u200b") for text in shown] == [*words, "dashed: the same run uncoded"]


@pytest.mark.slow
def test_jobs_side_by_side(tmp_path: Path) -> None:
    """With a launcher whose jobs run in processes of their own, the sweep's status is still that of its worst job."""
    words = (*SMALL, f"hydra.sweep.dir={tmp_path}", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "r=4,2")
    done = subprocess.run(
        [sys.executable, "-m", "hmtl.train", "-m", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == 2
    assert "1 run; Mbit" in done.stdout
    assert (tmp_path / "1" / "models.npz").exists()
