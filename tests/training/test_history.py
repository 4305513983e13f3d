"""The history of a run: rows in memory, in a checkpoint and in `metrics.csv`."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from hmtl.communication.accounting.ledger import Sent
from hmtl.training.history import History

ROWS = [
    {"round": 0, "gap": 0.1 + 0.2, "bits/a b": 2**62, "empty": 0},
    {"round": 1, "bits/a b": 0, "empty": 1},
    {"round": 2, "gap": math.inf, "bits/a b": 7, "empty": 0},
    {"round": 3, "gap": -1e-300, "bits/a b": 8, "empty": 0},
]


def filled(path: Path | None, rows: list[dict[str, float]]) -> History:
    history = History(path)
    for row in rows:
        history.append(row)
    return history


def typed(rows: History) -> list[list[tuple[str, float, type]]]:
    return [[(name, value, type(value)) for name, value in row.items()] for row in rows]


def test_rows_are_written_exactly(tmp_path: Path) -> None:
    filled(tmp_path / "metrics.csv", ROWS)
    with (tmp_path / "metrics.csv").open() as file:  # which is complete after each row
        assert list(csv.DictReader(file)) == [
            {name: str(row.get(name, "")) for name in ("round", "gap", "bits/a b", "empty")} for row in ROWS
        ]


def test_columns_may_begin_later_and_hold_nothing(tmp_path: Path) -> None:
    """Also in a resumed history."""
    rows = [{"round": 0, "a": math.nan}, {"round": 1, "a": math.nan, "b": 2}, {"round": 2, "b": 3}]
    path, resumed = tmp_path / "metrics.csv", History(tmp_path / "metrics.csv")
    resumed.load_state_dict(filled(path, rows[:1]).state_dict())
    for row in rows[1:]:
        resumed.append(row)
    with path.open() as file:
        read = list(csv.DictReader(file))
    assert read == [{"round": str(n), "a": "", "b": each} for n, each in enumerate(("", "2", "3"))]


def test_bits_are_added_to_their_round(tmp_path: Path) -> None:
    rows = [{"round": n, "bits/a": 10, "bits_total": 10 * n + 15} for n in range(3)]
    history = filled(tmp_path / "metrics.csv", rows)
    history.add([Sent("a", "IVs", np.arange(2), 3, 1, round) for round in (-1, 1)])
    assert [(row["bits/a"], row["bits_total"]) for row in history] == [(10, 23), (18, 41), (10, 51)]
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["bits_total"] for row in csv.DictReader(file)] == ["23", "41", "51"]


@pytest.mark.parametrize("done", range(5))
def test_a_resumed_history_replaces_the_file(tmp_path: Path, done: int) -> None:
    """Rows after the checkpoint, and whatever else the file holds, are dropped."""
    path = tmp_path / "metrics.csv"
    first = filled(path, ROWS[:done])
    state = first.state_dict()
    first.append({**ROWS[0], "round": 99})
    resumed = History(path)
    resumed.load_state_dict(state)
    assert typed(resumed) == typed(ROWS[:done])
    for row in ROWS[done:]:
        resumed.append(row)
    filled(tmp_path / "whole.csv", ROWS)
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()
