"""Progress of a long computation on standard error, shown once it has taken a second."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.status import Status

SECONDS = 1.0  # before anything is shown
SECONDS_BETWEEN_LINES = 60.0  # if standard error is not a terminal


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show the latest log message of `hmtl.coding` while a computation runs.

    A terminal gets one line, which is erased at the end; other outputs get one line per minute.

    Args:
        what: the computation, the start of the line.
    """
    log = logging.getLogger("hmtl.coding")
    handler = _StatusLine(what)
    level, propagate = log.level, log.propagate
    timer = Timer(SECONDS, handler.start)
    timer.daemon = True
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        handler.stop()
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


class _StatusLine(logging.Handler):
    """A log handler that shows the latest message in one line."""

    def __init__(self, what: str) -> None:
        super().__init__(logging.DEBUG)
        self.what = what
        self.stopped = False
        self.starting = Lock()
        self.status: Status | None = None
        self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def start(self) -> None:
        """Show the line if standard error is a terminal; a timer calls this from its own thread."""
        with self.starting:
            if self.stopped or not sys.stderr.isatty():
                return
            from rich.console import Console

            self.status = Console(stderr=True).status(f"{self.what} ...")
            self.status.start()

    def stop(self) -> None:
        """Erase the line."""
        with self.starting:
            self.stopped = True
            if self.status:
                self.status.stop()

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message."""
        line = f"{self.what}: {record.getMessage()}"
        if self.status:
            self.status.update(line)
        elif not sys.stderr.isatty() and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            print(line, file=sys.stderr)
