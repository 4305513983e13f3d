"""What the five figures have in common: their curves, draws side by side, what is kept of them, and the picture.

A *panel* is a setting and its points, each of them values of settings, such as {"H": 5, "K": 40}, over the experiment
of that name in `conf/experiment`. A *draw* is all points with one seed.
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
from places import data_in
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
"""Scheme and aggregators of each."""
STYLES = {  # lines and markers tell them apart in grey, too
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
    """Of the command line."""

    draws: int
    jobs: int
    quick: bool
    out: Path
    data: dict[str, str]  # settings that choose each data set, as a shell would read them


def options(about: str | None, sets: Mapping[str, str] | None = None) -> Options:
    """Read the command line.

    Args:
        about: the script's docstring.
        sets: data sets by name, and what chooses them, to be told where they are; none by default.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, help="50, or 2 with --quick")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; by default one for each core")
    parser.add_argument("--quick", action="store_true", help="the ends of each curve, little data: does it run?")
    parser.add_argument("--out", type=Path, help="folder; experiments/results, or outputs with --quick")
    for name in sets or {}:
        parser.add_argument(f"--{name.lower()}", default="data", help=f"where {name} is, or is downloaded to")
    given = parser.parse_args()
    data = {}
    for name, chosen in (sets or {}).items():
        data[name] = f"{chosen} {shlex.quote(data_in(getattr(given, name.lower())))}"
    out = given.out or (Path("outputs") if given.quick else RESULTS)
    return Options(given.draws or (2 if given.quick else 50), 1 if given.quick else given.jobs, given.quick, out, data)


def points(panels: Panels, quick: bool) -> list[tuple[str, Point]]:
    """All of them, with their panel; of each panel the first and the last where it has to be quick."""
    return [(panel, point) for panel, all_ in panels.items() for point in (all_[:: len(all_) - 1] if quick else all_)]


def network(cfg: DictConfig, point: Point, seed: int) -> Topology:
    """Who hears whom in a draw."""
    topology = build_topology(with_values(cfg, {**point, "seed": seed}))
    assert isinstance(topology, Topology)
    return topology


@contextmanager
def kept(name: str, quick: bool = False) -> Iterator[Memory]:
    """Where finished parts of a figure are kept until all are: a run that was stopped goes on with the same command."""
    memory = Memory(Path("outputs", "unfinished", f"{name} quick" if quick else name), verbose=0)
    yield memory
    memory.clear(warn=False)


def side_by_side(
    what: str, ask: Options, memory: Memory, function: Callable[..., Any], parts: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """`function(*part)` for each of the parts, one thread each, in their order."""
    once, console, found = memory.cache(function), Console(), []
    with parallel_config("loky", n_jobs=ask.jobs, inner_max_num_threads=1), Progress(console=console) as progress:
        task = progress.add_task(what, total=len(parts))
        for result in Parallel(return_as="generator")(delayed(once)(*part) for part in parts):
            found.append(result)
            progress.advance(task)
            console.progress_line(f"{what}: {len(found)} of {len(parts)}")
    return found


def mean(rows: Iterable[Row], by: Sequence[str], spread: Sequence[str] = ()) -> list[Row]:
    """Rows that agree in the columns `by` become one, of means; of some columns with the standard error."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in by), []).append(row)
    means = []
    for key, group in groups.items():
        found = dict(zip(by, key, strict=True))
        for column in (column for column in group[0] if column not in by):
            values = [row[column] for row in group]
            found[column] = float(np.mean(values))
            if column in spread:
                se = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
                found[f"{column} ±"] = se
        means.append(found)
    return means


def save(name: str, out: Path, rows: Sequence[Row], figure: Figure) -> None:
    """Leave rows as CSV and the picture as PNG and PDF in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([rows[0], *([_cell(value) for value in row.values()] for row in rows)])
    write_whole(out / f"{name}.csv", table.getvalue())
    for kind in ("png", "pdf"):
        with replacing(out / f"{name}.{kind}") as file:
            about = {"CreationDate": None} if kind == "pdf" else None  # the same picture, the same file
            figure.savefig(file, format=kind, dpi=90, metadata=about)


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def read(path: Path) -> list[Row]:
    """What `save` wrote, numbers as numbers."""
    with path.open(newline="") as file:
        return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def finish(figure: Figure, title: str, handles: Mapping[str, Any], columns: int) -> None:
    """Title, legend and axes from zero up, once all lines are drawn."""
    for axes in figure.axes:
        axes.set_ylim(0)
    figure.suptitle(title)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)


def legend(axes: Axes) -> dict[str, Any]:
    """Handles by label."""
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def lines(axes: Axes, x: str, rows: Sequence[Row], y: str, curves: Iterable[str]) -> None:
    """A line for each curve, of the rows of one panel."""
    for curve in curves:
        color, line, marker, label = STYLES[curve]
        here = [row for row in rows if row["curve"] == curve]
        (drawn,) = axes.plot([row[x] for row in here], [row[y] for row in here], line, color=color, marker=marker)
        drawn.set(label=label, markersize=5, zorder=2.1 if curve == EQUAL else 2)  # above the paper's, often the same
        drawn.set_markerfacecolor("none" if curve in (PAPER, BEST) else color)
    axes.grid(alpha=0.3)
    axes.set_xlabel(LABELS[x])


def savings(title: str, x: str, rows: Sequence[Row], keys: Sequence[str], y: str) -> Table:
    """A table of what each coded curve saves [%], rows named by `keys` and x."""
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in (*keys, x):
        shown.add_column(column)
    for curve in CODED:
        shown.add_column(curve, justify="right")
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        found.setdefault((*(str(row[key]) for key in keys), f"{row[x]:g}"), {})[row["curve"]] = row[y]
    for key, of in found.items():
        shown.add_row(*key, *(f"{of[curve]:.1f}" for curve in CODED))
    return shown
