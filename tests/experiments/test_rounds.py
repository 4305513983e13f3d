"""`experiments/rounds.py`: rounds until a value stays below a bar."""

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
