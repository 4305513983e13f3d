"""The console: tables whose numbers are never wrapped, and lines of progress if output is not a terminal."""

import re
import time
from dataclasses import dataclass
from typing import NoReturn

import rich.console
from rich.cells import cell_len
from rich.console import ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 60.0  # if output is not a terminal


@dataclass(frozen=True)
class WrappedSettings:
    """A table cell with settings or a path; a narrow terminal wraps it at spaces and after `=`, `/` or `,`."""

    text: str

    def __rich_measure__(self, console: rich.console.Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(cell_len, _pieces(self.text)), default=0), cell_len(self.text))

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> RenderResult:
        width, lines = options.max_width, [""]
        for setting in self.text.split():
            for n, piece in enumerate([setting] if cell_len(setting) <= width else _pieces(setting)):
                longer = f"{lines[-1]} {piece}".lstrip() if n == 0 else lines[-1] + piece
                if cell_len(longer) <= width:
                    lines[-1] = longer
                else:
                    lines.append(piece)
        yield Text("\n".join(lines))


def _pieces(text: str) -> list[str]:
    """Return the pieces between which a line may break."""
    return re.findall(r"[^\s=/,]+[=/,]?|[=/,]", text)


class Console(rich.console.Console):
    """Standard output; a closed pipe raises BrokenPipeError, which the command line handles."""

    def __init__(self) -> None:
        super().__init__(highlight=False)
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def on_broken_pipe(self) -> NoReturn:
        raise

    def table(self, table: Table) -> None:
        """Print a table: a narrow terminal wraps text, but not numbers, even if lines become longer than it is."""
        wide = self.options.update(max_width=10_000)
        for column in table.columns:
            column.no_wrap = column.justify == "right"
            cells = column.header, *column.cells
            column.min_width = max(Measurement.get(self, wide, cell).minimum for cell in cells)
        if Measurement.get(self, wide, table).maximum > self.width:
            for column in table.columns:
                if column.no_wrap:
                    column.header = str(column.header).replace(" ", "\n")
            table.width = max(Measurement.get(self, wide, table).minimum, self.width)
        self.print(table, crop=False)

    def progress_line(self, line: str) -> None:
        """Print a line of progress if output is not a terminal and the last line is at least a minute old."""
        if not self.is_terminal and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            self.print(line, soft_wrap=True)
