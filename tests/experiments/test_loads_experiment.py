"""`experiments/loads.py` on one draw: files, and the order that theory demands."""

import csv
import subprocess
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"


def check(path: Path) -> None:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    for row in rows:
        for direction in ("uplink", "downlink"):
            bound, optimal, paper, uncoded = (
                float(row[f"{curve} {direction}"]) for curve in ("Theorem 2", "optimal", "paper", "uncoded")
            )
            assert 0 < bound <= optimal + 1e-9 <= paper + 2e-9
            assert optimal <= uncoded
            assert direction == "uplink" or optimal == bound


def test_one_draw(tmp_path: Path) -> None:
    command = [sys.executable, str(EXPERIMENTS / "loads.py"), str(tmp_path), "--draws", "1"]
    assert "Fig. 4" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert (tmp_path / "loads.png").read_bytes().startswith(b"\x89PNG")
    check(tmp_path / "loads.csv")


def test_recorded_means_of_50_draws() -> None:
    check(EXPERIMENTS / "expected" / "loads.csv")
