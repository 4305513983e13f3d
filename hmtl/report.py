"""What runs and sweeps came to, in one table, as CSV and as a picture: `python -m hmtl.report FOLDER ...`.

FOLDER is a run's, a sweep's, or one that such are in. Of each run that has ended there is a line in the table and in
FOLDER/report.csv, and a curve in FOLDER/report.png: error against bits between relays and server, and against seconds,
with the same run uncoded beside it. `output=NAME` writes NAME.csv and NAME.png instead.
"""

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hmtl.config.command_line import exit_status
from hmtl.errors import ConfigError, DataError
from hmtl.io.files import as_csv, replacing, write_whole
from hmtl.reporting.console import Console, Words
from hmtl.training.folder import overrides

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from hmtl.reporting.style import Picture

OUTER = ("users_to_relays", "relays_to_users")
MIDDLE = ("relays_to_server", "server_to_relays")  # the tiers that coding is for
TOLD = ("algorithm", "dataset", "communicator", "K", "H", "r", "seed", "rounds")  # of a summary, in report.csv
NEEDED = (*TOLD, "V_bits", "time", "error_measure")  # of a summary; another program may leave files of that name
SPENT = ("compute_s", "communication_s", "total_s", "uncoded_communication_s", "uncoded_total_s")  # of a summary's time
MEASURED = (*(f"bits/{tier}" for tier in (*OUTER, *MIDDLE)), "users", "compute_s", "communication_s", "uncoded_s")
"""In each round."""
MOST_CURVES = 7  # in colour, with a name each; the others are grey
MARKERS = "os^DvPX"  # told apart in grey print, too


@dataclass(frozen=True)
class Done:
    """A run that has ended.

    Args:
        folder: its own.
        summary: its `summary.json`.
        overrides: what its command line set.
    """

    folder: Path
    summary: Mapping[str, Any]
    overrides: tuple[str, ...]

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """What was measured in each round."""
        path = self.folder / "metrics.csv"
        try:
            with path.open(newline="") as file:
                rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
            _check(MEASURED, *(rows or [{}]))
            _check([self.error], *[row for row in rows if self.error in row] or [{}])  # not each round is evaluated
            return rows
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error}): leave that run out.") from error

    def mbit(self, row: Mapping[str, float]) -> float:
        """Between relays and server in a round, both ways."""
        return (row[f"bits/{MIDDLE[0]}"] + row[f"bits/{MIDDLE[1]}"]) / 1e6

    def uncoded_mbit(self, row: Mapping[str, float]) -> float:
        """The same, had all been sent on plainly: what users sent, and what they got."""
        if "loads_uncoded" not in self.summary:
            return sum(row[f"bits/{tier}"] for tier in OUTER) / 1e6
        up, down = (self.summary["loads_uncoded"][tier] for tier in MIDDLE)  # where less is sent: of all K users
        IVs = up * row["users"] / self.summary["K"] + down * (row["users"] > 0)
        return float(IVs * self.summary["V_bits"]) / 1e6

    @property
    def error(self) -> str:
        """The name of the error that tells most: on rows to test on, where there are any."""
        return "test_error" if "test_error" in self.summary else "train_error"

    @property
    def measure(self) -> str:
        """On which rows, and what that error is."""
        return f"{self.error.split('_')[0]}, {self.summary['error_measure']}"


def find(folders: Iterable[Path]) -> list[Done]:
    """Runs in these folders and below, in the order of their names.

    Raises:
        DataError: there are none, or a file in them is damaged.
    """
    runs: dict[Path, Done] = {}
    for folder in folders:
        paths = sorted(folder.rglob("summary.json"), key=lambda path: [*map(_natural, path.parts)])
        if not paths:
            raise DataError(f"{folder} holds no run that has ended: give the folder of a run or a sweep.")
        for path in paths:
            try:
                summary = json.loads(path.read_text())
                _check(NEEDED, summary)
                _check(SPENT, summary["time"])
                runs.setdefault(path.resolve(), Done(path.parent, summary, tuple(overrides(path.parent))))
            except (OSError, ValueError, TypeError) as error:
                raise DataError(f"{path} cannot be read ({error}): leave that run out.") from error
    return [*runs.values()]


def _check(names: Sequence[str], *found: Mapping[str, Any]) -> None:
    for name in names:
        if not all(name in each for each in found):
            raise ValueError(f"it has no {name}")


def names(runs: Sequence[Done]) -> list[str]:
    """What tells each run from the others: words of its command line that not all have, else its folder."""
    common = set.intersection(*(set(run.overrides) for run in runs))
    own = [" ".join(word for word in run.overrides if word not in common) for run in runs]
    return own if all(own) and len(set(own)) == len(own) else [str(run.folder) for run in runs]


def table(runs: Sequence[Done]) -> Table:
    """A line for each run."""
    shown = Table(
        title=f"{len(runs)} run{'s' * (len(runs) > 1)}; Mbit: between relays and server", title_justify="left"
    )
    shown.add_column("run")
    several = len({run.measure for run in runs}) > 1  # which no column of errors can be read without
    if several:
        shown.add_column("error is")
    for name in ("rounds", "error", "worst user", "Mbit", "s", "saved"):
        shown.add_column(name, justify="right")
    for name, row in zip(names(runs), lines(runs), strict=True):
        saved = row["communication_saved"]
        error = [f"{row[each]:.4f}" if isinstance(row[each], float) else "" for each in ("error", "error_worst")]
        times = [f"{row[each]:.3g}" for each in ("Mbit", "total_s")]
        shown.add_row(
            Words(name),
            *[row["measure"]][:several],
            str(row["rounds"]),
            *error,
            *times,
            f"{saved:.1%}" if saved != "" else "",
        )
    return shown


def lines(runs: Sequence[Done]) -> Iterator[dict[str, Any]]:
    """The numbers of the table, and what else tells runs apart."""
    for name, run in zip(names(runs), runs, strict=True):
        summary, time = run.summary, run.summary["time"]
        plain = time["uncoded_communication_s"]
        yield {
            "run": name,
            "folder": str(run.folder),
            **{key: summary[key] for key in TOLD},
            "measure": run.measure,
            "error": summary.get(run.error, ""),
            "error_worst": summary.get(f"{run.error}_worst", ""),
            "gap": summary.get("gap", ""),
            "Mbit": sum(map(run.mbit, run.rows)),
            "Mbit_uncoded": sum(map(run.uncoded_mbit, run.rows)),
            **{key: time[key] for key in ("compute_s", "communication_s", "total_s", "uncoded_total_s")},
            "communication_saved": 1 - time["communication_s"] / plain if plain else "",
        }


def draw(runs: Sequence[Done]) -> "Picture":
    """Error against bits and against seconds, from round to round; dashed: the same run uncoded."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    from hmtl.reporting.style import Picture

    figure = Picture(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    best = sorted(range(len(runs)), key=lambda n: runs[n].summary.get(runs[n].error, math.inf))[:MOST_CURVES]
    for n, (name, run) in enumerate(zip(names(runs), runs, strict=True)):
        style = _style(best.index(n), name) if n in best else {"color": "0.8", "zorder": 1}
        plain = {"color": style["color"], "linestyle": "--", "linewidth": 1, "zorder": 2}
        errors = [row[run.error] for row in run.rows if run.error in row]
        at = [round for round, row in enumerate(run.rows) if run.error in row]
        if not any(map(run.mbit, run.rows)):
            left.plot([], [], **style)
            left.axhline(errors[-1], color=style["color"], linestyle=":")
        else:
            _curve(left, map(run.mbit, run.rows), at, errors, style)
            if n in best and run.summary["communicator"] != "uncoded":
                _curve(left, map(run.uncoded_mbit, run.rows), at, errors, plain)
        _curve(right, (row["compute_s"] + row["communication_s"] for row in run.rows), at, errors, style)
        if n in best and run.summary["communicator"] != "uncoded":
            _curve(right, (row["uncoded_s"] for row in run.rows), at, errors, plain)
    kinds = sorted({run.measure.replace(",", " error:", 1) for run in runs})
    ylabel = ",\nor ".join(kinds) + (",\n" if len(kinds) > 1 else ", ") + "mean over users"
    left.set(xlabel="sent between relays and server [Mbit]", ylabel=ylabel)
    right.set(xlabel="time, compute and communication [s]")
    for axes in (left, right):
        if axes.dataLim.minposx == math.inf:  # nobody sent anything
            axes.set_xticks([])
            continue
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        if high < 100 * low:  # powers of ten would be few numbers, or none, and all multiples run into each other
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(4))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
    right.plot([], [], "k--", linewidth=1, label="dashed: the same uncoded")
    if len(runs) > MOST_CURVES:
        right.plot([], [], color="0.8", label=f"the other {len(runs) - MOST_CURVES}, of larger errors")
    handles: dict[str, Artist] = {}
    for axes in (left, right):
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _curve(axes: "Axes", each: Iterable[float], at: Sequence[int], errors: Sequence[float], style: Any) -> None:
    so_far = list(accumulate(each))
    axes.plot([so_far[n] for n in at], errors, **style)


def _style(n: int, name: str) -> dict[str, Any]:
    from hmtl.reporting.style import OKABE_ITO

    mark = {"marker": MARKERS[n], "markevery": 0.15, "markersize": 5}
    short = name if len(name) < 60 else f"…{name[-58:]}"
    shown = "\u200b" * short.startswith("_") + short.replace("$", r"\$")  # or matplotlib hides it, or reads a formula
    return {"color": [*OKABE_ITO.values()][n], "label": shown, "zorder": 3, **mark}


def _natural(part: str) -> tuple[int, int, str]:
    """Sorts the jobs of a sweep as numbers."""
    return (0, int(part), "") if part.isdecimal() else (1, 0, part)


def report(words: Sequence[str]) -> None:
    """Print the table of the runs in the folders that are named, and write CSV and picture.

    Raises:
        HmtlError: what is wrong, and what to do.
    """
    folders = [Path(word) for word in words if not word.startswith("output=")]
    outputs = [word.removeprefix("output=") for word in words if word.startswith("output=")]
    if not folders:
        raise DataError("no folder was given: name those of runs or sweeps, such as multirun/2026-01-31.")
    output = Path(outputs[-1]) if outputs else folders[0] / "report"
    if not output.name:
        raise ConfigError(f"output={outputs[-1]} names no file: give a name without its ending, such as output=all.")
    runs = find(folders)
    write_whole(output.with_name(f"{output.name}.csv"), as_csv(list(lines(runs))))
    picture = output.with_name(f"{output.name}.png")
    with replacing(picture) as file:
        draw(runs).savefig(file, format="png", dpi=130)
    console = Console()
    console.table(table(runs))
    console.print(f"Picture: {picture}; numbers: {output.name}.csv beside it", markup=False, soft_wrap=True)


def main() -> int:
    """The exit status."""
    words = sys.argv[1:]
    if {"--help", "-h"} & set(words):
        print(__doc__, end="")
        return 0
    return exit_status(partial(report, words), "report")


if __name__ == "__main__":
    sys.exit(main())
