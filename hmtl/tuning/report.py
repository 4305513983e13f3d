"""The result of a cross-validation as a table and as a picture."""

from typing import Any

import matplotlib
import numpy as np
from rich.table import Table

from hmtl.reporting.console import as_table
from hmtl.reporting.console_logger import SHARE
from hmtl.reporting.style import PAGE, PRINT, Picture, curve_styles
from hmtl.tuning.grid import as_words, is_number


def tuning_table(result: dict[str, Any]) -> Table:
    """Return a table with a line for each combination of values; the best one is bold."""
    certified = "relative_gap" in result["points"][0]
    name, header, form = ("relative_gap", "relative gap", ".4f") if certified else ("change", "still changing", ".1%")
    unit, percent = (100, " [%]") if result["error_measure"] == SHARE else (1, "")
    rows = []
    for point in result["points"]:
        values = [f"{value:g}" if is_number(value) else str(value) for value in point["values"].values()]
        errors = [f"{unit * point[key]:.{2 if percent else 4}f}" for key in ("error", "sd")]
        rows.append([*values, *errors, f"{point[name]:{form}}"])
    table = as_table("Cross-validation", [*result["grid"], f"error{percent}", "± sd over folds", header], rows, words=0)
    table.rows[[point["values"] for point in result["points"]].index(result["best"])].style = "bold"
    return table


@matplotlib.rc_context(PRINT)
def tuning_figure(result: dict[str, Any]) -> Picture:
    """Draw the errors over the values of the first setting, one line for each combination of the others."""
    name, values = next(iter(result["grid"].items()))
    lines = len(result["points"]) // len(values)
    unit, percent = (100, " [%]") if result["error_measure"] == SHARE else (1, "")
    picture = Picture(figsize=(PAGE, 3.6), layout="constrained")
    axes = picture.subplots()
    for n, style in enumerate(curve_styles(lines)):
        points = result["points"][n::lines]  # the first setting changes last
        errors, sds = (np.array([unit * point[key] for point in points]) for key in ("error", "sd"))
        others = {other: value for other, value in points[0]["values"].items() if other != name}
        x = np.arange(len(values)) + 0.3 * (n + 0.5 - lines / 2) / lines  # error bars stand side by side
        style |= {"label": as_words(others) or "mean ± sd over folds", "markevery": 1}
        axes.errorbar(x, errors, sds, capsize=2, **style)
        best = [point["values"] == result["best"] for point in points]
        axes.plot(x[best], errors[best], "kx", label="best" * any(best), markersize=10, zorder=5)
    axes.set_xticks(range(len(values)), [f"{value:g}" if is_number(value) else str(value) for value in values])
    axes.set(xlabel="λ" if name == "lam" else name, ylabel=f"validation error, mean over users{percent}")
    axes.grid()
    picture.fit_legend(axes.get_legend_handles_labels()[0], "outside lower center")
    return picture
