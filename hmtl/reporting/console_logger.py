"""The console during training: a progress bar, or occasional lines, and the report of the finished run."""

from collections.abc import Mapping

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hmtl.reporting.console import Console
from hmtl.reporting.run_report import run_report
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary

SHOWN = (("gap", "gap", ".2e"), ("test_error", "test error", ".4f"))  # measurement, label, format


class ConsoleLogger:
    """A logger that shows progress, gap and test error, and prints the report of the finished run.

    Args:
        rounds: number of rounds of the run.
        console: where to print; standard output by default.
    """

    def __init__(self, rounds: int, console: Console | None = None) -> None:
        self._console = console or Console()
        self._rounds = rounds
        self._progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[status]}"),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=rounds, status="")
        self._latest: Measurements = {}  # not every round is evaluated

    def log(self, row: Measurements) -> None:
        """Show the progress of the run."""
        rounds = int(row["round"]) + 1
        self._latest |= row
        shown = [f"{label} {self._latest[key]:{form}}" for key, label, form in SHOWN if key in self._latest]
        if self._console.is_terminal:
            self._progress.start()
            self._progress.update(self._task, completed=rounds, status="  ".join(shown))
        else:
            self._console.progress_line("  ".join([f"round {rounds}/{self._rounds}", *shown]))

    def finish(self, summary: Summary, pictures: Mapping[str, bytes]) -> None:
        """Print the report of the finished run."""
        self.close()
        for part in run_report(summary):
            if isinstance(part, str):
                self._console.print(part)
            else:
                self._console.table(part)

    def close(self) -> None:
        """Remove the progress bar."""
        if self._progress.live.is_started:
            self._progress.stop()
