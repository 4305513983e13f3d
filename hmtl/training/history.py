"""The history of a run: one row of measurements per round, kept in memory and written to `metrics.csv`."""

import csv
import math
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from hmtl.io.files import as_csv, write_whole

Measurements = dict[str, float]
"""Measurements of one round by name; whole numbers are int."""


class History:
    """A table with one row per round and one column per measurement.

    The first row names the columns. Later rows may lack some of the columns: a round that is not evaluated has no
    objective and no errors.

    Args:
        path: the file that gets each row as soon as it is complete; None: rows are counted, but not kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._rounds = 0
        self._columns: dict[str, array[int] | array[float]] = {}
        self._file: IO[str] | None = None

    def __len__(self) -> int:
        return self._rounds

    def __iter__(self) -> Iterator[Measurements]:
        return (self[round] for round in range(self._rounds if self._columns else 0))

    def __getitem__(self, round: int) -> Measurements:
        row = {name: column[round] for name, column in self._columns.items()}
        return {name: value for name, value in row.items() if not math.isnan(value)}

    @property
    def last(self) -> Measurements:
        """The last row; empty before the first round."""
        return self[-1] if self._columns else {}

    def append(self, row: Mapping[str, float]) -> None:
        """Add the row of a round.

        Raises:
            OSError: the file cannot be written.
        """
        self._rounds += 1
        if self.path is None:
            return
        if not self._columns:
            self._columns = {name: array("q" if isinstance(value, int) else "d") for name, value in row.items()}
        for name, column in self._columns.items():
            column.append(row.get(name, math.nan))  # type: ignore[arg-type]  # whole numbers are never missing
        try:
            if self._file is None:
                self._file = self.path.open("a" if self._rounds > 1 else "w", newline="")
            table = csv.DictWriter(self._file, self._columns, lineterminator="\n")
            if self._rounds == 1:
                table.writeheader()
            table.writerow(row)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rounds, and each column as a tensor [rounds]."""
        columns: dict[str, Tensor] = {
            name: torch.tensor(column, dtype=torch.int64 if column.typecode == "q" else torch.float64)
            for name, column in self._columns.items()
        }
        return {"rounds": self._rounds, "columns": columns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the rounds of `state_dict`: take over its table, and replace the file by it."""
        self._rounds = state["rounds"]
        if self.path is None or not state["columns"]:
            return
        self._columns = {
            name: array("d" if column.is_floating_point() else "q", column.tolist())
            for name, column in state["columns"].items()
        }
        write_whole(self.path, as_csv(list(self), list(self._columns)))
