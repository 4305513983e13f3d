"""The table that `report` and a sweep print: error, bits and time of each finished run."""

from collections.abc import Sequence

from rich.table import Table

from hmtl.reporting.console import WrappedSettings
from hmtl.reporting.run_comparison import FinishedRun, comparison_rows


def comparison_table(runs: Sequence[FinishedRun]) -> Table:
    """Return a table with a row per run."""
    title = f"{len(runs)} run{'s' * (len(runs) > 1)}; Mbit: between relays and server"
    table = Table(title=title, title_justify="left")
    several_measures = len({run.error_measure for run in runs}) > 1  # then the errors of a column differ in kind
    table.add_column("run")
    if several_measures:
        table.add_column("error measure")
    for name in ("rounds", "error", "worst user", "Mbit", "s", "saved"):
        table.add_column(name, justify="right")
    for row in comparison_rows(runs):
        table.add_row(
            WrappedSettings(row["run"]),
            *([row["measure"]] if several_measures else []),
            str(row["rounds"]),
            _number(row["error"], ".4f"),
            _number(row["error_worst"], ".4f"),
            _number(row["Mbit"], ".3g"),
            _number(row["total_s"], ".3g"),
            _number(row["communication_saved"], ".1%"),
        )
    return table


def _number(value: float | str, form: str) -> str:
    return "" if value == "" else f"{value:{form}}"
