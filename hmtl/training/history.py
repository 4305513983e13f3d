"""The history of a run: a row of measurements per round, kept in memory and written to `metrics.csv`."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmtl.communication.accounting.ledger import Sent
from hmtl.io.files import as_csv, write_whole

Measurements = dict[str, float]
"""Measurements of one round by name; whole numbers are int."""


class History(list[Measurements]):
    """The rows of all rounds.

    Rows may lack some columns: a round that is not evaluated has no objective and no measures. A measure that is
    undefined for all users is NaN, and an empty field of the file.

    Args:
        path: the file that gets each row as soon as it is complete.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: dict[str, None] = {}  # of the file, in the order of their first values

    def append(self, row: Measurements) -> None:
        """Add the row of a round.

        Raises:
            OSError: the file cannot be written.
        """
        super().append(row)
        if row.keys() - self._columns.keys():
            self._columns |= dict.fromkeys(row)
            self._write()
            return
        try:
            with self.path.open("a", newline="") as file:
                table = csv.DictWriter(file, self._columns, lineterminator="\n")
                table.writerow({name: _cell(value) for name, value in row.items()})
        except OSError as error:  # if the disk is full, Python does not name the file
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def add(self, late: Sequence[Sent]) -> None:
        """Add bits to the rows of the rounds in which they were sent."""
        for sent in late:
            if sent.round >= 0:
                self[sent.round][f"bits/{sent.tier}"] += sent.total
            for row in self[max(0, sent.round) :]:
                row["bits_total"] += sent.total
        if late and self:
            self._write()

    def _write(self) -> None:
        write_whole(self.path, as_csv([{name: _cell(value) for name, value in row.items()} for row in self]))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rounds, and each column as a tensor [rounds]."""
        columns = {name: np.array([row.get(name, math.nan) for row in self]) for name in self._columns}
        return {"rounds": len(self), "columns": {name: torch.from_numpy(column) for name, column in columns.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the rounds of `state_dict`: take over its table, and replace the file by it."""
        self.clear()
        columns = {name: column.tolist() for name, column in state["columns"].items()}
        for round in range(state["rounds"]):
            row = {name: column[round] for name, column in columns.items()}
            super().append({name: value for name, value in row.items() if not math.isnan(value)})
        self._columns = dict.fromkeys(name for row in self for name in row)
        if self:
            self._write()


def is_evaluated(row: Mapping[str, Any]) -> bool:
    """Return whether a row has errors."""
    return "train_error" in row or "test_error" in row


def _cell(value: float) -> float | None:
    return None if math.isnan(value) else value
