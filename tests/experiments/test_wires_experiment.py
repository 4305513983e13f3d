"""`experiments/wires.py` with one seed, one learner on two sets of data, and two rounds."""

import csv
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import uci_har

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "experiments"))
try:
    experiment = import_module("wires")
finally:
    sys.path.pop(0)


@pytest.mark.slow
def test_regression_and_activities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, keys = tmp_path / "wires.csv", [(data, "task_relationship") for data in ("regression", "HAR by subject")]
    n, x = np.arange(720), np.random.default_rng(0).normal(size=(720, 561))
    uci_har.write(tmp_path / "UCI HAR Dataset", x, n // 30 % 6, n % 30 + 1, n < 540)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(experiment, "METHODS", {key: experiment.METHODS[key] for key in keys})
    options = ["--har", str(tmp_path), "--seeds", "1", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["wires.py", *options])
    experiment.main()
    with out.open() as file:
        table = list(csv.DictReader(file))
    for data, measure in (("regression", "test_r2"), ("HAR by subject", "test_error")):
        rows = [row for row in table if row["data"] == data]
        assert tuple(row["wire"] for row in rows) == experiment.WIRES
        assert {row["measure"] for row in rows} == {measure}
        assert float(rows[0]["difference"]) == 0
        assert float(rows[0]["second_hop_Mbit"]) > 4 * float(rows[2]["second_hop_Mbit"])
