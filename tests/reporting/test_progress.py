"""Long computations tell on a terminal what they are at, and nowhere else."""

import io
import logging
import sys
from time import monotonic, sleep

import pytest

from hmtl.reporting import progress

LOG = logging.getLogger("hmtl.coding")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, screen: io.StringIO, delay: float) -> str:
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "SECONDS", delay)
    monkeypatch.setenv("TERM", "xterm")
    end = monotonic() + 300
    with progress.progress("Planning"):
        while delay == 0 and isinstance(screen, Terminal) and "step 7" not in screen.getvalue() and monotonic() < end:
            LOG.debug("step %d", 7)
            sleep(0.05)
    return screen.getvalue()


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Planning: step 7" in shown(monkeypatch, Terminal(), 0)


def test_not_elsewhere_nor_of_what_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO(), 0) == ""
    assert shown(monkeypatch, Terminal(), 60) == ""


def test_all_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = LOG.handlers[:], LOG.level, LOG.propagate
    with pytest.raises(ValueError, match="wrong"), progress.progress("Planning"):
        raise ValueError("wrong")
    assert (LOG.handlers, LOG.level, LOG.propagate) == before
