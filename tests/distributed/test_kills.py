"""A site whose nodes are killed and suspended at random ends where an undisturbed run ends."""

import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
from commands import Command

NETWORK = Path(__file__).parents[2] / "experiments" / "network"


def add_scripts() -> None:
    """Let a process import the measure that slows its rounds down."""
    sys.path.insert(0, str(NETWORK))


class Node(Command):
    """A forked command with the parts of `subprocess.Popen` that the script needs."""

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # it has ended, which is no error for `Popen` either
            self.send_signal(signal.SIGKILL)

    def wait(self) -> None:
        self.done()


@pytest.mark.slow
@pytest.mark.parametrize("words", [("algorithm=cocoa", "lam=10", "communicator=sums")], ids=" ".join)
def test_a_site_survives_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    monkeypatch.syspath_prepend(NETWORK)
    kills = import_module("kills")
    monkeypatch.setattr(
        kills.Site, "run", lambda site, *words, log="": Node(*words, cwd=site.folder, prepare=add_scripts)
    )
    monkeypatch.setattr(kills, "ALONE", 300.0)
    assert kills.main([str(tmp_path / "site"), "kills=1", "checkpoint_every=3", *words]) == 0, capsys.readouterr().out
