"""Signals that ask a run to stop: the current round is finished first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect the number of the first SIGINT (Ctrl-C) or SIGTERM in a list; a second signal acts as usual.

    Python delivers signals to the main thread only. In another thread the list stays empty.
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
