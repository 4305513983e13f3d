"""`experiments/error_by_bits.py`: the bits that it counts, and its table, sentence and picture."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "experiments"))
try:
    experiment = import_module("error_by_bits")
finally:
    sys.path.pop(0)


def test_a_round_of_sums_is_four_ivs() -> None:
    common, methods = experiment.DATA["5,000 digits"]
    points = experiment.curve(f"{common} {methods['mean, sums']} K=10 dataset.rows_per_user=20", 0, 3)
    per_round = [mbit / n for n, (mbit, _) in enumerate(points, 1)]
    assert per_round == pytest.approx([4 * 784 * 64 / 1e6] * 3, rel=0.02)
    assert experiment.curve(f"{common} {methods['local']} K=10 dataset.rows_per_user=20", 0, 1)[0][0] == 0


def test_error_within_a_budget() -> None:
    points = experiment.mean_curve([[(1.0, 0.3), (2.0, 0.2)], [(3.0, 0.1), (4.0, 0.0)]])
    assert points == [(2.0, 0.2), (3.0, 0.1)]
    assert [experiment.error_within(points, budget) for budget in (1, 2, 2.5, 100)] == [None, 0.2, 0.2, 0.1]


def test_table_sentence_and_picture() -> None:
    curves = {"data": {"mean, sums": [(2.0, 0.2), (40.0, 0.1)], "local": [(0.0, 0.3), (0.0, 0.15)]}}
    best = "; ".join(f"15.00% within {budget} Mbit (local)" for budget in experiment.BUDGETS)
    assert experiment.best_methods("data", curves["data"]) == f"data, smallest error: {best}."
    console = Console(record=True, width=80)
    console.print(experiment.budget_table("data", curves["data"]))
    assert "20.00" in console.export_text()
    (axes,) = experiment.draw(curves, 3).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mean, sums", "local: no bits"]
