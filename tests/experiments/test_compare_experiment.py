"""`experiments/compare.py` with one seed, one method and three rounds."""

import csv
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "compare.py"


@pytest.mark.slow
def test_one_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "compare.csv"
    options = ["--seeds", "1", "--rounds", "3", "--methods", "local", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    with out.open() as file:
        (row,) = csv.DictReader(file)
    assert list(row) == ["method", "test_error", "sd", "worst_relative_gap", "chosen"]
    assert row["method"] == "local"
    assert 0 < float(row["test_error"]) < 0.5
    assert float(row["sd"]) == 0
    assert float(row["worst_relative_gap"]) > 0
    assert row["chosen"].startswith("lam=")
