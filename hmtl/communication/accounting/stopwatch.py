"""CPU time of each node in a round."""

from collections.abc import Iterator
from contextlib import contextmanager

from hmtl.cpu_time import cpu_seconds


class Stopwatch:
    """CPU seconds of a round by task, such as `relay 3` or `global update of relay 3`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the CPU time of the enclosed block to what `name` has so far."""
        start = cpu_seconds()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + cpu_seconds() - start

    def slowest(self, prefix: str) -> float:
        """Return the largest time among names that start with `prefix`; zero if there is none."""
        return max((seconds for name, seconds in self.seconds.items() if name.startswith(prefix)), default=0.0)
