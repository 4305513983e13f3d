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


def test_bits_of_a_round_of_sums() -> None:
    common, methods = experiment.DATA["5,000 digits"]
    settings = f"{common} {methods['mean, sums']} K=10 dataset.rows_per_user=20"
    points = experiment.curve(settings, 0, 3)
    per_round = [mbit / n for n, (mbit, _) in enumerate(points, 1)]
    assert per_round == pytest.approx([(5 / 3 + 1) * 784 * 64 / 1e6] * 3, rel=0.02)
    few_bits = experiment.curve(f"{settings} wire=int4", 0, 3)
    assert few_bits[2][0] - few_bits[1][0] < per_round[0] / 4
    assert experiment.curve(f"{common} {methods['local']} K=10 dataset.rows_per_user=20", 0, 1)[0][0] == 0


def test_last_round_within_a_budget() -> None:
    points = experiment.mean_curve([[(1.0, 0.3), (2.0, 0.2)], [(3.0, 0.1), (4.0, 0.0)]])
    assert points == [(2.0, 0.2, 0.1, 0.3), (3.0, 0.1, 0.0, 0.2)]
    reached = [experiment.within(points, budget) for budget in (1, 2, 2.5, 100)]
    assert reached == [None, points[0], points[0], points[1]]


def test_table_sentence_and_picture() -> None:
    sums = [experiment.Point(2.0, 0.2, 0.1, 0.3), experiment.Point(40.0, 0.1, 0.1, 0.1)]
    local = [experiment.Point(0.0, 0.3, 0.2, 0.4), experiment.Point(0.0, 0.15, 0.1, 0.2)]
    curves = {"data": {("mean, sums", "null"): sums, ("mean, sums", "int4"): sums, ("local", "null"): local}}
    best = "; ".join(f"15.00% within {budget} Mbit (local, wire=null)" for budget in experiment.BUDGETS)
    assert experiment.best_methods("data", curves["data"]) == f"data, smallest error: {best}."
    console = Console(record=True, width=120)
    console.print(experiment.budget_table("data", curves["data"]))
    assert "20.00" in console.export_text()
    picture = experiment.draw(curves, 3)
    assert [axes.get_title() for axes in picture.axes] == ["data, wire=null", "data, wire=int4"]
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mean, sums", "local"]
