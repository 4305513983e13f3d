"""What is printed: tables whose numbers stay whole, and a line now and then where nobody sees a bar move."""

import time
from typing import NoReturn

import rich.console
from rich.measure import Measurement
from rich.table import Table

SECONDS = 60.0  # from one line to the next, where output is no terminal


class Console(rich.console.Console):
    """Standard output; a reader who goes away is an error for the command line to deal with."""

    def __init__(self) -> None:
        super().__init__(highlight=False)
        self._next = time.monotonic() + SECONDS

    def on_broken_pipe(self) -> NoReturn:
        raise

    def table(self, table: Table) -> None:
        """Print a table: in a narrow terminal words are wrapped, and numbers are not, though lines get too long."""
        for column in table.columns:
            column.no_wrap = column.justify == "right"
            words = (word for cell in (column.header, *column.cells) for word in str(cell).split())
            column.min_width = max(map(len, words), default=0)
        wide = self.options.update(max_width=10_000)
        if Measurement.get(self, wide, table).maximum > self.width:
            for column in table.columns:
                if column.no_wrap:
                    column.header = str(column.header).replace(" ", "\n")
            table.width = max(Measurement.get(self, wide, table).minimum, self.width)
        self.print(table, crop=False)

    def now_and_then(self, line: str) -> None:
        """Print a line that tells how far one is, if this is no terminal and the last one is a while ago."""
        if not self.is_terminal and time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS
            self.print(line, soft_wrap=True)
