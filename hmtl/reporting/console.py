"""The console: tables whose numbers are never wrapped, and the progress of long computations."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import rich.console
from rich.cells import cell_len
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 30.0  # if output is not a terminal
MOST_NAMED = 6  # a sentence that lists more relays is hard to read
LONGEST_WORD = 20  # characters of a word that stays whole in a narrow terminal


class Console(rich.console.Console):
    """Standard output or error; a closed pipe raises BrokenPipeError, which the command line handles."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(highlight=False, stderr=stderr)
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def on_broken_pipe(self) -> NoReturn:
        raise

    def table(self, table: Table) -> None:
        """Print a table: a narrow terminal wraps text, but not numbers, even if lines become longer than it is."""
        for column in table.columns:
            cells = [str(cell) for cell in column.cells]
            whole = cells if column.justify == "right" else " ".join(cells).split()
            column.min_width = min(max(map(cell_len, [*str(column.header).split(), *whole]), default=0), LONGEST_WORD)
            column.overflow = "fold"
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


def names_of(relays: Sequence[int | str], server: bool = False) -> str:
    """Return the names of relays, and of the server if it is added or no relay is given, as part of a sentence."""
    if not relays:
        return "the server"
    names = f"relay{'s' * (len(relays) > 1)} {', '.join(map(str, relays))}"
    if len(relays) > MOST_NAMED:
        names = f"the {len(relays)} relays"
    return "the server and " * server + names


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show the latest log message of `hmtl.coding` on standard error while a computation runs.

    A terminal gets a bar, which is erased at the end; other outputs get a line every 30 seconds.

    Args:
        what: the computation, the start of the line.
    """
    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    bar.add_task(f"{what} ...", total=None)
    handler = _ProgressHandler(what, console, bar)
    log = logging.getLogger("hmtl.coding")
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        with bar:
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


class _ProgressHandler(logging.Handler):
    def __init__(self, what: str, console: Console, bar: Progress) -> None:
        super().__init__()
        self.what, self.console, self.bar = what, console, bar

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self.what}: {record.getMessage()}"
        if isinstance(record.args, tuple) and len(record.args) == 2:  # how much of how much is done
            self.bar.update(self.bar.task_ids[0], completed=record.args[0], total=record.args[1])  # type: ignore[arg-type]
        self.bar.update(self.bar.task_ids[0], description=line)
        self.console.progress_line(line)
