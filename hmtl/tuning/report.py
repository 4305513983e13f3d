"""The result of a cross-validation as a table and as a picture."""

from typing import Any

from rich.table import Table

from hmtl.reporting.console import as_table
from hmtl.reporting.style import Picture, colors
from hmtl.tuning.grid import as_words, is_number


def tuning_table(result: dict[str, Any]) -> Table:
    """Return a table with a line for each combination of values; the best one is bold."""
    name, header, form = "relative_gap", "relative gap", ".1e"
    if name not in result["points"][0]:
        name, header, form = "change", "still changing", ".1%"
    rows = []
    for point in result["points"]:
        values = [f"{value:g}" if is_number(value) else str(value) for value in point["values"].values()]
        rows.append([*values, f"{point['error']:.4f}", f"{point['sd']:.4f}", f"{point[name]:{form}}"])
    table = as_table("Cross-validation", [*result["grid"], "error", "± sd over folds", header], rows, words=0)
    table.rows[[point["values"] for point in result["points"]].index(result["best"])].style = "bold"
    return table


def tuning_figure(result: dict[str, Any]) -> Picture:
    """Draw the errors over the values of the first setting, one line for each combination of the others."""
    name, values = next(iter(result["grid"].items()))
    is_numeric = all(map(is_number, values))
    x = values if is_numeric else [str(value) for value in values]
    lines = len(result["points"]) // len(values)
    picture = Picture(figsize=(7, 4 + 0.1 * lines), layout="constrained")
    axes = picture.subplots()
    for n, color in enumerate(colors(lines)):
        points = result["points"][n::lines]  # the first setting changes last
        errors, sds = ([point[key] for point in points] for key in ("error", "sd"))
        label = as_words({other: value for other, value in points[0]["values"].items() if other != name})
        axes.errorbar(x, errors, sds, label=label or "mean ± sd over folds", color=color, marker="o", capsize=3)
    best = x[values.index(result["best"][name])]
    axes.plot([best], [result["error"]], "kx", label="best", markersize=12)
    axes.set(xlabel=name, ylabel="validation error, mean over users", title=f"Best: {as_words(result['best'])}")
    if is_numeric and values[0] > 0 and values[-1] >= 10 * values[0]:
        axes.set_xscale("log")
    picture.legend(loc="outside lower center", ncols=2, fontsize="small")
    return picture
