"""Finished runs, side by side: read their folders, tell them apart, and collect their numbers in rows."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, RELAYS_TO_USERS, SERVER_TO_RELAYS, USERS_TO_RELAYS
from hmtl.errors import DataError
from hmtl.training.folder import overrides
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary

SETTINGS = ("algorithm", "dataset", "communicator", "K", "H", "r", "seed", "rounds")
SECONDS = ("compute_s", "communication_s", "total_s", "uncoded_total_s")
TIERS = (USERS_TO_RELAYS, RELAYS_TO_USERS, RELAYS_TO_SERVER, SERVER_TO_RELAYS)
NEEDED = (*(f"bits/{tier}" for tier in TIERS), "users", "compute_s", "communication_s", "uncoded_s")
"""Columns that each row of `metrics.csv` must have."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: the folder with its results.
        summary: its summary.
        overrides: the settings on its command line.
    """

    folder: Path
    summary: Summary
    overrides: tuple[str, ...]

    @cached_property
    def rounds(self) -> list[Measurements]:
        """The measurements of each round, from `metrics.csv`.

        Raises:
            DataError: the file is missing or damaged.
        """
        path = self.folder / "metrics.csv"
        try:
            with path.open(newline="") as file:
                rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
        except (OSError, ValueError, TypeError) as error:
            raise _unreadable(path, str(error)) from error
        missing = [name for name in NEEDED if not rows or any(name not in row for row in rows)]
        if not any(self.error_name in row for row in rows):  # not every round is evaluated
            missing.append(self.error_name)
        if missing:
            raise _unreadable(path, f"no {missing[0]}")
        return rows

    @property
    def error_name(self) -> str:
        """The error by which runs are compared: on test rows if there are any, else on training rows."""
        return "test_error" if "test_error" in self.summary.figures else "train_error"

    @property
    def error_measure(self) -> str:
        """The rows and the measure of this error, such as "test, share misclassified"."""
        return f"{self.error_name.removesuffix('_error')}, {self.summary.error_measure}"

    def mbit(self, round: Measurements) -> float:
        """Return the Mbit sent between relays and server in a round, in both directions."""
        return (round[f"bits/{RELAYS_TO_SERVER}"] + round[f"bits/{SERVER_TO_RELAYS}"]) / 1e6

    def uncoded_mbit(self, round: Measurements) -> float:
        """Return the Mbit that plain forwarding would have sent between relays and server in the same round."""
        loads = self.summary.loads_uncoded
        if loads is None:  # the relays forward what they receive from the users, and the server what the users get
            return (round[f"bits/{USERS_TO_RELAYS}"] + round[f"bits/{RELAYS_TO_USERS}"]) / 1e6
        up = loads[RELAYS_TO_SERVER] * round["users"] / self.summary.K
        down = loads[SERVER_TO_RELAYS] if round["users"] else 0.0
        return (up + down) * self.summary.V_bits / 1e6


def find_runs(folders: Iterable[Path]) -> list[FinishedRun]:
    """Return the finished runs in these folders and below, sorted by path, the jobs of a sweep by number.

    Raises:
        DataError: a folder has no finished run, or a file of a run is damaged.
    """
    runs: dict[Path, FinishedRun] = {}
    for folder in folders:
        paths = sorted(folder.rglob("summary.json"), key=lambda path: [_sort_key(part) for part in path.parts])
        if not paths:
            raise DataError(f"{folder} has no finished run. Give the folder of a run or a sweep.")
        for path in paths:
            try:
                summary = Summary.from_dict(json.loads(path.read_text()))
                runs.setdefault(path.resolve(), FinishedRun(path.parent, summary, tuple(overrides(path.parent))))
            except (OSError, ValueError) as error:
                raise _unreadable(path, str(error)) from error
    return list(runs.values())


def run_names(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a name for each run: the settings that not all runs share, or the folder if these are not unique."""
    common = set.intersection(*(set(run.overrides) for run in runs))
    settings = [" ".join(each for each in run.overrides if each not in common) for run in runs]
    return settings if all(settings) and len(set(settings)) == len(runs) else [str(run.folder) for run in runs]


def comparison_rows(runs: Sequence[FinishedRun]) -> Iterator[dict[str, Any]]:
    """Yield a row of `report.csv` for each run; a number that a run does not have is ""."""
    for name, run in zip(run_names(runs), runs, strict=True):
        figures, time = run.summary.figures, run.summary.time
        forwarding = time.uncoded_communication_s
        yield {
            "run": name,
            "folder": str(run.folder),
            **{key: getattr(run.summary, key) for key in SETTINGS},
            "measure": run.error_measure,
            "error": figures.get(run.error_name, ""),
            "error_worst": figures.get(f"{run.error_name}_worst", ""),
            "gap": figures.get("gap", ""),
            "Mbit": sum(run.mbit(round) for round in run.rounds),
            "Mbit_uncoded": sum(run.uncoded_mbit(round) for round in run.rounds),
            **{key: getattr(time, key) for key in SECONDS},
            "communication_saved": 1 - time.communication_s / forwarding if forwarding else "",
        }


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(f"{path} cannot be read ({why}). Leave this run out.")


def _sort_key(part: str) -> tuple[int, int, str]:
    """Return a key that sorts the numbers of a sweep's jobs as numbers, before other names."""
    return (0, int(part), "") if part.isdecimal() else (1, 0, part)
