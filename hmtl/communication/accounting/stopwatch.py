"""Who spent how much CPU time in a round."""

from collections.abc import Iterator
from contextlib import contextmanager

from hmtl.clock import cpu_seconds


class Stopwatch:
    """CPU seconds of one round by who spent them, such as `relay 3`, `server` or `global update of relay 3`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, who: str) -> Iterator[None]:
        start = cpu_seconds()
        yield
        self.seconds[who] = self.seconds.get(who, 0.0) + cpu_seconds() - start

    def slowest(self, who: str) -> float:
        """The largest of the times of those whose name starts with `who`; zero where there are none."""
        return max((s for name, s in self.seconds.items() if name.startswith(who)), default=0.0)
