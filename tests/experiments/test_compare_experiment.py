"""The comparison of learners, on a few rounds: it runs, and writes what it prints."""

import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "compare.py"


def test_one_seed(tmp_path: Path) -> None:
    out = tmp_path / "compare.csv"
    options = ["--seeds", "1", "--rounds", "4", "--methods", "local", "FedU", "--out", str(out)]
    subprocess.run([sys.executable, str(SCRIPT), *options], check=True, capture_output=True)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["data"], row["method"]) for row in rows] == [("mnist5k", "local"), ("mnist5k", "FedU")]
    assert all(0 < float(row["test_error"]) < 0.5 for row in rows)
