"""`experiments/loads.py` on one draw: files, and the order that theory demands."""

import csv
import runpy
import sys
from importlib import import_module
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"


def check(path: Path) -> None:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    for row in rows:
        for direction in ("uplink", "downlink"):
            bound, optimal, paper, uncoded = (
                float(row[f"{curve} {direction}"]) for curve in ("Theorem 2", "all relays", "paper", "uncoded")
            )
            assert 0 < bound <= optimal + 1e-9 <= paper + 2e-9
            assert optimal <= uncoded
            assert direction == "uplink" or optimal == bound
        paper, optimal, best = (float(row[f"{curve} saved %"]) for curve in ("paper", "all relays", "best aggregators"))
        assert 0 <= paper <= optimal + 1e-9 <= best + 2e-9


def test_one_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["loads.py", str(tmp_path), "--draws", "1"])
    runpy.run_path(str(EXPERIMENTS / "loads.py"), run_name="__main__")
    assert "Fig. 4" in capsys.readouterr().out
    assert (tmp_path / "loads.png").read_bytes().startswith(b"\x89PNG")
    check(tmp_path / "loads.csv")


def test_recorded_means_of_50_draws() -> None:
    check(EXPERIMENTS / "expected" / "loads.csv")


def test_savings_of_20_draws_known_from_elsewhere() -> None:
    """Of all time to send, any 3 of 5 relays: figures found by code that shares nothing with this."""
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        loads = import_module("loads")
    finally:
        sys.path.remove(str(EXPERIMENTS))
    for K, known in ((10, (17.4, 20.5, 34.5)), (40, (22.1, 24.4, 31.6))):
        networks = [loads.any_3_of(5)(K, seed) for seed in range(20)]
        for curve, percent in zip(loads.SAVING, known, strict=True):
            mean = sum(loads.saving(t, loads.CURVES[curve](t)) for t in networks) / 20
            assert mean == pytest.approx(percent, abs=0.051)
