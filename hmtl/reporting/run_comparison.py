"""Finished runs, side by side: read their folders, tell them apart, and collect their numbers in rows."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError
from rich.table import Table

from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, RELAYS_TO_USERS, SERVER_TO_RELAYS, USERS_TO_RELAYS
from hmtl.errors import DataError
from hmtl.reporting.console import as_table
from hmtl.training.folder import overrides
from hmtl.training.summary import Summary

SETTINGS = ("algorithm", "dataset", "communicator", "K", "H", "r", "seed", "rounds")
SECONDS = ("compute_s", "communication_s", "total_s", "uncoded_total_s")
UPLINK, DOWNLINK = f"bits/{RELAYS_TO_SERVER}", f"bits/{SERVER_TO_RELAYS}"
FIRST_HOP = [f"bits/{USERS_TO_RELAYS}", f"bits/{RELAYS_TO_USERS}"]
NEEDED = (*FIRST_HOP, UPLINK, DOWNLINK, "users", "compute_s", "communication_s", "uncoded_s")
"""Columns of `metrics.csv` that a comparison reads, beside that of the errors."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run."""

    folder: Path
    summary: Summary
    overrides: tuple[str, ...]  # the settings on its command line

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """The measurements of each round, from `metrics.csv`.

        Raises:
            DataError: the file is missing or damaged.
        """
        path = self.folder / "metrics.csv"
        try:
            rounds = pd.read_csv(path, usecols=[*NEEDED, self.error_name]).astype(float)
        except (OSError, ValueError) as error:
            raise _unreadable(path, str(error)) from error
        known = rounds.notna()
        if not known[self.error_name].any() or not known[[*NEEDED]].all(axis=None):  # not every round is evaluated
            raise _unreadable(path, "it lacks rounds, or numbers of a round")
        return rounds

    @property
    def error_name(self) -> str:
        """The error by which runs are compared: on test rows if there are any, else on training rows."""
        return "test_error" if "test_error" in self.summary.figures else "train_error"

    @property
    def error_measure(self) -> str:
        """The rows and the measure of this error, such as "test, share misclassified"."""
        return f"{self.error_name.removesuffix('_error')}, {self.summary.error_measure}"

    @property
    def mbit(self) -> pd.Series:
        """The Mbit sent between relays and server in each round, in both directions."""
        return (self.rounds[UPLINK] + self.rounds[DOWNLINK]) / 1e6

    @property
    def uncoded_mbit(self) -> pd.Series:
        """The Mbit that plain forwarding would have sent between relays and server in the same rounds."""
        loads, users = self.summary.loads_uncoded, self.rounds["users"]
        if loads is None:  # the relays forward what they receive from the users, and the server what the users get
            return self.rounds[FIRST_HOP].sum(axis=1) / 1e6
        bits, V_bits = self.summary.bits_per_number, self.summary.V_bits  # loads are in rows of the tier
        row = V_bits * bits[RELAYS_TO_SERVER] / bits[USERS_TO_RELAYS] if bits else V_bits
        ivs = loads[RELAYS_TO_SERVER] * users / self.summary.K + loads[SERVER_TO_RELAYS] * (users > 0)
        return ivs * row / 1e6


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
                summary = Summary.model_validate_json(path.read_text())
                runs.setdefault(path.resolve(), FinishedRun(path.parent, summary, tuple(overrides(path.parent))))
            except ValidationError as error:
                first = error.errors()[0]
                raise _unreadable(path, "".join(f"{key}: " for key in first["loc"]) + first["msg"]) from error
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
            "Mbit": run.mbit.sum(),
            "Mbit_uncoded": run.uncoded_mbit.sum(),
            **{key: getattr(time, key) for key in SECONDS},
            "communication_saved": 1 - time.communication_s / forwarding if forwarding else "",
        }


NUMBERS = {
    "rounds": ("rounds", "d"),
    "error": ("error", ".4f"),
    "worst user": ("error_worst", ".4f"),
    "Mbit": ("Mbit", ".3g"),
    "s": ("total_s", ".3g"),
    "saved": ("communication_saved", ".1%"),
}
"""Columns of the table that `report` prints: their keys in `comparison_rows`, and formats."""


def comparison_table(runs: Sequence[FinishedRun]) -> Table:
    """Return the table that `report` and a sweep print, with a row per run."""
    words = {"run": ("run", "")}
    if len({run.error_measure for run in runs}) > 1:  # then the errors of a column differ in kind
        words["error measure"] = ("measure", "")
    columns = words | NUMBERS
    rows = (
        [f"{row[key]:{form}}" if row[key] != "" else "" for key, form in columns.values()]
        for row in comparison_rows(runs)
    )
    title = f"{len(runs)} run{'s' * (len(runs) > 1)}; Mbit: between relays and server"
    return as_table(title, list(columns), rows, len(words))


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(f"{path} cannot be read ({why}). Leave this run out.")


def _sort_key(part: str) -> tuple[int, int, str]:
    """Return a key that sorts the numbers of a sweep's jobs as numbers, before other names."""
    return (0, int(part), "") if part.isdecimal() else (1, 0, part)
