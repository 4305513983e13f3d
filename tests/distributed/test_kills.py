"""A site whose nodes are killed and suspended at random ends where an undisturbed run ends."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "network" / "kills.py"


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("algorithm=cocoa", "lam=10", "communicator=sums")], ids=" ".join)
def test_a_site_survives_kills(tmp_path: Path, words: tuple[str, ...]) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "site"), "kills=5", "checkpoint_every=3", *words]
    played = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert played.returncode == 0, played.stdout
