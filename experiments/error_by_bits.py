"""Measure test error against bits between relays and server: `python experiments/error_by_bits.py --har PATH`.

The data are HAR by subject (sitting against the rest) over any 3 of 5 relays, and 5,000 digits over the default
network. Each method trains for 100 rounds with wire=null, int8 and int4; results are means over seeds, and the least
and the largest error of a seed. Writes error_by_bits.csv, a line per data set, method, wire and round, and
error_by_bits.png to experiments/results/.
"""

import argparse
import csv
import shlex
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from paths import data_path
from rich import box
from rich.console import Console
from rich.table import Table

from hmtl.config.build import build, compose
from hmtl.reporting.style import OKABE_ITO

RESULTS = Path(__file__).parent / "results"
LOGISTIC = "loss=logistic solver.step=0.1"
FEDU = f"algorithm=fedu regularizer=graph {LOGISTIC} lam=1e-4 regularizer.lam2=1e-4"
DATA = {  # common settings, and those of each method; λ is close to what cross-validation chose in other experiments
    "HAR by subject": (
        "dataset=har_subjects topology=any_r",
        {
            "task_relationship, all relays": "lam=1e-3 aggregators=all",
            "task_relationship, best aggregators": "lam=1e-3",
            "mean, sums": "regularizer=mean lam=1e-3 regularizer.lam2=1e-4 communicator=sums",
            "FedU, graph": FEDU,
            "FedAvg, sums": f"algorithm=fedavg {LOGISTIC} communicator=sums",
            "local": "algorithm=local lam=1e-3",
        },
    ),
    "5,000 digits": (  # without FedAvg: no model serves users whose labels contradict each other
        "dataset=mnist5k",
        {
            "task_relationship, all relays": "lam=1e-2 aggregators=all",
            "task_relationship, best aggregators": "lam=1e-2",
            "mean, sums": "regularizer=mean lam=0.1 regularizer.lam2=0.1 communicator=sums",
            "FedU, graph": FEDU,
            "local": "algorithm=local lam=0.1",
        },
    ),
}
STYLES = {  # color, line and marker, distinct in gray as well
    "task_relationship, all relays": (OKABE_ITO["blue"], "--", "s"),
    "task_relationship, best aggregators": (OKABE_ITO["blue"], "-", "o"),
    "mean, sums": (OKABE_ITO["orange"], "-", "^"),
    "FedU, graph": (OKABE_ITO["green"], "-.", "D"),
    "FedAvg, sums": (OKABE_ITO["purple"], ":", "v"),
    "local": ("black", "--", ""),
}
WIRES = ("null", "int8", "int4")  # null: 64 bits in a number, or 32 for FedU
NO_BITS = "local"  # sends nothing, so no wire matters
TOPS = {"5,000 digits": 0.11}  # of pictures: the first round of sums has 19 %, and all other points are below
BUDGETS = (0.1, 0.3, 1, 3, 10, 30)  # Mbit


class Point(NamedTuple):
    """A round of a method: `mbit` between relays and server so far, and the test error over seeds."""

    mbit: float
    error: float  # mean
    least: float
    largest: float


Curves = dict[str, dict[tuple[str, str], list[Point]]]  # by data set, then by method and wire, a point for each round


def curve(settings: str, seed: int, rounds: int) -> list[tuple[float, float]]:
    """Return Mbit so far and test error for each round of one run."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose(*shlex.split(settings), f"seed={seed}", f"rounds={rounds}", f"output_dir={folder}", "logger=none")
        history = build(cfg).trainer.fit()
    points, bits = [], 0.0
    for row in history:
        bits += row["bits/relays_to_server"] + row["bits/server_to_relays"]
        points.append((bits / 1e6, row["test_error"]))
    return points


def mean_curve(runs: list[list[tuple[float, float]]]) -> list[Point]:
    points = []
    for of_seeds in zip(*runs, strict=True):
        mbit, errors = zip(*of_seeds, strict=True)
        points.append(Point(statistics.mean(mbit), statistics.mean(errors), min(errors), max(errors)))
    return points


def measure(har: Path, seeds: int, rounds: int) -> Curves:
    curves: Curves = {}
    for data, (common, methods) in DATA.items():
        path = shlex.quote(data_path(har)) if "har" in common else ""
        for method, own in methods.items():
            for wire in WIRES if method != NO_BITS else WIRES[:1]:
                settings = f"{common} {path} {own} wire={wire}"
                points = mean_curve([curve(settings, seed, rounds) for seed in range(seeds)])
                curves.setdefault(data, {})[method, wire] = points
                print(f"{data}, {method}, {wire}: {points[-1].mbit:.4g} Mbit, error {points[-1].error:.4f}", flush=True)
    return curves


def within(points: list[Point], budget: float) -> Point | None:
    """Return the last round within a budget [Mbit]; None if the budget does not cover a round."""
    return next((point for point in reversed(points) if point.mbit <= budget), None)


def budget_table(data: str, curves: dict[tuple[str, str], list[Point]]) -> Table:
    table = Table(title=f"{data}: test error in % by Mbit", title_justify="left", box=box.SIMPLE)
    table.add_column("")
    for column in ("wire", "Mbit/round", *map(str, BUDGETS), "at the end", "by seed"):
        table.add_column(column, justify="right", no_wrap=True)
    for (method, wire), points in curves.items():
        last = points[-1]
        reached = [*(within(points, budget) for budget in BUDGETS), last]
        cells = ("" if point is None else f"{100 * point.error:.2f}" for point in reached)
        spread = f"{100 * last.least:.2f} .. {100 * last.largest:.2f}"
        table.add_row(method, wire, f"{last.mbit / len(points):.3g}", *cells, spread)
    return table


def best_methods(data: str, curves: dict[tuple[str, str], list[Point]]) -> str:
    """Return a sentence that names the method with the smallest error within each budget."""
    best = []
    for budget in BUDGETS:
        reached = {key: within(points, budget) for key, points in curves.items()}
        error, (method, wire) = min((point.error, key) for key, point in reached.items() if point)
        best.append(f"{error:.2%} within {budget} Mbit ({method}, wire={wire})")
    return f"{data}, smallest error: {'; '.join(best)}."


def draw(curves: Curves, seeds: int) -> Figure:
    """Return a picture with a row per data set and a column per wire, with common axes."""
    columns = list(dict.fromkeys(wire for methods in curves.values() for _, wire in methods))
    figure = Figure(figsize=(2.8 * len(columns), 2.6 * len(curves) + 0.8), layout="constrained")
    grid = figure.subplots(len(curves), len(columns), squeeze=False, sharex=True, sharey="row")
    handles: dict[str, Artist] = {}
    for row, (data, methods) in zip(grid, curves.items(), strict=True):
        for axes, wire in zip(row, columns, strict=True):
            for (method, own), points in methods.items():
                if own == wire or method == NO_BITS:
                    handles.setdefault(method, draw_curve(axes, method, points))
            axes.set(title=f"{data}, wire={wire}", xscale="log", yscale="log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 8)))
            axes.yaxis.set_major_formatter(lambda error, _: f"{100 * error:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_formatter(lambda mbit, _: f"{mbit:g}")
            axes.grid(alpha=0.3)
        row[0].set_ylabel("test error [%]")
        row[0].set_ylim(top=TOPS.get(data))
    for axes in grid[-1]:
        axes.set_xlabel("between relays and server [Mbit]")
    title = f"mean over users and {seeds} seeds; bands: the lowest and the highest error of a seed"
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, title=title)
    return figure


def draw_curve(axes: Axes, method: str, points: list[Point]) -> Artist:
    """Draw error against Mbit; a line over the whole width for a method that sends nothing."""
    color, line, marker = STYLES[method]
    mbit, error, least, largest = zip(*points, strict=True)
    if not mbit[-1]:  # a logarithmic axis has no place for zero bits
        return axes.axhline(error[-1], color=color, linestyle=line, linewidth=1.2)
    every = [2**n - 1 for n in range(8) if 2**n <= len(points)]
    axes.fill_between(mbit, least, largest, color=color, alpha=0.12, linewidth=0)
    return axes.plot(mbit, error, line, color=color, marker=marker, markevery=every, markersize=4, linewidth=1.3)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--har", type=Path, required=True, help="UCI's zip or folder, or the folder that contains it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder")
    args = parser.parse_args()
    curves = measure(args.har, args.seeds, args.rounds)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "error_by_bits.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("data", "method", "wire", "rounds", "Mbit", "test_error", "least", "largest"))
        for data, methods in curves.items():
            for (method, wire), points in methods.items():
                for n, (mbit, *errors) in enumerate(points, 1):
                    writer.writerow((data, method, wire, n, f"{mbit:.5g}", *(f"{e:.6f}" for e in errors)))
    draw(curves, args.seeds).savefig(args.out / "error_by_bits.png", dpi=160)
    console = Console(width=120)
    for data, methods in curves.items():
        console.print(budget_table(data, methods))
        console.print(best_methods(data, methods))


if __name__ == "__main__":
    main()
