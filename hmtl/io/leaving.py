"""Ctrl-C that nothing can swallow: the process ends at once, without an exception that others might catch or print.

An exception ends in whatever `except` of a library is next, or within `__del__`, where Python prints it; and while
modules are imported nobody is there to catch it. So the commands call `leave_at_once` before they import anything else.
"""

import _signal  # type: ignore[import-not-found]  # `signal` takes long to import, and until then Ctrl-C is Python's
import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides
undo: "list[Callable[[], object]]" = []  # what is still to be done then, by whoever is half through something
_leaving: list[int] = []
_status: list[int] = []


def leave_at_once() -> None:
    """From now on SIGINT (Ctrl-C) and SIGTERM end the process, with 128 + their number as its status."""
    for number in (_signal.SIGINT, _signal.SIGTERM):
        _signal.signal(number, _leave)
    atexit.register(_end)  # the first to be registered, and so the last to be called


def leave_with(status: int) -> "NoReturn":
    """The last line of a command."""
    _status.append(status)
    sys.exit(status)


def _end() -> None:
    """Do without what Python does after its last call, as signals are no longer caught there."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # Python has a status of its own for that
        return
    if _status:
        os._exit(_status[0])


def _leave(signum: int, frame: object) -> None:
    if not _leaving:  # else it is a second one, while the first waits for somebody who does not read our output
        _leaving.append(signum)
        for action in (*undo, sys.stdout.flush, sys.stderr.flush, _show_cursor):
            try:
                action()
            except Exception:  # whatever it is, there is nobody to be told
                continue
    os._exit(128 + signum)


def _show_cursor() -> None:
    for fd in (1, 2):
        if os.isatty(fd):
            os.write(fd, SHOW_CURSOR)
