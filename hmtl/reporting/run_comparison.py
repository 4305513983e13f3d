"""Finished runs, side by side: read their folders, average over seeds, and collect their numbers in tables."""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError
from rich.table import Table

from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, RELAYS_TO_USERS, SERVER_TO_RELAYS, USERS_TO_RELAYS
from hmtl.errors import ConfigError, DataError, did_you_mean
from hmtl.io.files import check_sums
from hmtl.mtl.measures import ERROR_NAME
from hmtl.reporting.console import MISCLASSIFIED, as_table, saved, share_saved
from hmtl.reporting.console_logger import OVER_USERS
from hmtl.training.folder import READ_LATER, overrides
from hmtl.training.summary import Summary

Columns = Sequence[str] | Callable[[str], bool] | None
RUN_COLUMNS = ("error_measure", "algorithm", "dataset", "communicator", "K", "H", "r")
TIME_COLUMNS = ("compute_s", "communication_s", "total_s", "uncoded_total_s")
UPLINK, DOWNLINK = f"bits/{RELAYS_TO_SERVER}", f"bits/{SERVER_TO_RELAYS}"
FIRST_HOP = [f"bits/{USERS_TO_RELAYS}", f"bits/{RELAYS_TO_USERS}"]
NEEDED = [*FIRST_HOP, UPLINK, DOWNLINK, "users", "compute_s", "communication_s", "uncoded_s", "uncoded_communication_s"]
"""Columns of `metrics.csv` that a comparison reads, beside that of the measure."""
UNLIKE = re.compile(r"^(seed|output_dir|resume): .*\n", re.MULTILINE)
"""Settings in which runs that are averaged may differ."""
PART_SETTINGS = (
    "algorithm",
    "regularizer",
    "communicator",
    "scheme",
    "dataset",
    "partition",
    "topology",
    "loss",
    "solver",
)
"""Settings whose values say enough without their names."""
LEARNERS = "APFL CoCoA Ditto FedAdam FedAvg FedAvgM FedNova FedPer FedProx FedRep FedU FedYogi LG-FedAvg MOCHA pFedMe"
SPELLING = {name.replace("-", "").lower(): name for name in (*LEARNERS.split(), "SCAFFOLD")}
SPELLING |= {"lam": "λ", "null": "full precision"}
UNNAMED = ("baseline", "checkpoint_every", "evaluate", "evaluate_every", "logger", "resume", "tune")
"""Settings that do not change what is compared, so that no label has them."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: the run's folder.
        summary: the content of its `summary.json`.
        overrides: the settings on its command line.
        measure: the column of `metrics.csv` by which runs are compared.
    """

    folder: Path
    summary: Summary
    overrides: tuple[str, ...]
    measure: str

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings that may name the run: its learner, and those typed, where a communicator is what traveled."""
        typed = {word.partition("=")[0]: word for word in (word.lstrip("+~") for word in self.overrides)}
        if learner := typed.pop("algorithm.learner._target_", None):
            typed["algorithm"] = f"algorithm={learner.partition('=')[2]}"
        if "communicator" in typed:
            typed["communicator"] = f"communicator={self.summary.communicator}"
        usual = {"algorithm": f"algorithm={self.summary.algorithm}"}
        return usual | {key: word for key, word in typed.items() if not key.startswith(UNNAMED)}

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """The measurements of each round without the warm-up, from `metrics.csv`.

        Raises:
            DataError: the file is missing or damaged.
        """
        rounds = self.table("metrics.csv", [*NEEDED, self.measure])
        known = rounds.notna()
        if not known[self.measure].any() or not known[NEEDED].all(axis=None):  # not every round is evaluated
            raise _unreadable(self.folder / "metrics.csv", "it lacks rounds, or numbers of a round")
        time = self.summary.time
        rounds.loc[0, ["compute_s", "uncoded_s"]] -= [time.warm_up_s, time.uncoded_warm_up_s]
        return rounds

    @cached_property
    def costs(self) -> pd.DataFrame:
        """What the run has cost after each round: rounds, bits between relays and server [Mbit], and seconds.

        `communication` are the seconds without measured compute. Columns with `uncoded` refer to plain forwarding in
        the same rounds.
        """
        table = self.rounds
        each = {
            "rounds": pd.Series(1.0, table.index),
            "bits": (table[UPLINK] + table[DOWNLINK]) / 1e6,
            "seconds": table["compute_s"] + table["communication_s"],
            "communication": table["communication_s"],
            "bits uncoded": self._uncoded_mbit(),
            "seconds uncoded": table["uncoded_s"],
            "communication uncoded": table["uncoded_communication_s"],
        }
        return pd.DataFrame(each).cumsum()

    @cached_property
    def users(self) -> pd.Series:
        """The final value of the measure at each user [`unit`], from `users.csv`; empty if users have none."""
        column = over_users(self.measure)[0]
        values = self.table("users.csv", lambda name: name == column).get(column, pd.Series(dtype=float))
        return self.unit * values.dropna()

    def table(self, name: str, columns: Columns = None, dtype: Any = float) -> pd.DataFrame:
        """Return these columns of a file, or all, as numbers unless `dtype` says otherwise."""
        try:
            check_sums(self.folder, name)
            return pd.read_csv(self.folder / name, usecols=columns, dtype=dtype)
        except (OSError, ValueError) as error:
            raise _unreadable(self.folder / name, str(error)) from error

    @property
    def unit(self) -> int:
        """What the measure is multiplied by to show it: 100 if it is a share of rows, shown in %."""
        return 100 if ERROR_NAME.fullmatch(self.measure) and self.summary.error_measure == MISCLASSIFIED else 1

    def described(self, how: str = "") -> str:
        """Return the measure in words, such as "test error, worst user [%]" with `how` = ", worst user"."""
        base = over_users(self.measure)[0]
        unit = " [%]" if self.unit == 100 else f" ({self.summary.error_measure})" * bool(ERROR_NAME.fullmatch(base))
        return base.replace("_", " ") + how + unit

    @property
    def identity(self) -> str:
        """What runs that differ only by seed have in common: their configuration, or nothing without one."""
        path = self.folder / ".hydra" / "config.yaml"
        return UNLIKE.sub("", path.read_text()) if path.exists() else str(self.folder)

    def _uncoded_mbit(self) -> pd.Series:
        """Return the Mbit that plain forwarding would have sent between relays and server in each round."""
        users, K, loads = self.rounds["users"], self.summary.K, self.summary.loads_uncoded
        if loads is None:  # relays forward what users send, and the server what they receive
            return self.rounds[FIRST_HOP].sum(axis=1) / 1e6
        IV_bits = self.summary.V_bits * loads[USERS_TO_RELAYS] / K
        return IV_bits * (users + K * (users > 0)) / 1e6


@dataclass(frozen=True)
class Line:
    """One line of a table, and one curve of a picture: a run, or runs that differ only by seed."""

    name: str
    settings: tuple[str, ...]
    runs: tuple[FinishedRun, ...]

    @cached_property
    def curve(self) -> pd.DataFrame:
        """Mean and standard deviation (`sd`) of the measure, and mean costs, after each round that all runs have."""
        tables = [run.costs.assign(mean=run.unit * run.rounds[run.measure]).dropna() for run in self.runs]
        by_round = pd.concat(tables).groupby(level=0)
        return by_round.mean().assign(sd=by_round["mean"].std())[by_round.size() == len(self.runs)]

    @cached_property
    def links(self) -> pd.DataFrame:
        """The bits of each link by kind of message, as means over the runs."""
        tables = pd.concat(run.table("links.csv", dtype=None) for run in self.runs)
        return (tables.groupby(["tier", "link", "kind"], sort=False).sum() / len(self.runs)).reset_index()


def over_users(measure: str) -> tuple[str, str]:
    """Return what a measure summarizes over users, and how: ("test_error", "worst user") for "test_error_worst"."""
    end = next(end for end in reversed(OVER_USERS) if measure.endswith(end))
    return measure.removesuffix(end), OVER_USERS[end]


def find_runs(folders: Iterable[Path], measure: str | None = None) -> list[FinishedRun]:
    """Return the finished runs in these folders and below, sorted by path, numbers in names as numbers.

    Args:
        folders: where to look.
        measure: by what to compare them; None: the error on test rows if a run has any, else on training rows.

    Raises:
        DataError: a folder has no finished run, or a file of a run is damaged.
        ConfigError: a run does not have the measure.
    """
    runs: dict[Path, FinishedRun] = {}
    for folder in folders:
        paths = sorted(folder.rglob("summary.json"), key=natural_order)
        if not paths:
            raise DataError(f"{folder} has no finished run. Give the folder of a run or a sweep.")
        for path in paths:
            try:
                of_hydra = [name for name in READ_LATER if "/" in name and (path.parent / name).exists()]
                check_sums(path.parent, path.name, *of_hydra)
                summary = Summary.model_validate_json(path.read_text())
                words = tuple(overrides(path.parent))
            except ValidationError as error:
                first = error.errors()[0]
                raise _unreadable(path, "".join(f"{key}: " for key in first["loc"]) + first["msg"]) from error
            except (OSError, ValueError) as error:
                raise _unreadable(path, str(error)) from error
            if measure and measure not in summary.figures:
                remedy = did_you_mean(measure, summary.figures, "Choose a column of metrics.csv.")
                raise ConfigError(f"measure={measure}: {path.parent} does not have it. {remedy}")
            usual = "test_error" if "test_error" in summary.figures else "train_error"
            runs.setdefault(path.resolve(), FinishedRun(path.parent, summary, words, measure or usual))
    return list(runs.values())


def as_label(setting: str) -> str:
    """Return a setting as a paper would name it, such as "FedAvg", "4 bits" or "λ = 0.1"."""
    key, equals, value = setting.lstrip("+~").partition("=")
    name = key.removesuffix("._target_").rpartition(".")[2]
    if key == "wire":
        value = re.sub(r"^(int|float)(\d+)$", r"\2 bits", value)
    if key in ("wire", *PART_SETTINGS) or key.endswith("._target_"):
        part, *own = re.sub(r"[\w.]+\.(?=[A-Za-z_]\w*([(),]|$))", "", value).partition("(")  # without names of modules
        return SPELLING.get(part.replace("_", "").lower(), part.replace("_", " ")) + "".join(own)
    return f"{SPELLING.get(name, name.replace('_', ' '))}{equals and ' = '}{value}"


def as_lines(runs: Sequence[FinishedRun], over_seeds: bool = True, labels: Mapping[str, str] = {}) -> list[Line]:
    """Return a line for each run, or for all runs that differ only by seed.

    A line is named by the settings that have several values. Lines that are then alike have further settings in their
    names or, if they share all settings, are named by their folders. `labels` has new names for settings and lines, by
    the usual ones; "" leaves a setting out.

    Raises:
        ConfigError: no setting or line has one of the labels.
    """
    groups: dict[Any, list[FinishedRun]] = {}
    for n, run in enumerate(runs):
        group = groups.setdefault(run.identity if over_seeds else n, [])
        if run.summary.seed in [other.summary.seed for other in group]:
            groups[n] = [run]  # the same run once more is not another draw
        else:
            group.append(run)
    firsts = [group[0] for group in groups.values()]
    settings = [{key: word for key, word in run.settings.items() if key != "seed" or not over_seeds} for run in firsts]
    parts = [list(map(as_label, words)) for words in _telling(settings)]
    places = [os.path.commonpath([run.folder for run in group]) for group in groups.values()]
    places = [path if places.count(path) == 1 else str(run.folder) for path, run in zip(places, firsts, strict=True)]
    parts = [part if parts.count(part) == 1 else [path] for part, path in zip(parts, places, strict=True)]
    usual = dict.fromkeys([*(part for each in parts for part in each), *map(", ".join, parts)])
    if unknown := labels.keys() - usual:
        remedy = did_you_mean(min(unknown), usual, f"Choose from {'; '.join(usual)}.", repr)
        raise ConfigError(f"labels: there is no {min(unknown)!r}. {remedy}")
    names = [", ".join(filter(None, (labels.get(part, part) for part in each))) for each in parts]
    wholes = [", ".join(each) for each in parts]
    names = [labels.get(whole, name) or whole for whole, name in zip(wholes, names, strict=True)]
    typed = [tuple(words.values()) for words in settings]
    return [Line(*each) for each in zip(names, typed, map(tuple, groups.values()), strict=True)]


def _telling(settings: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return the settings that name each line: those with several values, and those in which lines alike differ."""
    keys = dict.fromkeys(key for line in settings for key in line)
    varied = [key for key in keys if len({line[key] for line in settings if key in line}) > 1]
    names = [[line[key] for key in varied if key in line] for line in settings]
    for n, (line, name) in enumerate(zip(settings, list(names), strict=True)):
        alike = [other for other in settings if [other[key] for key in varied if key in other] == name]
        shown = [key for key in keys if key in varied or len({other.get(key) for other in alike}) > 1]
        names[n] = [line[key] for key in shown if key in line]
    return names if all(names) else [[line["algorithm"], *name] for line, name in zip(settings, names, strict=True)]


def comparison(lines: Sequence[Line]) -> pd.DataFrame:
    """Return the numbers of each line: means over its runs, and the standard deviations of those that vary by seed."""
    tables = []
    for line in lines:
        first = line.runs[0]
        row = {"run": line.name, "settings": ", ".join(line.settings), "runs": len(line.runs), "measure": first.measure}
        row |= {key: getattr(first.summary, key) for key in RUN_COLUMNS}
        row["folder"] = os.path.commonpath([run.folder for run in line.runs])
        numbers = pd.DataFrame(map(_numbers, line.runs))
        row |= numbers.mean()
        tables.append(row | {f"{name}_sd": numbers[name].std() for name in VARYING})
    return pd.DataFrame(tables)


def _numbers(run: FinishedRun) -> dict[str, float]:
    """Return the final numbers of a run."""
    figures, time = run.summary.figures, run.summary.time.warm
    base, _ = over_users(run.measure)
    mbit = run.costs.iloc[-1]
    return {
        "rounds": run.summary.rounds,
        **{name: figures.get(f"{base}{end}", math.nan) for name, end in ENDS.items()},
        "gap": figures.get("gap", math.nan),
        "Mbit": mbit["bits"],
        "Mbit_uncoded": mbit["bits uncoded"],
        **{key: getattr(time, key) for key in TIME_COLUMNS},
        "communication_saved": saved(time.communication_s, time.uncoded_communication_s),
    }


ENDS = {"average": "", "weighted": "_weighted", "worst": "_worst"}
"""Columns of a comparison that hold a measure, and the ends of its name."""
VARYING = (*ENDS, "gap", *TIME_COLUMNS)
TABLE_COLUMNS = {
    "n": ("runs", "g"),
    "rounds": ("rounds", ".4g"),
    "average": ("average", ".4f"),
    "weighted": ("weighted", ".4f"),
    "worst": ("worst", ".4f"),
    "Mbit": ("Mbit", ".3g"),
    "compute s": ("compute_s", ".3g"),
    "comm. s": ("communication_s", ".3g"),
    "whole s": ("total_s", ".3g"),
    "comm. saved": ("communication_saved", ".1%"),
}
"""Columns of the tables to read: their names in `comparison`, and formats."""
WORD_COLUMNS = ("run", "measure", "travels", "rates")
"""Columns before these, of words; only the first if lines have them in common."""
ONLY_FILES = ["weighted", "compute s"]  # there is no room in a terminal
SPREADS = {"sd": "standard deviation", "se": "standard error of the mean"}
BOLD, END = "\ue000", "\ue001"  # characters for private use, which no name has and LaTeX does not escape
MARKS = {"": "{}", "markdown": "**{}**", "latex": f"{BOLD}{{}}{END}"}
"""The best mean in a table of each kind; `as_latex` replaces BOLD and END."""


def readable(lines: Sequence[Line], spread: str = "sd", columns: Sequence[str] = (), style: str = "") -> pd.DataFrame:
    """Return the table of a report as text, with a row per line: means, ± standard deviations or errors of measures.

    Args:
        lines: its rows.
        spread: one of `SPREADS`.
        columns: those to show, in this order; (): all.
        style: one of `MARKS`: how the best value of each measure is marked, unless measures differ in kind.

    Raises:
        ConfigError: the spread or a column is unknown.
    """
    if spread not in SPREADS:
        raise ConfigError(f"spread={spread} is unknown. Choose {' or '.join(SPREADS)}.")
    numbers = comparison(lines)
    table = {"run": [line.name for line in lines]}
    firsts = [line.runs[0] for line in lines]
    travels = [run.summary.communicator if run.summary.V_bits else "nothing" for run in firsts]
    words = [run.described() for run in firsts], travels, [str(run.summary.rates) for run in firsts]
    table |= {name: each for name, each in zip(WORD_COLUMNS[1:], words, strict=True) if len(set(each)) > 1}
    for header, (name, form) in TABLE_COLUMNS.items():
        column, sd = numbers[name], numbers.get(f"{name}_sd", numbers[name] * math.nan)
        sd = sd / numbers["runs"] ** 0.5 if spread == "se" else sd
        if name in ENDS:
            units = [line.runs[0].unit for line in lines]
            column, sd, form = column * units, sd * units, ".2f" if set(units) == {100} else ".4f"
        shown = zip(column, sd, strict=True)
        cells = [
            f"{n:{form}}" * (n == n) + f" ± {around:{form}}" * (around == around and name in ENDS)
            for n, around in shown
        ]
        if header == "comm. saved":
            shares = zip(column, travels, strict=True)
            cells = ["–" if kind == "nothing" else share_saved(1 - share, 1.0) for share, kind in shares]
        if name in ENDS and len(set(words[0])) == 1 and len(lines) > 1 and column.notna().any():
            best = column.min() if falls(lines[0].runs[0].measure) else column.max()
            cells = [MARKS[style].format(cell) if n == best else cell for cell, n in zip(cells, column, strict=True)]
        if any(cells) and not (header == "n" and set(cells) == {"1"}):
            table[header] = cells
    if unknown := [column for column in columns if column not in table]:
        remedy = did_you_mean(unknown[0], table, f"Choose from {', '.join(table)}.")
        raise ConfigError(f"columns: there is no {unknown[0]!r}. {remedy}")
    return pd.DataFrame(table)[list(columns or table)]


def falls(measure: str) -> bool:
    """Return whether less of a measure is better."""
    return over_users(measure)[0].endswith(("error", "loss", "gap", "primal"))


def as_latex(table: pd.DataFrame) -> str:
    """Return a table of `readable` in LaTeX."""
    columns = "".join("l" if column in WORD_COLUMNS else "r" for column in table)
    text = str(table.to_latex(index=False, escape=True, column_format=columns)).replace("λ", r"$\lambda$")
    return text.replace("±", r"$\pm$").replace(BOLD, r"\textbf{").replace(END, "}")


def title(lines: Sequence[Line], spread: str = "sd") -> str:
    """Return what the table of a report shows."""
    runs = [run for line in lines for run in line.runs]
    what, seeds = " or ".join(sorted({run.described() for run in runs})), {len(line.runs) for line in lines}
    around = "" if seeds == {1} else f"; ±: {SPREADS[spread]} over seeds"
    rounds = {run.summary.rounds for run in runs}
    played = f"; {min(rounds)} round{'s' * (min(rounds) > 1)}" if len(rounds) == 1 else ""
    warm = any(run.summary.time.warm_up_s for run in runs)
    means = f"average and worst of users; Mbit: between relays and server; s{common_rates(lines) or ' at these rates'}"
    means += f"; whole s: compute and communication{', without the warm-up' * warm}"
    means += "; saved: of plain forwarding's communication time over all hops"
    return f"{len(runs)} run{'s' * (len(runs) > 1)}; {what}{around}{played}; {means}"


def common_rates(lines: Sequence[Line]) -> str:
    """Return the rates at which times were computed, as ` at 100 Mbit/s`; "" if those of lines differ."""
    rates = {line.runs[0].summary.rates for line in lines}
    return f" at {rates.pop()}" if len(rates) == 1 else ""


def comparison_table(lines: Sequence[Line], spread: str = "sd", columns: Sequence[str] = ()) -> Table:
    """Return the table that `report` and a sweep print, with a row per line; see `readable`."""
    table = readable(lines, spread, columns)
    words = sum(column in WORD_COLUMNS for column in table)
    left_out = [*ONLY_FILES, *["comm. s"] * (words > 1)]
    left_out += ["rounds"] * (table.get("rounds", pd.Series()).nunique() == 1)  # the title has these
    table = table if columns else table.drop(columns=left_out, errors="ignore")
    return as_table(title(lines, spread), list(table), table.itertuples(index=False), words)


def as_markdown(lines: Sequence[Line], spread: str = "sd", columns: Sequence[str] = ()) -> str:
    """Return the table of a report in Markdown; see `readable`."""
    table = readable(lines, spread, columns, "markdown")
    rule = ["---" if column in WORD_COLUMNS else "---:" for column in table]
    rows = [list(table), rule, *table.itertuples(index=False)]
    return f"{title(lines, spread)}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(f"{path} cannot be read ({why}). Leave this run out.")


def natural_order(path: Path) -> list[str | float]:
    """Return a key that sorts the numbers in names as numbers: what is between them, and each of them, in turn."""
    words = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", str(path))
    return [float(word) if n % 2 else word for n, word in enumerate(words)]
