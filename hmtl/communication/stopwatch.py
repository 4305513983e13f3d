"""Who spent how much time in a round."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds of one round by who spent them, such as `relay 3`, `server` or `global update of relay 3`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, who: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[who] = self.seconds.get(who, 0.0) + time.perf_counter() - start

    def slowest(self, who: str) -> float:
        """The largest of the times of those whose name starts with `who`; zero where there are none."""
        return max((s for name, s in self.seconds.items() if name.startswith(who)), default=0.0)
