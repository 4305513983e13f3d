"""Settings by cross-validation: `python -m hmtl.tune`; what it finds is read by `hmtl.train`."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.table import Table

from hmtl.config.build import build_communicator, build_participation, build_tasks, check
from hmtl.config.command_line import as_experiment, main, search_path
from hmtl.io.files import replacing, write_json, write_whole
from hmtl.reporting.console import Console
from hmtl.training.folder import held
from hmtl.tuning.cross_validation import cross_validate
from hmtl.tuning.grid import combinations, grid_of, is_number, told, with_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {"relative_gap": ("relative gap", ".1e"), "change": ("still changing", ".1%")}
LINES, MARKERS = ("-", "--", "-.", ":"), "osD^v"  # to be told apart in print: 20 pairs


def tune(cfg: DictConfig) -> None:
    """Cross-validate the grid of `cfg`; leaves `tune.json`, `tune.png` and an experiment for `hmtl.train`."""
    check(cfg)
    for values in combinations(grid_of(cfg)):
        check(with_values(cfg, values))
    asked, console, folder = cfg.copy(), Console(), Path(cfg.output_dir)
    tasks, topology = build_tasks(cfg)
    build_communicator(cfg, topology)  # plays no part, but what is tuned here is to be trained
    build_participation(cfg, topology)
    with held(folder):
        result = cross_validate(cfg, tasks, folder / "checkpoint.pt")
        write_json(folder / "tune.json", result)
        with replacing(folder / "tune.png") as file:
            figure(result).savefig(file, format="png", dpi=150)
        (folder / "experiment").mkdir(exist_ok=True)
        write_whole(folder / "experiment" / "tuned.yaml", as_experiment(asked, result["best"]))
    console.table(_table(result))
    for warning in result["warnings"]:
        console.print(f"warning: {warning}", soft_wrap=True)
    console.print(f"best: {told(result['best'])}. To train with it:")
    line = f"  python -m hmtl.train --config-dir {shlex.quote(str(folder))} experiment=tuned {search_path()}"
    console.print(line.rstrip(), markup=False, soft_wrap=True)


def _table(result: Mapping[str, Any]) -> Table:
    table, first = Table(title="Cross-validation", title_justify="left"), result["points"][0]
    measures = [name for name in MEASURES if name in first]
    for name in (*result["grid"], "error", "± sd over folds", *(MEASURES[name][0] for name in measures)):
        table.add_column(name, justify="right")
    for point in result["points"]:
        row = [f"{value:g}" if is_number(value) else str(value) for value in point["values"].values()]
        row += [f"{point['error']:.4f}", f"{point['sd']:.4f}"]
        row += [f"{point[name]:{MEASURES[name][1]}}" for name in measures]
        table.add_row(*row, style="bold" if point["values"] == result["best"] else None)
    return table


def figure(result: Mapping[str, Any]) -> "Figure":
    """Errors over the values of the first setting, one line for each combination of the others."""
    from matplotlib.figure import Figure

    from hmtl.reporting.style import colors

    (name, values), *_ = result["grid"].items()
    lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for point in result["points"]:
        lines.setdefault(tuple(value for other, value in point["values"].items() if other != name), []).append(point)
    numbers = all(map(is_number, values))
    x = values if numbers else [str(value) for value in values]
    picture = Figure(figsize=(7, 4 + 0.1 * len(lines)), layout="constrained")
    axes, shades = picture.subplots(), colors(len(lines))
    for n, points in enumerate(lines.values()):
        others = {other: value for other, value in points[0]["values"].items() if other != name}
        axes.errorbar(
            x,
            [point["error"] for point in points],
            [point["sd"] for point in points],
            label=told(others) or "mean ± sd over folds",
            color=shades[n],
            linestyle=LINES[n % len(LINES)],
            marker=MARKERS[n % len(MARKERS)],
            elinewidth=0.8,
            capsize=3,
        )
    best, where = result["best"], x[values.index(result["best"][name])]
    axes.plot(
        [where],
        [result["error"]],
        "o",
        label="best",
        markersize=14,
        markerfacecolor="none",
        markeredgecolor="black",
    )
    axes.set(xlabel=name, ylabel="validation error, mean over users", title=f"Best: {told(best)}")
    if numbers and values[0] > 0 and values[-1] >= 10 * values[0]:
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    picture.legend(loc="outside lower center", ncols=2, fontsize="small", handlelength=4)  # long enough to show dashes
    return picture


if __name__ == "__main__":
    main(tune, "config")
