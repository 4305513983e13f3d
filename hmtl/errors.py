"""Errors that a user can fix. Each message says what is wrong, why, and what to do about it.

The commands print such an error in one line and exit with status 2. Any other exception is a defect and shows its
traceback.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from types import FrameType

MAX_REASON = 300  # characters


class HmtlError(Exception):
    """Base of all errors that a user can fix."""


class Interrupted(Exception):
    """A run that ended early, by Ctrl-C or SIGTERM, after it had saved a checkpoint; `signum` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class ConfigError(HmtlError, ValueError):
    """A setting that is out of range, or settings that contradict each other."""


class TopologyError(HmtlError, ValueError):
    """A topology with a wrong shape, wrong entries or sizes, or a user without a relay."""


class CodingError(HmtlError, ValueError):
    """A code that cannot be built, or that decodes to something else than was sent."""


class RangeError(HmtlError, ValueError):
    """Numbers that are not finite, or too large for fixed-point sums; usually the learner diverges."""


class EngineError(HmtlError, RuntimeError):
    """Processes that cannot connect, or have lost their connection."""


class ProcessLost(EngineError):
    """A process without which the run cannot begin or go on; it may come back.

    Args:
        what: what happened.
        remedy: what to do about it, if the process is not started again by itself.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what} {remedy}")
        self.what = what


class StateLost(EngineError):
    """The present state of the run is lost with who held it; it can go on from the last checkpoint."""


class DataError(HmtlError, ValueError):
    """A data set that is missing or damaged, or that does not fit the task."""


class CheckpointError(HmtlError, ValueError):
    """A checkpoint that cannot be written, is damaged, or belongs to another run."""


def reason(error: BaseException) -> str:
    """Return the type and the text of an error that others' code raised, in one line of limited length."""
    text = " ".join(str(error).split()).rstrip(".")
    text = text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 3]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def few(names: Sequence[str]) -> str:
    """Return the first of many names, for a message."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", shown: Callable[[str], str] = str) -> str:
    """Return a question with the known name nearest to `name`, or the only longer one, as `shown`; else `otherwise`."""
    known = list(known)
    begins = [each for each in known if name and each.startswith(name)]
    near = get_close_matches(name, known, n=1) or begins * (len(begins) == 1)
    return f"Did you mean {shown(near[0])}?" if near else otherwise


def complain(message: str) -> None:
    """Print an error message to stderr."""
    print(f"error: {message}", file=sys.stderr)


def handle_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, as usual, but end the process if it is importing a module.

    NumPy and torch report at length that an import which ended early cannot be repeated.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell's background jobs have it
        signal.signal(signal.SIGINT, _interrupt)


def was_interrupted(error: BaseException | None) -> bool:
    """Return whether an error followed from Ctrl-C, even if other code has replaced KeyboardInterrupt by its own."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or was_interrupted(error.__context__))


def _interrupt(signum: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(128 + signum)
        frame = frame.f_back
    raise KeyboardInterrupt


def run_command(usage: str | None, action: Callable[[Sequence[str]], None]) -> None:
    """Call `action` with the arguments of the command line, or print `usage` if they ask for help.

    Exit with status 2 after an `HmtlError`.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage, end="")
        return
    try:
        action(sys.argv[1:])
    except HmtlError as error:
        complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
