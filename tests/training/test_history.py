"""The history of a run: rows in memory, in a checkpoint and in `metrics.csv`."""

import csv
import math
from pathlib import Path

import pytest

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


def test_rows_are_kept_and_written_exactly(tmp_path: Path) -> None:
    history = filled(tmp_path / "metrics.csv", ROWS)
    assert (len(history), history.last) == (4, ROWS[3])
    assert typed(history) == typed(ROWS)
    with (tmp_path / "metrics.csv").open() as file:  # which is complete after each row
        assert list(csv.DictReader(file)) == [
            {name: str(row.get(name, "")) for name in ("round", "gap", "bits/a b", "empty")} for row in ROWS
        ]


@pytest.mark.parametrize("folder", ["same", "other"])
@pytest.mark.parametrize("done", range(5))
def test_a_resumed_history_replaces_the_file(tmp_path: Path, folder: str, done: int) -> None:
    """Rows after the checkpoint, and whatever else the file holds, are dropped."""
    first = filled(tmp_path / "same.csv", ROWS[:done])
    state = first.state_dict()
    first.append({**ROWS[0], "round": 99})
    path = tmp_path / f"{folder}.csv"
    resumed = History(path)
    resumed.load_state_dict(state)
    assert typed(resumed) == typed(ROWS[:done])
    for row in ROWS[done:]:
        resumed.append(row)
    assert typed(resumed) == typed(ROWS)
    filled(tmp_path / "whole.csv", ROWS)
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_without_a_file_rows_are_counted() -> None:
    history = filled(None, [{}, {}])
    assert (len(history), list(history), history.last) == (2, [], {})
    history.load_state_dict({"rounds": 7, "columns": {}})
    assert len(history) == 7
