"""How benchmarks take time."""

import statistics
import time
from collections.abc import Callable


def medians(*works: Callable[[], object], repeats: int) -> list[float]:
    """Median seconds of each, taken in turns, so that a busy moment of the machine meets all of them."""
    seconds: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(repeats):
        for work, taken in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]
