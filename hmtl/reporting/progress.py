"""What a computation is at, told once it has taken a second."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.status import Status

SECONDS = 1.0
SELDOM = 60.0  # seconds from one line to the next, where there is no terminal


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Tell that `what` is under way, and what `hmtl.coding` logs of it, if it takes more than a second.

    On standard error: on a terminal, a line that is wiped out at the end; elsewhere a line a minute.
    """
    log, shown = logging.getLogger("hmtl.coding"), _Shown(what)
    before, timer = (log.level, log.propagate), Timer(SECONDS, shown.start)
    timer.daemon = True
    log.addHandler(shown)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        shown.stop()
        log.removeHandler(shown)
        log.setLevel(before[0])
        log.propagate = before[1]


class _Shown(logging.Handler):
    """A line on the terminal that ends with the latest message."""

    def __init__(self, what: str) -> None:
        super().__init__(logging.DEBUG)
        self.what, self.over, self.starting = what, False, Lock()
        self.status: Status | None = None
        self.next = time.monotonic() + SELDOM

    def start(self) -> None:
        with self.starting:
            if self.over or not sys.stderr.isatty():
                return
            from rich.console import Console

            self.status = Console(stderr=True).status(f"{self.what} ...")
            self.status.start()

    def stop(self) -> None:
        with self.starting:
            self.over = True
            if self.status:
                self.status.stop()

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self.what}: {record.getMessage()}"
        if self.status:
            self.status.update(line)
        elif not sys.stderr.isatty() and time.monotonic() >= self.next:
            self.next = time.monotonic() + SELDOM
            print(line, file=sys.stderr)
