"""The clock of what nodes compute: CPU time, which does not grow with what else a machine does."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_others = threading.local()  # CPU seconds of this thread that count for nobody


def cpu_seconds() -> float:
    """Of this thread; where torch computes by several, of all threads of the process."""
    return _seconds() - getattr(_others, "seconds", 0.0)


@contextmanager
def for_others() -> Iterator[None]:
    """The clock stands still: what a node computes here, it does in place of others, who work side by side."""
    start = _seconds()
    yield
    _others.seconds = getattr(_others, "seconds", 0.0) + _seconds() - start


def _seconds() -> float:
    return time.thread_time() if torch.get_num_threads() == 1 else time.process_time()
