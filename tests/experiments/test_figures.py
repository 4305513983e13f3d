"""The figures of the paper: each script with --quick, whose results have the order that theory demands."""

import csv
import runpy
import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import DictConfig

from hmtl.config.build import build, compose, conf_dir

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"
ORDER = ("best aggregators", "all relays", "paper", "equal", "uncoded")  # from the least sent to the most
Row = dict[str, str]


def rows_of(path: Path) -> list[Row]:
    with path.open() as file:
        return list(csv.DictReader(file))


def check(rows: list[Row]) -> None:
    """Check the order that theory demands at each point."""
    points: dict[tuple[str, ...], dict[str, tuple[float, float]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("data", "panel", "H", "K", "r", "d") if name in row)
        points.setdefault(key, {})[row["curve"]] = float(row["up"]), float(row["down"])
    assert points
    for curves in points.values():
        assert set(curves) == {*ORDER, "Theorem 2"}
        sums = [sum(curves[curve]) for curve in ORDER]
        assert all(less <= more * (1 + 1e-5) for less, more in pairwise(sums))
        (bound_up, bound_down), (up, down) = curves["Theorem 2"], curves["all relays"]
        assert up >= bound_up * (1 - 1e-5)
        assert down == pytest.approx(bound_down, rel=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=[] if path.stem in ("fig7", "hu2022") else pytest.mark.slow)
        for path in (conf_dir() / "experiment").glob("*.yaml")
    ],
)
def test_each_experiment_trains(name: str, configure: Callable[..., DictConfig]) -> None:
    small = "dataset=mnist5k", "dataset.rows_per_user=20", "rounds=1", "logger=none"
    run = build(configure(f"experiment={name}", *small))
    (row,) = run.trainer.fit()
    described = run.communicator.describe()
    assert (described["scheme"], described["aggregators"]) == ("paper", list(range(run.communicator.topology.H)))
    assert 0 < row["communication_s"] < row["uncoded_communication_s"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fig3", "fig4", "fig5", "fig6", "fig7"])
def test_quick(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script writes its files, and leaves the unfinished draws of a long run alone."""
    outputs = tmp_path / "outputs"
    unfinished = outputs / "unfinished" / name / "draw"
    unfinished.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    jobs = "2" if name == "fig3" else "1"  # processes of their own are tried once
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--draws", "1", "--jobs", jobs])
    monkeypatch.syspath_prepend(EXPERIMENTS)
    runpy.run_path(str(EXPERIMENTS / f"{name}.py"), run_name="__main__")
    assert unfinished.exists()
    assert (outputs / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (outputs / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    rows = rows_of(outputs / f"{name}.csv")
    check(rows)
    assert set(rows[0]) == set(rows_of(EXPERIMENTS / "results" / f"{name}.csv")[0])


def test_data_in_a_folder_with_a_blank_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.setattr(sys, "argv", ["fig5.py", "--mnist", "it's (my) dätä", "--har", "data/UCI HAR Dataset"])
    options = import_module("figures").read_options("", import_module("time_figures").DATA)
    paths = {name: compose(*shlex.split(words), "output_dir=.").dataset.path for name, words in options.data.items()}
    assert paths == {"MNIST": "it's (my) dätä", "HAR": "data/UCI HAR Dataset"}


@pytest.mark.slow
def test_a_round_in_one_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = runpy.run_path(str(EXPERIMENTS / "round.py"))
    monkeypatch.setitem(made["panel"].__globals__, "RESULTS", tmp_path)
    figure = made["main"]()
    texts = [{text.get_text() for text in axes.texts} for axes in figure.axes]
    assert texts == [{"4", "20 up, 20 down"}, {"4", "8 up, 8 down"}, {"0.34", "1.7 up, 1 down"}]
    assert 0 < (tmp_path / "round.png").stat().st_size < 200 * 1024
    assert (EXPERIMENTS / "results" / "round.png").stat().st_size < 200 * 1024


def once(folder: Path, n: int) -> int:
    """Count the calls for n in a file; the call for n = 2 fails while it is not allowed."""
    with (folder / f"{n}").open("a") as file:
        file.write("x")
    if n == 2 and not (folder / "allowed").exists():
        raise InterruptedError
    return n


def test_a_stopped_run_keeps_its_completed_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXPERIMENTS)
    figures = import_module("figures")

    def run() -> list[int]:
        with figures.unfinished("figure") as memory:
            return figures.in_parallel("draws", 1, memory, once, [(tmp_path, n) for n in range(4)])

    with pytest.raises(InterruptedError):
        run()
    (tmp_path / "allowed").touch()
    assert run() == [0, 1, 2, 3]
    assert [len((tmp_path / f"{n}").read_text()) for n in range(4)] == [1, 1, 2, 1]
    assert run() == [0, 1, 2, 3]  # a completed run keeps nothing
    assert [len((tmp_path / f"{n}").read_text()) for n in range(4)] == [2, 2, 3, 2]
