"""`experiments/rounds.py`: rounds until a value stays below a bar, and their cost; and the script with one seed."""

import csv
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "experiments"))
try:
    experiment = import_module("rounds")
finally:
    sys.path.pop(0)


@pytest.mark.parametrize(
    ("values", "rounds"), [((5, 3, 1), 3), ((1, 1, 1), 1), ((5, 1, 5), 4), ((5, 1, 5, 2, 2), 4), ((3, 2), 2)]
)
def test_rounds_until_a_value_stays_below(values: tuple[int, ...], rounds: int) -> None:
    assert experiment.rounds_until(np.array(values), 2) == rounds


def test_cost_over_seeds() -> None:
    value = np.array([[9.0, 1.0, 1.0], [9.0, 9.0, 1.0]])
    tiers = {f"bits/{tier}": np.full((2, 3), 1e6) for tier in ("relays_to_server", "server_to_relays")}
    runs = {**tiers, "compute_s": np.ones((2, 3)), "communication_s": np.ones((2, 3))}
    assert experiment.cost(runs, value, 5.0) == ("2", "2 .. 3", "4", "4.00")
    assert experiment.cost(runs, value, 0.5) == ("> 3", "> 3 .. > 3", "", "")


@pytest.mark.slow
def test_rows_of_other_variants_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rounds.csv"
    for variant in ("4 bits", "default"):
        options = ["--seeds", "1", "--rounds", "5", "--variants", variant, "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["rounds.py", *options])
        experiment.main()
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["MOCHA"] for row in rows if row["data"] == "mnist5k"] == ["default", "4 bits"]
