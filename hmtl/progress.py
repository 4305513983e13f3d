"""What a computation is at, told on a terminal once it has taken a second."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.status import Status

SECONDS = 1.0


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Tell that `what` is under way, and what `hmtl.coding` logs of it, if it takes more than a second.

    On standard error, where that is a terminal; its line is wiped out at the end.
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
        if self.status:
            self.status.update(f"{self.what}: {record.getMessage()}")
