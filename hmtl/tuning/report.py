"""The result of a cross-validation as a table."""

from typing import Any

from rich.table import Table

from hmtl.reporting.console import MISCLASSIFIED, as_table
from hmtl.tuning.grid import is_number


def tuning_table(result: dict[str, Any]) -> Table:
    """Return a table with a line for each combination of values; the best one is bold."""
    certified = "relative_gap" in result["points"][0]
    name, header, form = ("relative_gap", "relative gap", ".4f") if certified else ("change", "still changing", ".1%")
    unit, percent = (100, " [%]") if result["error_measure"] == MISCLASSIFIED else (1, "")
    rows = []
    for point in result["points"]:
        values = [f"{value:g}" if is_number(value) else str(value) for value in point["values"].values()]
        errors = [f"{unit * point[key]:.{2 if percent else 4}f}" for key in ("error", "sd")]
        rows.append([*values, *errors, f"{point[name]:{form}}"])
    table = as_table("Cross-validation", [*result["grid"], f"error{percent}", "± sd over folds", header], rows, words=0)
    table.rows[[point["values"] for point in result["points"]].index(result["best"])].style = "bold"
    return table
