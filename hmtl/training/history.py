"""What was measured in each round, a row for each, in `metrics.csv`: the file grows, memory does not."""

import csv
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from hmtl.errors import CheckpointError
from hmtl.io.files import replacing

Measurements = dict[str, float]  # of one round, by name
BLOCK = 1 << 20  # bytes
RESULTS = ("summary.json", "users.csv", "models.npz")  # of a run that has ended, beside the file


@dataclass(frozen=True)
class Past:
    """The rows that a run has behind it: the first ones of a file, as they were when its checkpoint was saved.

    Attributes:
        path: the file, which may have more of them by now.
        rows: their number.
        nbytes: their length, with the line of names before them.
        sha256: of these bytes.
    """

    path: Path
    rows: int
    nbytes: int
    sha256: str

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[Measurements]:
        if not self.rows:
            return
        with self.path.open(newline="") as file:
            for row in islice(csv.DictReader(file), self.rows):
                yield {name: _number(text) for name, text in row.items() if text}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "nbytes": self.nbytes, "sha256": self.sha256}

    def blocks(self) -> Iterator[bytes]:
        """These bytes, piece by piece.

        Raises:
            CheckpointError: the file has others, or cannot be read.
        """
        found, left, lines = hashlib.sha256(), self.nbytes, 0
        try:
            if self.nbytes:
                with self.path.open("rb") as file:
                    while left and (block := file.read(min(left, BLOCK))):
                        found.update(block)
                        left, lines = left - len(block), lines + block.count(b"\n")
                        yield block
        except OSError as error:
            raise self._refused(f"cannot be read ({error.strerror})") from error
        if found.hexdigest() != self.sha256 or lines != self.rows + bool(self.nbytes):
            raise self._refused(f"does not begin with the {self.rows} rounds that it had")

    def _refused(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} {why} when the checkpoint beside it was saved: put the file of that run back, or start anew "
            "without resume."
        )


class History:
    """The rows of a run as they come, each written whole, so that the file can be read at any moment.

    Where there is such a file already, results beside it go with the first row: they would not be of these.

    Args:
        path: the file; None: rows are counted, but not kept.

    Attributes:
        last: the last row.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.last = path, Measurements()
        self._file: BinaryIO | None = None
        self._rows, self._nbytes, self._sha = 0, 0, hashlib.sha256()
        self._line = io.StringIO(newline="")
        self._writer: csv.DictWriter[str] | None = None

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[Measurements]:
        return iter(self.past() if self.path else ())

    def go_on(self, past: Past) -> None:
        """Take over the rows of another run, or of this file, in which those that came later are dropped.

        Raises:
            CheckpointError: they are not there any more.
        """
        self._rows = past.rows
        if self.path is None:
            return
        if self.path.exists() and past.path.exists() and self.path.samefile(past.path):
            for block in past.blocks():
                self._sha.update(block)
            self._clear()
            os.truncate(self.path, past.nbytes)
        else:
            with replacing(self.path) as file:
                for block in past.blocks():
                    self._sha.update(block)
                    file.write(block)
                self._clear()
        self._nbytes = past.nbytes
        for self.last in past:
            pass

    def append(self, row: Mapping[str, float]) -> None:
        """A round more."""
        self._rows, self.last = self._rows + 1, dict(row)
        if self.path is None:
            return
        if self._file is None:
            self._clear()
            self._file = self.path.open("ab" if self._nbytes else "wb", buffering=0)
            self._writer = csv.DictWriter(self._line, self._names() or list(row))
            if not self._nbytes:
                self._writer.writeheader()
        assert self._writer is not None
        self._writer.writerow(row)
        line = self._line.getvalue().encode()
        self._line.seek(0)
        self._line.truncate()
        self._write(line)
        self._nbytes += len(line)
        self._sha.update(line)

    def _clear(self) -> None:
        if self.path is not None and self.path.exists():  # else they are nobody's, or a user's own
            for name in RESULTS:
                self.path.with_name(name).unlink(missing_ok=True)

    def _names(self) -> list[str]:
        """Those of the file, whose first row has all there are."""
        if not self._nbytes or self.path is None:
            return []
        with self.path.open(newline="") as file:
            return next(csv.reader(file))

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        left = memoryview(line)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            os.truncate(self._file.fileno(), self._nbytes)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def past(self) -> Past:
        """All rows so far; once this returns, no crash of the machine loses them."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        return Past(self.path or Path(), self._rows, self._nbytes, self._sha.hexdigest())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _number(text: str) -> float:
    """Numbers as they were: whole ones are int."""
    return int(text) if text.lstrip("-").isdecimal() else float(text)
