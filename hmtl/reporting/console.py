"""The console: tables whose numbers are never wrapped, and the progress of long computations."""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import rich.console
from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 30.0  # if output is not a terminal
MIN_SAVED = 0.001  # share of a time that is worth a word
MISCLASSIFIED = "share misclassified"  # a measure of errors that is shown in %
LONGEST_WORD = 20  # characters of a word that stays whole in a narrow terminal


class Console(rich.console.Console):
    """Standard output or error; a closed pipe raises BrokenPipeError, which the command line handles."""

    def __init__(self, stderr: bool = False) -> None:
        is_notebook = type(sys.stdout).__module__.startswith("ipykernel.")  # it calls itself a terminal
        no_bars: dict[str, Any] = {"force_jupyter": False, "force_terminal": False} if is_notebook else {}
        super().__init__(highlight=False, stderr=stderr, **no_bars)
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def on_broken_pipe(self) -> NoReturn:
        raise

    def table(self, table: Table) -> None:
        """Print a table: a narrow terminal wraps text, but not numbers; vertical lines go where these need the room."""
        for column in table.columns:
            cells = [str(cell) for cell in column.cells]
            whole = cells if column.justify == "right" else " ".join(cells).split()
            column.min_width = min(max(map(cell_len, [*str(column.header).split(), *whole]), default=0), LONGEST_WORD)
            column.overflow = "fold"
        wide = self.options.update_width(1000)  # any table has room there
        if self.measure(table, options=wide).maximum > self.width:
            for column in table.columns:
                column.max_width = column.min_width if column.justify == "right" else None
        if self.measure(table, options=wide).minimum > self.width:
            _narrow(table)
        self.print(table, crop=False)

    def progress_line(self, line: str) -> None:
        """Print a line of progress if output is not a terminal, at most one every `SECONDS_BETWEEN_LINES`."""
        if not self.is_terminal and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            self.print(line, markup=False, soft_wrap=True)


def as_table(title: str, headers: Sequence[str], rows: Iterable[Iterable[str]], words: int = 1) -> Table:
    """Return a table whose first columns hold words, as many as `words` says, and whose other columns hold numbers."""
    table = Table(title=title, title_justify="left")
    for n, header in enumerate(headers):
        table.add_column(header, justify="left" if n < words else "right")
    for row in rows:
        table.add_row(*map(Text, row))  # plain: brackets are not markup
    return table


def narrow_table(title: str, headers: Sequence[str], rows: Iterable[Iterable[str]], words: int = 1) -> Table:
    """Return a table like `as_table`, for many columns."""
    return _narrow(as_table(title, headers, rows, words))


def _narrow(table: Table) -> Table:
    """Leave out a table's vertical lines, and the space after its last column."""
    table.box, table.padding, table.show_edge, table.pad_edge = box.SIMPLE_HEAD, (0, 1, 0, 0), False, False
    return table


def error_in_words(figures: Mapping[str, Any], error_measure: str) -> str:
    """Return the error on test rows or, without any, on training rows: `test error 7.38 %`."""
    name = "test_error" if "test_error" in figures else "train_error"
    is_share, error = error_measure == MISCLASSIFIED, figures[name]
    return f"{name.replace('_', ' ')} " + (f"{100 * error:.2f} %" if is_share else f"{error:.4g} ({error_measure})")


def saved(seconds: float, forwarding: float) -> float:
    """Return the share of the time of plain forwarding that is saved, or NaN if that takes no time."""
    return round(1 - seconds / forwarding, 12) if forwarding else math.nan


def compared(seconds: float, forwarding: float) -> str:
    """Return a time beside that of plain forwarding in words: `21% less time`, `about as long`, `2.1 times as long`."""
    share = saved(seconds, forwarding)
    if share >= MIN_SAVED:
        return f"{share:.{int(share < 0.1 or 0.99 < share < 1)}%} less time"
    return "about as long" if share > -0.05 else f"{1 - share:.{int(share > -9)}f} times as long"


def share_saved(seconds: float, forwarding: float) -> str:
    """Return what is saved of the time of plain forwarding as a cell of a table: `12.1%`, or empty."""
    share = saved(seconds, forwarding)
    return "" if math.isnan(share) else f"{round(share, 3) + 0.0:.1%}"


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show on a terminal that a computation runs, in a line that is erased at the end."""
    with Console(stderr=True).status(f"{what} ..."):
        yield
