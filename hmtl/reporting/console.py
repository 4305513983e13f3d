"""What is printed: tables whose numbers stay whole, and a line now and then where nobody sees a bar move."""

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

SECONDS = 60.0  # between two lines if the output is not a terminal


@dataclass(frozen=True)
class Words:
    """A cell of settings or a path: in a narrow terminal they go on in the next line after `=`, `/` or `,`."""

    text: str

    def __rich_measure__(self, console: rich.console.Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(cell_len, self._pieces(self.text)), default=0), cell_len(self.text))

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> RenderResult:
        width, lines = options.max_width, [""]
        for word in self.text.split():
            for n, piece in enumerate([word] if cell_len(word) <= width else self._pieces(word)):
                longer = f"{lines[-1]} {piece}".lstrip() if n == 0 else lines[-1] + piece
                lines[-1:] = [longer] if cell_len(longer) <= width else [lines[-1], piece]
        yield Text("\n".join(lines))

    def _pieces(self, text: str) -> list[str]:
        return re.findall(r"[^\s=/,]+[=/,]?|[=/,]", text)


class Console(rich.console.Console):
    """Standard output; a reader who goes away is an error for the command line to deal with."""

    def __init__(self) -> None:
        super().__init__(highlight=False)
        self._next = time.monotonic() + SECONDS

    def on_broken_pipe(self) -> NoReturn:
        raise

    def table(self, table: Table) -> None:
        """Print a table: in a narrow terminal words are wrapped, and numbers are not, though lines get too long."""
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

    def now_and_then(self, line: str) -> None:
        """Print a line of progress if the output is not a terminal and the last line is a minute old."""
        if not self.is_terminal and time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS
            self.print(line, soft_wrap=True)
