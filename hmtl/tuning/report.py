"""The result of a cross-validation as a table and as a picture."""

from rich.table import Table

from hmtl.reporting.console import as_table
from hmtl.reporting.style import Picture, colors
from hmtl.tuning.grid import as_words, is_number
from hmtl.tuning.result import Result

MEASURES = {"relative_gap": ("relative gap", ".1e"), "change": ("still changing", ".1%")}


def tuning_table(result: Result) -> Table:
    """Return a table with a line for each combination of values; the best one is bold."""
    measures = [name for name in MEASURES if getattr(result.points[0], name) is not None]
    rows = []
    for point in result.points:
        values = [f"{value:g}" if is_number(value) else str(value) for value in point.values.values()]
        converged = [f"{getattr(point, name):{MEASURES[name][1]}}" for name in measures]
        rows.append([*values, f"{point.error:.4f}", f"{point.sd:.4f}", *converged])
    headers = [*result.grid, "error", "± sd over folds", *(MEASURES[name][0] for name in measures)]
    table = as_table("Cross-validation", headers, rows, words=0)
    table.rows[[point.values for point in result.points].index(result.best)].style = "bold"
    return table


def tuning_figure(result: Result) -> Picture:
    """Draw the errors over the values of the first setting, one line for each combination of the others."""
    name, values = next(iter(result.grid.items()))
    numbers = all(map(is_number, values))
    x = values if numbers else [str(value) for value in values]
    lines = len(result.points) // len(values)
    picture = Picture(figsize=(7, 4 + 0.1 * lines), layout="constrained")
    axes, shades = picture.subplots(), colors(lines)
    for n in range(lines):
        points = result.points[n::lines]  # the first setting changes last
        others = {other: value for other, value in points[0].values.items() if other != name}
        axes.errorbar(
            x,
            [point.error for point in points],
            [point.sd for point in points],
            label=as_words(others) or "mean ± sd over folds",
            color=shades[n],
            marker="o",
            capsize=3,
        )
    best = x[values.index(result.best[name])]
    axes.plot([best], [result.error], "kx", label="best", markersize=12)
    axes.set(xlabel=name, ylabel="validation error, mean over users", title=f"Best: {as_words(result.best)}")
    if numbers and values[0] > 0 and values[-1] >= 10 * values[0]:
        axes.set_xscale("log")
    picture.legend(loc="outside lower center", ncols=2, fontsize="small")
    return picture
