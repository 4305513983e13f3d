"""The result of a cross-validation as a table and as a picture."""

from typing import TYPE_CHECKING, Any

from rich.table import Table

from hmtl.tuning.grid import as_words, is_number
from hmtl.tuning.result import Point, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {"relative_gap": ("relative gap", ".1e"), "change": ("still changing", ".1%")}
LINES, MARKERS = ("-", "--", "-.", ":"), "osD^v"
"""20 pairs that can be told apart in print."""


def tuning_table(result: Result) -> Table:
    """Return a table with a line for each combination of values; the best one is bold."""
    table = Table(title="Cross-validation", title_justify="left")
    measures = [name for name in MEASURES if getattr(result.points[0], name) is not None]
    for name in (*result.grid, "error", "± sd over folds", *(MEASURES[name][0] for name in measures)):
        table.add_column(name, justify="right")
    for point in result.points:
        row = [f"{value:g}" if is_number(value) else str(value) for value in point.values.values()]
        row += [f"{point.error:.4f}", f"{point.sd:.4f}"]
        row += [f"{getattr(point, name):{MEASURES[name][1]}}" for name in measures]
        table.add_row(*row, style="bold" if point.values == result.best else None)
    return table


def tuning_figure(result: Result) -> "Figure":
    """Draw the errors over the values of the first setting, one line for each combination of the others."""
    from matplotlib.figure import Figure

    from hmtl.reporting.style import colors

    name, values = next(iter(result.grid.items()))
    lines: dict[tuple[Any, ...], list[Point]] = {}
    for point in result.points:
        lines.setdefault(tuple(value for other, value in point.values.items() if other != name), []).append(point)
    numbers = all(map(is_number, values))
    x = values if numbers else [str(value) for value in values]
    picture = Figure(figsize=(7, 4 + 0.1 * len(lines)), layout="constrained")
    axes, shades = picture.subplots(), colors(len(lines))
    for n, points in enumerate(lines.values()):
        others = {other: value for other, value in points[0].values.items() if other != name}
        axes.errorbar(
            x,
            [point.error for point in points],
            [point.sd for point in points],
            label=as_words(others) or "mean ± sd over folds",
            color=shades[n],
            linestyle=LINES[n % len(LINES)],
            marker=MARKERS[n % len(MARKERS)],
            elinewidth=0.8,
            capsize=3,
        )
    best = x[values.index(result.best[name])]
    axes.plot(
        [best],
        [result.error],
        "o",
        label="best",
        markersize=14,
        markerfacecolor="none",
        markeredgecolor="black",
    )
    axes.set(xlabel=name, ylabel="validation error, mean over users", title=f"Best: {as_words(result.best)}")
    if numbers and values[0] > 0 and values[-1] >= 10 * values[0]:
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    picture.legend(loc="outside lower center", ncols=2, fontsize="small", handlelength=4)  # long enough to show dashes
    return picture
