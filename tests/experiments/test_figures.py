"""The figures of the paper: the recorded results next to known values and to the order that theory demands, and each
script with --quick.
"""

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
LOADS, TIMES = ("fig3", "fig4"), ("fig5", "fig6", "fig7")
Row = dict[str, str]


def recorded(name: str) -> list[Row]:
    return rows_of(EXPERIMENTS / "results" / f"{name}.csv")


def rows_of(path: Path) -> list[Row]:
    with path.open() as file:
        return list(csv.DictReader(file))


def where(rows: list[Row], **values: object) -> list[Row]:
    """Return the rows with these values."""
    return [
        row
        for row in rows
        if all(
            row[key] == value if isinstance(value, str) else float(row[key]) == value for key, value in values.items()
        )
    ]


def pair(rows: list[Row], **values: object) -> tuple[float, float]:
    """Return the loads of the one point and curve with these values."""
    (row,) = where(rows, **values)
    return float(row["up"]), float(row["down"])


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


@pytest.mark.parametrize("name", [*LOADS, *TIMES])
def test_recorded_loads(name: str) -> None:
    check(recorded(name))


def test_any_3_of_5_relays() -> None:
    """An independent implementation gave these values for 50 draws."""
    rows = recorded("fig3")
    point = {"panel": "H = 5", "K": 40}
    up, down = pair(rows, curve="paper", **point)
    assert up == pytest.approx(24.85, abs=0.6)
    assert down == pytest.approx(20.06, abs=0.6)
    assert pair(rows, curve="all relays", **point)[0] == pytest.approx(20.74, abs=0.6)
    assert sum(pair(rows, curve="best aggregators", **point)) == pytest.approx(29.5, abs=1)


@pytest.mark.parametrize(
    ("K", "known"), [(10, (17.4, 20.5, 34.5)), (40, (22.1, 24.4, 31.6)), (100, (24.1, 25.9, 30.2))]
)
def test_saved_transmission_time(K: int, known: tuple[float, ...]) -> None:
    """An independent implementation gave these values for 20 draws; here there are 50."""
    for curve, percent in zip(("paper", "all relays", "best aggregators"), known, strict=True):
        (row,) = where(recorded("fig3"), panel="H = 5", K=K, curve=curve)
        assert float(row["saved %"]) == pytest.approx(percent, abs=0.8)


def test_more_unequal_relays_save_less_if_all_aggregate_and_more_if_the_best_do() -> None:
    saved = {curve: [float(row["saved %"]) for row in where(recorded("fig4"), curve=curve)] for curve in ORDER}
    for curve in ("equal", "paper", "all relays"):
        assert saved[curve] == sorted(saved[curve], reverse=True)
    assert saved["best aggregators"][1:] == sorted(saved["best aggregators"][1:])
    assert saved["best aggregators"][-1] > 2 * saved["best aggregators"][0]


def test_heterogeneous_relays() -> None:
    """An independent implementation gave these values for 50 draws."""
    for data in ("MNIST", "HAR"):
        point = {"data": data, "panel": "K = 30", "d": 0}
        assert pair(recorded("fig7"), curve="paper", **point) == pytest.approx((22.9, 18.9), abs=0.7)
        assert pair(recorded("fig7"), curve="all relays", **point) == pytest.approx((20.1, 15), abs=0.1)


def test_loads_fall_with_the_relays_per_user() -> None:
    rows = where(recorded("fig5"), data="HAR")
    for panel in ("H = 10", "H = 20"):
        for curve in ORDER[:-1]:
            sums = [float(row["up"]) + float(row["down"]) for row in where(rows, panel=panel, curve=curve)]
            assert len(sums) == 10
            assert sums == sorted(sums, reverse=True)
    two, three = (where(recorded("fig6"), data="HAR", panel=f"r = {r}") for r in (2, 3))
    for row, other in zip(two, three, strict=True):
        if row["curve"] != "uncoded":
            assert float(other["up"]) + float(other["down"]) < float(row["up"]) + float(row["down"])


@pytest.mark.parametrize("name", TIMES)
def test_recorded_times(name: str) -> None:
    """The counted bits take little more than the time of eq. (13), and the total is the sum of its parts."""
    for row in recorded(name):
        figures = {key: float(value) for key, value in row.items() if key not in ("data", "panel", "curve")}
        K, V_bits = figures.get("K", 20), 64 * {"MNIST": 784, "HAR": 561}[row["data"]]
        least = (2 * K + figures["up"] + figures["down"]) * V_bits / 100e6
        assert least * (1 - 1e-5) <= figures["communication_s"] <= 1.01 * least
        parts = figures["local_s"] + figures["global_s"] + figures["coding_s"]
        assert figures["compute_s"] == pytest.approx(parts, rel=1e-4)
        total = 150 * (parts + figures["communication_s"]) + figures["planning_s"]
        assert figures["total_s"] == pytest.approx(total, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LOADS, *TIMES])
def test_quick(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script writes its files, and leaves the unfinished draws of a long run alone."""
    outputs = tmp_path / "outputs"
    unfinished = outputs / "unfinished" / name / "draw"
    unfinished.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--draws", "1"])
    monkeypatch.syspath_prepend(EXPERIMENTS)
    runpy.run_path(str(EXPERIMENTS / f"{name}.py"), run_name="__main__")
    assert unfinished.exists()
    assert (outputs / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (outputs / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    rows = rows_of(outputs / f"{name}.csv")
    check(rows)
    assert set(rows[0]) == set(recorded(name)[0])


def test_data_in_a_folder_with_a_blank_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.setattr(sys, "argv", ["fig5.py", "--mnist", "it's (my) dätä", "--har", "data/UCI HAR Dataset"])
    options = import_module("figures").read_options("", import_module("time_figures").DATA)
    paths = {name: compose(*shlex.split(words), "output_dir=.").dataset.path for name, words in options.data.items()}
    assert paths == {"MNIST": "it's (my) dätä", "HAR": "data/UCI HAR Dataset"}


@pytest.mark.parametrize("name", [*LOADS, *TIMES])
def test_pictures_are_small(name: str) -> None:
    assert (EXPERIMENTS / "results" / f"{name}.png").stat().st_size <= 200 * 1024


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
