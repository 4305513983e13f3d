"""Reports of runs and sweeps: numbers as the runs' own files have them, averages over seeds, tables and pictures."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from omegaconf import OmegaConf
from PIL import Image

from hmtl.communication import TIERS
from hmtl.config.build import compose, conf_dir
from hmtl.errors import ConfigError, DataError
from hmtl.io.files import CHECKSUM_FILE, write_sums
from hmtl.report import report
from hmtl.reporting.console import Console
from hmtl.reporting.console_logger import OVER_USERS
from hmtl.reporting.run_comparison import (
    FinishedRun,
    Line,
    as_label,
    as_latex,
    as_lines,
    comparison,
    comparison_table,
    find_runs,
    readable,
    title,
)
from hmtl.reporting.run_comparison_picture import comparison_picture
from hmtl.train import train

SECONDS = ("compute_s", "communication_s", "uncoded_s", "uncoded_communication_s")
SMALL = ("K=6", "H=3", "rounds=3", "dataset.rows_per_user=20", "logger=none")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, commands.Done]:
    """Three jobs that end, and one in between that cannot begin."""
    folder = tmp_path_factory.mktemp("sweep")
    words = (*SMALL, f"hydra.sweep.dir={folder}", "r=2,4", "algorithm=mocha,local")
    return folder, commands.here("hmtl.train", "-m", *words, "hydra.job.chdir=false")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two learners with three seeds each."""
    folder = tmp_path_factory.mktemp("seeds")
    for regularizer, seed in product(("mean", "ridge"), range(3)):
        words = (f"regularizer={regularizer}", f"seed={seed}")
        play(folder / ",".join(words), *words, "r=2", "evaluate_every=2")
    return folder


def play(folder: Path, *words: str) -> None:
    """Train as a job of a sweep does, and leave its results, command line and configuration in `folder`."""
    cfg = compose(*SMALL, *words, "output_dir=.")
    cfg.output_dir = str(folder)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create([*words]), folder / ".hydra" / "overrides.yaml")
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    train(cfg)


def seal(folder: Path) -> None:
    """Write digests of what a test has changed in the folder of a run, as the run would have."""
    names = ("summary.json", "metrics.csv", "users.csv", "links.csv", ".hydra/config.yaml", ".hydra/overrides.yaml")
    write_sums(folder, {name: (folder / name).read_bytes() for name in names if (folder / name).exists()})


def single(runs: Sequence[FinishedRun]) -> list[Any]:
    return as_lines(runs, over_seeds=False)


@pytest.mark.slow
def test_a_sweep_closes_with_one_table(sweep: tuple[Path, commands.Done]) -> None:
    folder, done = sweep
    assert done.returncode == 2, "as one of its jobs"
    assert done.stderr.count(",r=4: r=4") == 2
    assert "Job 1 of 4: algorithm=mocha,r=2: test error " in done.stdout
    assert done.stdout.count("┏") == 1
    closing = done.stdout[done.stdout.index("2 runs; test error") :]
    assert "MOCHA" in closing
    assert "local" in closing
    assert f"python -m hmtl.report {folder}" in closing
    assert "Jobs that failed: algorithm=local,r=4; algorithm=mocha,r=4." in done.stdout


@pytest.mark.slow
def test_what_is_reported_is_what_the_runs_say(sweep: tuple[Path, commands.Done]) -> None:
    folder, _ = sweep
    runs = find_runs([folder])
    table = comparison(single(runs))
    for line, run, name in zip(table.to_dict("records"), runs, ("local", "mocha"), strict=True):
        job = folder / f"algorithm={name},r=2"
        summary, rows = json.loads((job / "summary.json").read_text()), pd.read_csv(job / "metrics.csv")
        assert (run.folder, line["settings"].split(", ")[0]) == (job, f"algorithm={name}")
        assert line["run"] == {"local": "local", "mocha": "MOCHA"}[name]
        bits = rows["bits/relays_to_server"] + rows["bits/server_to_relays"]
        assert line["Mbit"] == pytest.approx(bits.sum() / 1e6)
        assert line["average"] == summary["test_error"] == rows["test_error"].iloc[-1]
        assert line["worst"] == summary["test_error_worst"]
        time = summary["time"]
        assert line["total_s"] == time["total_s"] - time["warm_up_s"]
        assert line["uncoded_total_s"] == time["uncoded_total_s"] - time["uncoded_warm_up_s"]
        assert line["Mbit_uncoded"] == pytest.approx(3 * 12 * summary["V_bits"] / 1e6, rel=0.01)
        if name == "mocha":
            assert line["communication_saved"] == pytest.approx(2 / 6, abs=1e-3)
    assert [line.name for line in single(runs[:1])] == ["local"]
    assert [line.name for line in single([runs[0]] * 2)] == [str(runs[0].folder)] * 2


def test_the_first_job_of_a_sweep_does_not_pay_for_compiled_code(
    sweep: tuple[Path, commands.Done], tmp_path: Path
) -> None:
    """It compiles what later jobs use: its table and its curves leave that out, as its own report does."""
    folder = tmp_path / "run"
    shutil.copytree(sweep[0] / "algorithm=mocha,r=2", folder)
    rows, summary = pd.read_csv(folder / "metrics.csv"), json.loads((folder / "summary.json").read_text())
    summary["time"] |= {"warm_up_s": 0.0, "uncoded_warm_up_s": 0.0}
    before = None
    for compiling, learning in ((0, 0), (70, 30)):
        rows.loc[0, ["compute_s", "uncoded_s"]] += [compiling, learning]
        for name, more in {"compute_s": compiling, "total_s": compiling, "uncoded_total_s": learning}.items():
            summary["time"][name] += more
        summary["time"] |= {"warm_up_s": float(compiling), "uncoded_warm_up_s": float(learning)}
        rows.to_csv(folder / "metrics.csv", index=False)
        (folder / "summary.json").write_text(json.dumps(summary))
        seal(folder)
        (run,) = find_runs([folder])
        (line,) = comparison(single([run])).to_dict("records")
        seconds = [line[name] for name in ("compute_s", "total_s", "uncoded_total_s")]
        seconds += [*run.costs["seconds"], *run.costs["seconds uncoded"]]
        before = before or seconds
        assert seconds == pytest.approx(before, abs=1e-9)


@pytest.mark.slow
def test_runs_that_differ_only_by_seed_are_one_line(seeds: Path, tmp_path: Path) -> None:
    """Their mean and standard deviation, and the values of all their users."""
    report([str(seeds), f"output={tmp_path}/all"])
    table = pd.read_csv(tmp_path / "all.csv")
    assert table["run"].tolist() == ["mean", "ridge"]
    assert table["runs"].tolist() == [3, 3]
    assert len(pd.read_csv(tmp_path / "all_runs.csv")) == 6
    lines = as_lines(find_runs([seeds]))
    figure = comparison_picture(lines, ("rounds", "bits", "communication", "users"))
    markdown, latex = (tmp_path / "all.md").read_text(), (tmp_path / "all.tex").read_text()
    for n, line in enumerate(lines):
        folders = [seeds / f"regularizer={line.name},seed={seed}" for seed in range(3)]
        rows = [pd.read_csv(folder / "metrics.csv") for folder in folders]
        errors = np.array([each["test_error"].dropna() for each in rows])
        assert errors.shape == (3, 2), "evaluate_every=2: the first and the last of three rounds"
        worst = [json.loads((folder / "summary.json").read_text())["test_error_worst"] for folder in folders]
        mean, sd = errors[:, -1].mean(), errors[:, -1].std(ddof=1)
        assert (table["average"][n], table["average_sd"][n]) == pytest.approx((mean, sd))
        assert (table["worst"][n], table["worst_sd"][n]) == pytest.approx((np.mean(worst), np.std(worst, ddof=1)))
        cell = f"{100 * mean:.2f} ± {100 * sd:.2f}"
        travels = line.runs[0].summary.communicator
        assert f"| {line.name} | {travels} | 3 | 3 | {cell} |" in markdown.replace("**", "")  # the best is in bold
        assert cell.replace("±", "$\\pm$") in latex
        by_round, bits, seconds, users = figure.axes
        curve = by_round.lines[n].get_xydata()
        assert curve == pytest.approx(np.column_stack([[1, 3], 100 * errors.mean(0)]))
        band = by_round.collections[n].get_datalim(by_round.transData).intervaly
        spread = errors.std(0, ddof=1)
        assert band / 100 == pytest.approx([(errors.mean(0) - spread).min(), (errors.mean(0) + spread).max()])
        communication = np.mean([each["communication_s"].cumsum()[[0, 2]] for each in rows], axis=0)
        uncoded = np.mean([each["uncoded_communication_s"].cumsum()[[0, 2]] for each in rows], axis=0)
        shown = [curve.get_xdata() for curve in seconds.lines if len(curve.get_xdata())]
        assert any(x == pytest.approx(communication) for x in shown)
        assert any(x == pytest.approx(uncoded) for x in shown)
        points = np.sort(np.asarray(users.collections[2 * n].get_offsets())[:, 0])
        each = [pd.read_csv(folder / "users.csv")["test_error"] for folder in folders]
        assert points == pytest.approx(100 * np.sort(np.concatenate(each)))
    assert bits.get_ylim() == by_round.get_ylim()


@pytest.mark.parametrize(("spread", "divided"), [("sd", 1.0), ("se", 3**0.5)])
@pytest.mark.slow
def test_picture_and_files_say_what_plus_minus_is(seeds: Path, tmp_path: Path, spread: str, divided: float) -> None:
    """Three seeds: bands and tables have the same spread, and both name it."""
    name = {"sd": "standard deviation", "se": "standard error of the mean"}[spread]
    report([str(seeds), f"output={tmp_path}/all", f"spread={spread}", "panels=rounds"])
    lines = as_lines(find_runs([seeds]))
    figure = comparison_picture(lines, ("rounds", "users"), spread)
    assert f"± {name} over seeds" in [text.get_text() for text in figure.legends[0].get_texts()]
    for n, line in enumerate(lines):
        ends = np.array([run.rounds["test_error"].dropna() for run in line.runs]) * 100
        around = ends.std(0, ddof=1) / divided
        band = figure.axes[0].collections[n].get_datalim(figure.axes[0].transData).intervaly
        assert band == pytest.approx([(ends.mean(0) - around).min(), (ends.mean(0) + around).max()])
    caption, table = (tmp_path / "all.tex").read_text().split("\n", 1)
    assert caption.startswith("% 6 runs; test error [%]; ±: " + name)
    assert table.startswith("\\begin{tabular}")


@pytest.mark.slow
def test_without_seeds_no_legend_names_a_band(seeds: Path) -> None:
    runs = find_runs([seeds])
    for lines, panels in ((single(runs), ()), (as_lines(runs), ("users",))):
        (legend,) = comparison_picture(lines, panels).legends
        assert not any("±" in text.get_text() for text in legend.get_texts())


def test_a_run_repeated_is_not_another_seed(seeds: Path, tmp_path: Path) -> None:
    shutil.copytree(seeds / "regularizer=mean,seed=0", tmp_path / "again")
    assert sorted(len(line.runs) for line in as_lines(find_runs([seeds, tmp_path]))) == [1, 3, 3]


def test_numbers_in_names_are_sorted_as_numbers(seeds: Path, tmp_path: Path) -> None:
    ascending = [f"lam={lam}" for lam in ("1e-3", "0.003", "0.03", "0.1", "2", "10")]
    for name in sorted(ascending):
        shutil.copytree(seeds / "regularizer=mean,seed=0", tmp_path / name)
    assert [run.folder.name for run in find_runs([tmp_path])] == ascending


def test_the_same_report_has_the_same_bytes(seeds: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        report([str(seeds), f"output={tmp_path}/{name}", "panels=rounds"])
    for ending in (".csv", "_runs.csv", ".md", ".tex", ".png", ".pdf", ".svg"):
        first, second = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("one", "two"))
        assert first == second, ending
    pdf = (tmp_path / "one.pdf").read_bytes()
    assert b"/Type3" not in pdf, "fonts that publishers refuse"
    assert b"FontFile2" in pdf


@pytest.mark.parametrize(
    "measure",
    [
        *("test_error_worst", "primal"),
        *(pytest.param(other, marks=pytest.mark.slow) for other in ("test_balanced_error", "test_auc_weighted")),
    ],
)
def test_the_user_chooses_the_measure(seeds: Path, measure: str) -> None:
    lines = as_lines(find_runs([seeds], measure))
    final = [[run.summary.figures[measure] for run in line.runs] for line in lines]
    figure = comparison_picture(lines)
    curves = [curve.get_ydata()[-1] for curve in figure.axes[0].lines if len(curve.get_ydata())]
    assert curves == pytest.approx(lines[0].runs[0].unit * np.mean(final, axis=1))
    assert lines[0].runs[0].unit == (100 if "error" in measure else 1)
    assert len(figure.axes) == (3 if measure == "primal" else 4), "users have no objective of their own"
    assert {"worst": "worst user", "weighted": "weighted by rows"}.get(measure.rpartition("_")[2], "") in (
        figure.axes[0].get_ylabel()
    )
    (axes,) = comparison_picture(lines, ["communication"]).axes
    assert axes.figure.get_figwidth() < 3.6, "as wide as a column"


def test_the_table_fits_80_columns(
    sweep: tuple[Path, commands.Done], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a sweep over two settings: where there is no room, their words go on in the next line."""
    run, words = find_runs([sweep[0]])[1], ["regularizer=task_relationship", "regularizer=mean_regularized"]
    runs = [replace(run, overrides=(word, lam)) for word in words for lam in ("lam=0.01", "lam=0.1")]
    for columns in (200, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        Console().table(comparison_table(single(runs)))
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= columns
        cells = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
        labels = [
            f"{word}, {lam}" for word in ("task relationship", "mean regularized") for lam in ("λ = 0.01", "λ = 0.1")
        ]
        assert "".join(cells).replace(" ", "") == "".join(labels).replace(" ", "")
        assert (labels[0] in printed) == (columns == 200)


def test_four_learners_with_three_seeds_fit_80_columns(
    sweep: tuple[Path, commands.Done], seeds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing travels in local training, so that nothing is saved."""
    monkeypatch.setenv("COLUMNS", "80")
    (*_, learner), (local, *_) = as_lines(find_runs([seeds])), find_runs([sweep[0] / "algorithm=local,r=2"])
    lines = [Line(name, (), learner.runs) for name in ("FedAvg", "Ditto", "SCAFFOLD")]
    Console().table(comparison_table([*lines, Line("local networks", (), (local,) * 3)]))
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80
    (row,) = (line for line in printed if "local networks" in line)
    assert row.split()[-1].strip("│") == "–"


def test_files_and_picture(
    sweep: tuple[Path, commands.Done], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = sweep
    mocha, local = folder / "algorithm=mocha,r=2", folder / "algorithm=local,r=2"
    report([str(mocha), str(local), f"output={tmp_path}/new/both"])
    assert "local" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "new" / "both.csv")["run"].tolist() == ["MOCHA", "local"]
    assert Image.open(tmp_path / "new" / "both.png").size[0] > 1000
    runs = find_runs([mocha, local])
    _, left, right, _ = comparison_picture(as_lines(runs)).axes
    coded, plain = (line for line in left.lines if len(line.get_xdata()) == 3)
    assert (plain.get_xdata() / coded.get_xdata()).tolist() == pytest.approx([12 / 4] * 3, rel=0.01), (
        "K=6 each way, 4 in all"
    )
    assert coded.get_ydata().tolist() == plain.get_ydata().tolist()
    assert "seconds" in right.get_xlabel()
    curves = [line for line in right.lines if len(line.get_xdata()) == 3]
    assert len(curves) == 3, "what local would take uncoded is what it takes"
    uncoded = runs[0].rounds["uncoded_s"].tolist()
    assert curves[1].get_xdata().tolist() == pytest.approx([sum(uncoded[: n + 1]) for n in range(3)])


@pytest.mark.parametrize(
    "span",
    [1.5, 40, 1e8, *(pytest.param(span, marks=pytest.mark.slow) for span in (15, 90, 1e5))],
)
@pytest.mark.parametrize("first", [0.016, pytest.param(7000.0, marks=pytest.mark.slow)])
def test_numbers_on_the_axes_are_there_and_apart(sweep: tuple[Path, commands.Done], span: float, first: float) -> None:
    """Of runs whose costs are alike, or differ by far; and of an error that falls as far."""
    runs = [find_runs([sweep[0] / "algorithm=mocha,r=2"])[0] for _ in range(2)]
    for run, scale in zip(runs, (first, first * span), strict=True):
        bits = pd.DataFrame({f"bits/{tier}": [scale, scale] for tier in TIERS}) * 5e5
        seconds = pd.DataFrame({name: [scale, scale] for name in SECONDS}) / 2
        run.__dict__["rounds"] = pd.concat([bits, seconds], axis=1).assign(test_error=[first * span, first], users=6)
    figure = comparison_picture(single(runs), ("bits", "seconds"))
    figure.draw_without_rendering()
    for axes in figure.axes:
        for axis, ends_of in ((axes.xaxis, "intervalx"), (axes.yaxis, "intervaly")):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            shown = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
            if axis is axes.xaxis or axes is figure.axes[0]:  # panels share the vertical axis
                ends = sorted(tuple(getattr(label.get_window_extent(), ends_of)) for label in shown)
                assert len(ends) >= 2
                assert all(end < start for (_, end), (start, _) in pairwise(ends))


def test_runs_that_send_nothing(sweep: tuple[Path, commands.Done], tmp_path: Path) -> None:
    local = sweep[0] / "algorithm=local,r=2"
    report([str(local), f"output={tmp_path}/local", "panels=bits"])
    assert (tmp_path / "local.png").exists()
    (run,) = find_runs([local])
    _, left, right, _ = comparison_picture(single([run])).axes
    (level,) = (line for line in left.lines if len(line.get_xdata()))
    assert level.get_ydata() == pytest.approx([100 * run.summary.figures["test_error"]] * 2)
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
    (tmp_path / "summary.json").write_text((folder / "algorithm=mocha,r=2" / "summary.json").read_text())
    shutil.copy(folder / "algorithm=mocha,r=2" / "users.csv", tmp_path)
    with pytest.raises(DataError, match=rf"summary\.json cannot be read .*{CHECKSUM_FILE}"):
        report([str(tmp_path)])
    seal(tmp_path)
    with pytest.raises(DataError, match=r"metrics\.csv cannot be read .*Leave this run out"):
        report([str(tmp_path)])
    header, *rows = (folder / "algorithm=mocha,r=2" / "metrics.csv").read_text().splitlines()
    without_error = header.replace("test_error,", "other,")
    for lines in (
        [],
        [header],
        [header, *rows[:-1], rows[-1][:20]],  # the process was killed while it wrote
        [without_error, *rows],
        [header, rows[0].replace(",", ",x", 1)],
    ):
        (tmp_path / "metrics.csv").write_text("\n".join(lines))
        seal(tmp_path)
        with pytest.raises(DataError, match=r"metrics\.csv cannot be read .*Leave this run out"):
            report([str(tmp_path)])
    summary = json.loads((folder / "algorithm=mocha,r=2" / "summary.json").read_text())
    without_time = {name: value for name, value in summary.items() if name != "time"}
    for text in ("{", "{}", "[]", "3", "null", json.dumps(without_time), json.dumps({**summary, "time": {}})):
        (tmp_path / "summary.json").write_text(text)
        seal(tmp_path)
        with pytest.raises(DataError, match=r"summary\.json cannot be read .*Leave this run out"):
            report([str(tmp_path)])
    for word, says in (
        ("hydra.run.dir=x", "hydra.run.dir"),
        ("measures=test_error", "Did you mean measure"),
        ("measure=test_eror", "test_error"),
        ("panels=bits,bit", "'bit' is not a panel"),
        ("labels={loca: ours}", "'loca'"),
        ("labels=[ours]", "labels="),
    ):
        with pytest.raises(ConfigError, match=says):
            report([str(folder), word])
    for output in ("", ".", "/"):
        with pytest.raises(ConfigError, match="not the name of a file"):
            report([str(folder), f"output={output}"])
    done = commands.here("hmtl.report", folder, f"output={tmp_path}/summary.json/x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "output" in done.stderr


@pytest.mark.parametrize(
    "absent", ["participation.dropout=0.5", pytest.param("participation.relays=0.4", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "learner",
    [
        pytest.param((), id="coded"),
        pytest.param(("regularizer=mean", "regularizer.lam2=${lam}"), id="sums", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_beside_each_run_is_what_it_would_send_uncoded(tmp_path: Path, learner: tuple[str, ...], absent: str) -> None:
    """Of users who are absent, nothing. A command line may have words that stand for others."""
    for name in ("coded", "uncoded"):
        play(tmp_path / name, "r=2", *learner, absent, f"communicator={name}", "rounds=10")
    runs = find_runs([tmp_path, tmp_path / "coded"])
    coded, uncoded = comparison(lines := as_lines(runs)).to_dict("records")
    assert [run.folder.name for run in runs] == ["coded", "uncoded"]
    assert coded["Mbit"] < 0.9 * uncoded["Mbit"]
    assert runs[0].rounds["users"].min() < 6
    assert uncoded["Mbit_uncoded"] == pytest.approx(uncoded["Mbit"], rel=0.02)
    if "relays" not in absent:  # without which the coded run may have empty rounds, where the uncoded one has none
        assert coded["Mbit_uncoded"] == pytest.approx(uncoded["Mbit"], rel=0.02)
    assert [line.name for line in lines] == ["sums" if learner else "coded", "uncoded"], "what traveled"


def test_runs_of_different_measures(
    sweep: tuple[Path, commands.Done], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors in one column or on one axis that are not alike are named; names are shown as they are."""
    run = find_runs([sweep[0]])[1]
    words = ("$\\lambda$", "old")
    runs = [replace(run, overrides=(f"dataset={word}",)) for word in "ab"]
    summary = run.summary.model_copy(update={"error_measure": "mean squared error"})
    runs[1] = replace(runs[1], summary=summary)
    monkeypatch.setenv("COLUMNS", "120")
    lines = as_lines(runs, labels=dict(zip("ab", words, strict=True)))
    Console().table(comparison_table(lines))
    printed = capsys.readouterr().out
    assert "(mean squared error)" in printed
    assert "[%]" in printed
    figure = comparison_picture(lines)
    figure.draw_without_rendering()
    label = figure.axes[0].yaxis.label
    assert label.get_text().replace("\n", " ") == "test error, average [%] or test error, average (mean squared error)"
    assert label.get_window_extent().height < figure.bbox.height
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [*words, "the same with plain forwarding"]


def test_lines_say_what_travels_and_at_which_rates(
    sweep: tuple[Path, commands.Done], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No column is called as a regularizer, which could be a line."""
    run = find_runs([sweep[0]])[1]
    changes = [{}, {"communicator": "sums", "rates": "5 Mbit/s", "why": "sums replace coding"}]
    runs = [replace(run, summary=run.summary.model_copy(update=each)) for each in changes]
    table = readable(single(runs))
    assert table["travels"].tolist() == ["coded", "sums"]
    assert table["rates"].tolist() == ["100 Mbit/s", "5 Mbit/s"]
    assert not {"travels", "rates"} & {*readable(single(runs[:1]))}
    assert not {path.stem for path in (conf_dir() / "regularizer").iterdir()} & {*table, *OVER_USERS.values()}
    assert "at 100 Mbit/s" in title(single(runs[:1]))


def test_links_of_a_line_are_means_over_its_runs(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = as_lines(find_runs([seeds]))[0]
    files = [pd.read_csv(run.folder / "links.csv") for run in line.runs]
    bits = pd.concat(files)[["payload_bits", "overhead_bits"]].sum()
    assert line.links[["payload_bits", "overhead_bits"]].sum().tolist() == pytest.approx((bits / 3).tolist())
    report([str(seeds), "links=2"])
    printed = capsys.readouterr().out
    assert "mean: the 2 busiest of " in printed
    assert "all relays, server to relays" in printed
    with pytest.raises(ConfigError, match="links"):
        report([str(seeds), "links=-2"])


def test_labels_are_what_a_paper_would_say() -> None:
    for setting, label in (
        ("algorithm=lg_fedavg", "LG-FedAvg"),
        ("algorithm=own", "own"),
        ("algorithm.model._target_=hmtl.mtl.cnn", "cnn"),
        ("wire=int4", "4 bits"),
        ("wire=null", "full precision"),
        ("regularizer=task_relationship", "task relationship"),
        ("lam=1e-3", "λ = 1e-3"),
        ("dataset.rows_per_user=20", "rows per user = 20"),
        ("aggregators=[0,2]", "aggregators = [0,2]"),
        ("~logger.tensorboard", "tensorboard"),
    ):
        assert as_label(setting) == label


def test_new_labels(seeds: Path) -> None:
    """A label replaces a setting wherever it occurs, or the name of a whole line."""
    runs = find_runs([seeds])
    assert [line.name for line in as_lines(runs, labels={"mean": "ours"})] == ["ours", "ridge"]
    runs = [replace(runs[0], overrides=(*runs[0].overrides, f"wire=int{n}")) for n in (4, 8)] + runs[3:4]
    labels = {"ridge": "theirs", "mean, 8 bits": "ours", "4 bits": ""}
    assert [line.name for line in as_lines(runs, labels=labels)] == ["mean", "ours", "theirs"]


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        (["baseline=null", "algorithm=cocoa"], ["MOCHA", "CoCoA"]),
        (["", "algorithm=fedper,loss=squared", "algorithm=fedavg,loss=squared"], ["MOCHA", "FedPer", "FedAvg"]),
        (["+lam=0.01,logger=none", "lam=0.1"], ["λ = 0.01", "λ = 0.1"]),
        (["", "communicator=coded"], ["MOCHA", "MOCHA, sums"]),  # which is what traveled
        (["", "lam=3", "algorithm=ditto,lam=3"], ["MOCHA", "MOCHA, λ = 3", "Ditto"]),
        (["algorithm=own,algorithm.learner._target_=my.Pull", "algorithm=fedu"], ["Pull", "FedU"]),
        (["evaluate_every=2", "logger=none"], ["a", "b"]),
    ],
)
def test_a_line_is_named_by_what_others_do_differently(seeds: Path, typed: Sequence[str], names: Sequence[str]) -> None:
    run = find_runs([seeds])[0]
    runs = [
        replace(run, folder=Path(name), overrides=tuple(filter(None, words.split(","))))
        for name, words in zip("abc", typed, strict=False)
    ]
    assert [line.name for line in as_lines(runs)] == names


@pytest.mark.parametrize(
    "panels", [(), *(pytest.param(few, marks=pytest.mark.slow) for few in (("bits",), ("rounds", "bits", "users")))]
)
def test_the_picture_is_fit_for_print(seeds: Path, panels: tuple[str, ...]) -> None:
    """All text has at least 9 points and is inside the picture, each axis but that of the boxes has a label."""
    runs = find_runs([seeds])
    long = "a label that is too long for a line of the legend, or has_no_space_where_a_line_could_end_before_it_does"
    for lines in (as_lines(runs), [replace(line, name=f"{n}: {long}") for n, line in enumerate(2 * single(runs))]):
        figure = comparison_picture(lines, panels)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert figure.bbox.x0 <= legend.get_window_extent().x0
        assert legend.get_window_extent().x1 <= figure.bbox.x1
        assert figure.get_figwidth() in (3.4, 7.0)
        assert {text.get_fontsize() for text in figure.findobj(Text)} == {9}
        assert all(axes.get_xlabel() for axes in figure.axes)
        assert min(axes.bbox.height for axes in figure.axes) > figure.dpi
        styles = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in legend.get_lines()]
        assert len(set(map(str, styles))) == len(styles)


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
    assert "1 run; test error" in done.stdout
    assert (tmp_path / "r=2" / "models.npz").exists()


def test_spread_columns_and_the_best_in_bold(seeds: Path) -> None:
    runs = find_runs([seeds])
    lines = [Line("TREND", (), tuple(runs)), Line("BEST", (), (runs[0],))]
    by_sd, by_se = (readable(lines, spread)["average"][0].split(" ± ") for spread in ("sd", "se"))
    assert by_sd[0] == by_se[0]
    assert float(by_se[1]) == pytest.approx(float(by_sd[1]) / len(runs) ** 0.5, abs=0.01)
    table = readable(lines, columns=["Mbit", "average"], style="latex")
    assert list(table) == ["Mbit", "average"]
    means = [float(cell.partition(" ")[0]) for cell in readable(lines)["average"]]
    bold = ["**" in cell for cell in readable(lines, style="markdown")["average"]]
    assert bold == [mean == min(means) for mean in means]
    assert as_latex(table).count(r"\textbf{") == means.count(min(means))
    assert all(f"{line.name} &" in as_latex(readable(lines, style="latex")) for line in lines)
    for wrong in ({"spread": "ci"}, {"columns": ["speed"]}):
        with pytest.raises(ConfigError):
            readable(lines, **wrong)
