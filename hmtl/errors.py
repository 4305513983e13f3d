"""What can go wrong by a user's doing. Each message says what is wrong, why, and what to do about it.

The entry points print such an error as one line and exit with 2; anything else is a defect and shows its traceback.
"""

import sys
from collections.abc import Sequence


class HmtlError(Exception):
    """Base of all errors that a user can fix."""


class Interrupted(Exception):
    """A run was asked to stop, by Ctrl-C or SIGTERM, and has saved what it had; `signum` is the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class ConfigError(HmtlError, ValueError):
    """A configuration value is impossible, or two of them contradict each other."""


class TopologyError(HmtlError, ValueError):
    """A network that cannot be: wrong shape, entries, sizes, or a user whom nobody hears."""


class CodingError(HmtlError, ValueError):
    """A code that cannot be built, or whose result is not what was sent."""


class RangeError(HmtlError, ValueError):
    """Numbers too large to be added in fixed point, as those of a learner that diverges."""


class EngineError(HmtlError, RuntimeError):
    """Processes that do not find each other, or that have lost each other."""


class DataError(HmtlError, ValueError):
    """A data set that is missing, damaged, or does not fit the task."""


class CheckpointError(HmtlError, ValueError):
    """A checkpoint that is damaged or belongs to another run."""


def few(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def complain(message: str) -> None:
    """Tell the user of a command what is wrong, in one line."""
    print(f"error: {message}", file=sys.stderr)
