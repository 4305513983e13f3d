"""Measure test error against bits between relays and server: `python experiments/error_by_bits.py --har PATH`.

The data are HAR by subject (sitting against the rest) over any 3 of 5 relays, and 5,000 digits over the default
network. Each method trains for 100 rounds; results are means over seeds. Writes error_by_bits.csv, a line per data set,
method and round, and error_by_bits.png to experiments/results/.
"""

import argparse
import csv
import shlex
import statistics
import tempfile
from pathlib import Path

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
FEDU = f"algorithm=fedu regularizer=graph {LOGISTIC} lam=1e-4 regularizer.lam2=1e-4 communicator=partial"
DATA = {  # common settings, and those of each method; λ is close to what cross-validation chose in other experiments
    "HAR by subject": (
        "dataset=har_subjects topology=any_r",
        {
            "task_relationship, all relays": "lam=1e-3 aggregators=all",
            "task_relationship, best aggregators": "lam=1e-3",
            "mean, sums": "regularizer=mean lam=1e-3 regularizer.lam2=1e-4 communicator=sums sums=whole",
            "FedU, graph, partial demands": FEDU,
            "FedAvg, sums": f"algorithm=fedavg {LOGISTIC} communicator=sums sums=whole",
            "local": "algorithm=local lam=1e-3",
        },
    ),
    "5,000 digits": (  # without FedAvg: no model serves users whose labels contradict each other
        "dataset=mnist5k",
        {
            "task_relationship, all relays": "lam=1e-2 aggregators=all",
            "task_relationship, best aggregators": "lam=1e-2",
            "mean, sums": "regularizer=mean lam=0.1 regularizer.lam2=0.1 communicator=sums sums=whole",
            "FedU, graph, partial demands": FEDU,
            "local": "algorithm=local lam=0.1",
        },
    ),
}
STYLES = {  # colour, line and marker, distinct in grey as well
    "task_relationship, all relays": (OKABE_ITO["blue"], "--", "s"),
    "task_relationship, best aggregators": (OKABE_ITO["blue"], "-", "o"),
    "mean, sums": (OKABE_ITO["orange"], "-", "^"),
    "FedU, graph, partial demands": (OKABE_ITO["green"], "-.", "D"),
    "FedAvg, sums": (OKABE_ITO["purple"], ":", "v"),
    "local": ("black", "--", ""),
}
BUDGETS = (1, 3, 10, 30)  # Mbit
Point = tuple[float, float]  # Mbit between relays and server so far, mean test error
Curves = dict[str, dict[str, list[Point]]]  # by data set and method, a point for each round


def curve(settings: str, seed: int, rounds: int) -> list[Point]:
    """Return a point for each round of one run."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose(*shlex.split(settings), f"seed={seed}", f"rounds={rounds}", f"output_dir={folder}", "logger=none")
        history = build(cfg).trainer.fit()
    points, bits = [], 0.0
    for row in history:
        bits += row["bits/relays_to_server"] + row["bits/server_to_relays"]
        points.append((bits / 1e6, row["test_error"]))
    return points


def mean_curve(runs: list[list[Point]]) -> list[Point]:
    return [
        (statistics.mean(mbit for mbit, _ in points), statistics.mean(error for _, error in points))
        for points in zip(*runs, strict=True)
    ]


def measure(har: Path, seeds: int, rounds: int) -> Curves:
    curves: Curves = {}
    for data, (common, methods) in DATA.items():
        path = shlex.quote(data_path(har)) if "har" in common else ""
        for method, own in methods.items():
            points = mean_curve([curve(f"{common} {path} {own}", seed, rounds) for seed in range(seeds)])
            curves.setdefault(data, {})[method] = points
            print(f"{data}, {method}: {points[-1][0]:.4g} Mbit, error {points[-1][1]:.4f}", flush=True)
    return curves


def error_within(points: list[Point], budget: float) -> float | None:
    """Return the error after the last round within a budget [Mbit]; None if the budget does not cover a round."""
    return next((error for mbit, error in reversed(points) if mbit <= budget), None)


def budget_table(data: str, curves: dict[str, list[Point]]) -> Table:
    table = Table(title=f"{data}: test error in % by Mbit", title_justify="left", box=box.SIMPLE)
    table.add_column("", min_width=20)
    for column in ("Mbit/round", *map(str, BUDGETS), "at the end"):
        table.add_column(column, justify="right")
    for method, points in curves.items():
        errors = [*(error_within(points, budget) for budget in BUDGETS), points[-1][1]]
        cells = ("" if error is None else f"{100 * error:.2f}" for error in errors)
        table.add_row(method, f"{points[-1][0] / len(points):.3g}", *cells)
    return table


def best_methods(data: str, curves: dict[str, list[Point]]) -> str:
    """Return a sentence that names the method with the smallest error within each budget."""
    best = []
    for budget in BUDGETS:
        errors = {method: error_within(points, budget) for method, points in curves.items()}
        error, method = min((error, method) for method, error in errors.items() if error is not None)
        best.append(f"{error:.2%} within {budget} Mbit ({method})")
    return f"{data}, smallest error: {'; '.join(best)}."


def draw(curves: Curves, seeds: int) -> Figure:
    figure = Figure(figsize=(11, 5), layout="constrained")
    all_axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (data, methods) in zip(all_axes, curves.items(), strict=True):
        for method, points in methods.items():
            color, line, marker = STYLES[method]
            if points[-1][0]:
                mbit, error = zip(*points, strict=True)
                every = [0, *(2**n - 1 for n in range(1, 8) if 2**n <= len(points))]
                axes.plot(mbit, error, line, color=color, marker=marker, markevery=every, markersize=5, label=method)
            else:  # a logarithmic axis has no place for zero bits
                axes.axhline(points[-1][1], color=color, linestyle=line, linewidth=1.2, label=f"{method}: no bits")
        axes.set(title=data, xscale="log", yscale="log", xlabel="between relays and server [Mbit]")
        axes.set_ylabel(f"test error [%], mean over users and {seeds} seeds")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 8)))
        axes.yaxis.set_major_formatter(lambda error, _: f"{100 * error:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    return figure


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
        writer.writerow(("data", "method", "rounds", "Mbit", "test_error"))
        for data, methods in curves.items():
            for method, points in methods.items():
                for n, (mbit, error) in enumerate(points, 1):
                    writer.writerow((data, method, n, f"{mbit:.5g}", f"{error:.5f}"))
    draw(curves, args.seeds).savefig(args.out / "error_by_bits.png", dpi=110)
    console = Console()
    for data, methods in curves.items():
        console.print(budget_table(data, methods))
        console.print(best_methods(data, methods))


if __name__ == "__main__":
    main()
