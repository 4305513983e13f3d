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
import pandas as pd
from joblib import Memory, Parallel, delayed, parallel_config
from matplotlib.axes import Axes
from omegaconf import DictConfig
from paths import data_path
from rich import box
from rich.progress import Progress
from rich.table import Table

from hmtl.config.build import build_topology
from hmtl.io.files import write_whole
from hmtl.reporting.console import Console
from hmtl.reporting.style import OKABE_ITO, Picture, curve_styles
from hmtl.topology import Topology
from hmtl.tuning.grid import with_values

RESULTS = Path(__file__).parent / "results"
Point = Mapping[str, float]
Panels = Mapping[str, Sequence[Point]]
Row = dict[str, Any]

UNCODED, EQUAL, PAPER, ALL, BEST, BOUND = "uncoded", "equal", "paper", "all relays", "best aggregators", "Theorem 2"
CODED = {EQUAL: ("equal", "all"), PAPER: ("paper", "all"), ALL: ("optimal", "all"), BEST: ("optimal", "auto")}
"""Scheme and aggregators of each coded curve."""
LOOKS = {
    UNCODED: {"label": "uncoded", "color": "silver", "marker": "", "linestyle": "-"},
    EQUAL: {"label": "all relays, equal allocation", "color": OKABE_ITO["orange"]},
    PAPER: {"label": "all relays, the paper's scheme", "color": OKABE_ITO["vermilion"]},
    ALL: {"label": "all relays, optimal", "color": OKABE_ITO["blue"]},
    BEST: {"label": "best aggregators", "color": OKABE_ITO["green"], "linestyle": "-"},
    BOUND: {"label": "all relays, Theorem 2", "color": "black", "marker": ""},
}
STYLES = {curve: style | look for style, (curve, look) in zip(curve_styles(len(LOOKS)), LOOKS.items(), strict=True)}
LABELS = {"K": "users K", "r": "relays per user r", "d": "heterogeneity d"}


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    Attributes:
        draws: number of draws.
        jobs: number of processes; −1 for one per core.
        quick: whether to compute only the ends of each curve.
        redraw: whether to draw recorded results, and compute nothing.
        out: folder of the results.
        data: settings that choose each data set, by its name, quoted as for a shell.
    """

    draws: int
    jobs: int
    quick: bool
    redraw: bool
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
    parser.add_argument("--redraw", action="store_true", help="only draw the picture of the recorded results")
    parser.add_argument("--out", type=Path, help="folder; by default experiments/results, or outputs with --quick")
    for name in data_sets or {}:
        parser.add_argument(f"--{name.lower()}", default="data", help=f"folder of {name}, which may be downloaded")
    args = parser.parse_args()
    data = {}
    for name, settings in (data_sets or {}).items():
        data[name] = f"{settings} {shlex.quote(data_path(getattr(args, name.lower())))}"
    out = args.out or (Path("outputs") if args.quick else RESULTS)
    draws, jobs = args.draws or (2 if args.quick else 50), 1 if args.quick else args.jobs
    return Options(draws, jobs, args.quick, args.redraw, out, data)


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


def save(name: str, out: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([rows[0], *([_cell(value) for value in row.values()] for row in rows)])
    write_whole(out / f"{name}.csv", table.getvalue())


def recorded(name: str, out: Path) -> list[Row]:
    """Return the rows that `save` wrote."""
    rows: list[Row] = pd.read_csv(out / f"{name}.csv").to_dict("records")
    return rows


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def finish(figure: Picture, x: str) -> None:
    """Label the axes, start them at zero, and add the legend, once all curves are drawn."""
    handles = {}
    for axes in figure.axes:
        axes.grid()
        axes.set_xlabel(LABELS[x])
        axes.set_ylim(0)
        axes.tick_params(labelbottom=True)
        handles |= {handle.get_label(): handle for handle in axes.get_legend_handles_labels()[0]}
    figure.fit_legend(list(handles.values()), "outside lower center")


def lines(axes: Axes, x: str, rows: Sequence[Row], y: str, curves: Iterable[str]) -> None:
    """Draw a line for each curve from the rows of one panel."""
    for curve in curves:
        here = [row for row in rows if row["curve"] == curve]
        axes.plot([row[x] for row in here], [row[y] for row in here], **STYLES[curve])


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
