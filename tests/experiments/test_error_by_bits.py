"""`experiments/error_by_bits.py`: what it counts, and what it says of it."""

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


def test_what_a_budget_gives() -> None:
    points = experiment.mean([[(1.0, 0.3), (2.0, 0.2)], [(3.0, 0.1), (4.0, 0.0)]])
    assert points == [(2.0, 0.2), (3.0, 0.1)]
    assert [experiment.within(points, budget) for budget in (1, 2, 2.5, 100)] == [None, 0.2, 0.2, 0.1]


def test_table_sentence_and_picture() -> None:
    curves = {"data": {"mean, sums": [(2.0, 0.2), (40.0, 0.1)], "local": [(0.0, 0.3), (0.0, 0.15)]}}
    words = (
        "for 1 Mbit 15.00% (local); for 3 Mbit 15.00% (local); for 10 Mbit 15.00% (local); for 30 Mbit 15.00% (local)"
    )
    assert experiment.sentence("data", curves["data"]) == f"data, the least error: {words}."
    console = Console(record=True, width=80)
    console.print(experiment.table("data", curves["data"]))
    assert "20.00" in console.export_text()
    (axes,) = experiment.draw(curves, 3).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mean, sums", "local: no bits"]
