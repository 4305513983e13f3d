"""`experiments/wires.py` with one seed, one regression and two rounds."""

import csv
import sys
from importlib import import_module
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "experiments"))
try:
    experiment = import_module("wires")
finally:
    sys.path.pop(0)


@pytest.mark.slow
def test_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, key = tmp_path / "wires.csv", ("regression", "task_relationship")
    monkeypatch.setattr(experiment, "METHODS", {key: experiment.METHODS[key]})
    monkeypatch.setattr(sys, "argv", ["wires.py", "--seeds", "1", "--rounds", "2", "--out", str(out)])
    experiment.main()
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(row["wire"] for row in rows) == experiment.WIRES
    assert {row["measure"] for row in rows} == {"test_r2"}
    assert float(rows[0]["difference"]) == 0
    assert float(rows[0]["second_hop_Mbit"]) > 4 * float(rows[2]["second_hop_Mbit"])
