"""The shared parts of the five figures: command line, curves, parallel draws, files and pictures.

A *panel* is a list of points. A *point* gives values of settings, such as {"H": 5, "K": 40}, on top of the figure's
file in `conf/experiment`. A *draw* is all points with one seed.
"""

import argparse
import csv
import io
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Memory, Parallel, delayed, parallel_config
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig
from paths import data_path
from rich import box
from rich.progress import Progress
from rich.table import Table

from hmtl.config.build import build_topology
from hmtl.io.files import replacing, write_whole
from hmtl.reporting.console import Console
from hmtl.reporting.style import OKABE_ITO
from hmtl.topology import Topology
from hmtl.tuning.grid import with_values

RESULTS = Path(__file__).parent / "results"
Point = Mapping[str, float]
Panels = Mapping[str, Sequence[Point]]
Row = dict[str, Any]

UNCODED, EQUAL, PAPER, ALL, BEST, BOUND = "uncoded", "equal", "paper", "all relays", "best aggregators", "Theorem 2"
CODED = {EQUAL: ("equal", "all"), PAPER: ("paper", "all"), ALL: ("optimal", "all"), BEST: ("optimal", "auto")}
"""Scheme and aggregators of each coded curve."""
STYLES = {  # lines and markers are distinct in grey as well
    UNCODED: ("black", ":", "", "uncoded"),
    EQUAL: (OKABE_ITO["purple"], "--", "x", "all relays, equal allocation"),
    PAPER: (OKABE_ITO["vermilion"], "-", "s", "all relays, the paper's scheme"),
    ALL: (OKABE_ITO["blue"], "-", "o", "all relays, optimal"),
    BEST: (OKABE_ITO["green"], "-", "^", "best aggregators"),
    BOUND: ("black", "--", "", "all relays, Theorem 2"),
}
LABELS = {"K": "users K", "r": "relays per user r", "d": "heterogeneity d"}


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    Attributes:
        draws: number of draws.
        jobs: number of processes; −1 for one per core.
        quick: whether to compute only the ends of each curve.
        out: folder of the results.
        data: settings that choose each data set, by its name, quoted as for a shell.
    """

    draws: int
    jobs: int
    quick: bool
    out: Path
    data: dict[str, str]


def read_options(description: str | None, data_sets: Mapping[str, str] | None = None) -> Options:
    """Read the command line.

    Args:
        description: the script's docstring.
        data_sets: settings of data sets by name; each gets an option for its path.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, help="by default 50, or 2 with --quick")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; by default one per core")
    parser.add_argument("--quick", action="store_true", help="try it: the ends of each curve, on little data")
    parser.add_argument("--out", type=Path, help="folder; by default experiments/results, or outputs with --quick")
    for name in data_sets or {}:
        parser.add_argument(f"--{name.lower()}", default="data", help=f"folder of {name}, which may be downloaded")
    args = parser.parse_args()
    data = {}
    for name, settings in (data_sets or {}).items():
        data[name] = f"{settings} {shlex.quote(data_path(getattr(args, name.lower())))}"
    out = args.out or (Path("outputs") if args.quick else RESULTS)
    return Options(args.draws or (2 if args.quick else 50), 1 if args.quick else args.jobs, args.quick, out, data)


def points_of(panels: Panels, quick: bool) -> list[tuple[str, Point]]:
    """Return all points with their panels; if quick, only the first and the last point of each panel."""
    return [(panel, point) for panel, points in panels.items() for point in points[:: len(points) - 1 if quick else 1]]


def network(cfg: DictConfig, point: Point, seed: int) -> Topology:
    """Return the topology of a point in one draw."""
    topology = build_topology(with_values(cfg, {**point, "seed": seed}))
    assert isinstance(topology, Topology)
    return topology


@contextmanager
def unfinished(name: str, quick: bool = False) -> Iterator[Memory]:
    """Keep the completed draws of a figure until all are complete, so that a stopped run continues."""
    memory = Memory(Path("outputs", "unfinished", f"{name} quick" if quick else name), verbose=0)
    yield memory
    memory.clear(warn=False)


def in_parallel(
    title: str, jobs: int, memory: Memory, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """Return `function(*each)` for each of the arguments, in their order, computed in processes of one thread."""
    cached, console, results = memory.cache(function), Console(), []
    with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=1), Progress(console=console) as progress:
        task = progress.add_task(title, total=len(arguments))
        for result in Parallel(return_as="generator")(delayed(cached)(*each) for each in arguments):
            results.append(result)
            progress.advance(task)
            console.progress_line(f"{title}: {len(results)} of {len(arguments)}")
    return results


def mean_rows(rows: Iterable[Row], by: Sequence[str], spread: Sequence[str] = ()) -> list[Row]:
    """Average the rows that agree in the columns `by`; the columns `spread` get a standard error."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in by), []).append(row)
    means = []
    for key, group in groups.items():
        mean = dict(zip(by, key, strict=True))
        for column in (column for column in group[0] if column not in by):
            values = [row[column] for row in group]
            mean[column] = float(np.mean(values))
            if column in spread:
                se = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
                mean[f"{column} ±"] = se
        means.append(mean)
    return means


def save(name: str, out: Path, rows: Sequence[Row], figure: Figure) -> None:
    """Write the rows as CSV, and the picture as PNG and PDF, to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([rows[0], *([_cell(value) for value in row.values()] for row in rows)])
    write_whole(out / f"{name}.csv", table.getvalue())
    for kind in ("png", "pdf"):
        with replacing(out / f"{name}.{kind}") as file:
            metadata = {"CreationDate": None} if kind == "pdf" else None  # the same picture gives the same file
            figure.savefig(file, format=kind, dpi=90, metadata=metadata)


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def finish(figure: Figure, title: str, handles: Mapping[str, Any], columns: int) -> None:
    """Add the title and the legend, and start the axes at zero, once all lines are drawn."""
    for axes in figure.axes:
        axes.set_ylim(0)
    figure.suptitle(title)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)


def legend(axes: Axes) -> dict[str, Any]:
    """Return the handles of the legend by label."""
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def lines(axes: Axes, x: str, rows: Sequence[Row], y: str, curves: Iterable[str]) -> None:
    """Draw a line for each curve from the rows of one panel."""
    for curve in curves:
        color, line, marker, label = STYLES[curve]
        here = [row for row in rows if row["curve"] == curve]
        (drawn,) = axes.plot([row[x] for row in here], [row[y] for row in here], line, color=color, marker=marker)
        drawn.set(label=label, markersize=5, zorder=2.1 if curve == EQUAL else 2)  # visible where it equals the paper's
        drawn.set_markerfacecolor("none" if curve in (PAPER, BEST) else color)
    axes.grid(alpha=0.3)
    axes.set_xlabel(LABELS[x])


def savings(title: str, x: str, rows: Sequence[Row], keys: Sequence[str], y: str) -> Table:
    """Return a table of what each coded curve saves [%]; `keys` and x name its rows."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in (*keys, x):
        table.add_column(column)
    for curve in CODED:
        table.add_column(curve, justify="right")
    saved: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        saved.setdefault((*(str(row[key]) for key in keys), f"{row[x]:g}"), {})[row["curve"]] = row[y]
    for key, by_curve in saved.items():
        table.add_row(*key, *(f"{by_curve[curve]:.1f}" for curve in CODED))
    return table
