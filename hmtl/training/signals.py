"""Being asked to stop, by Ctrl-C or SIGTERM, and finishing first what is in work."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Holds the number of the first SIGINT (Ctrl-C) or SIGTERM that comes; a second one acts as usual.

    Signals can be caught in the main thread only; in another one nothing is.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handler(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        restore()

    def restore() -> None:
        for number, usual in before.items():
            signal.signal(number, usual)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        restore()
