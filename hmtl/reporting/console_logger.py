"""What of the measurements goes to the console: each row as it comes, and the report at the end."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hmtl.communication import TIERS
from hmtl.reporting.console import Console
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ConsoleLogger:
    """A progress bar, or a line now and then, with gap and error, and the report at the end; fits 80 columns."""

    def __init__(self, rounds: int, console: Console | None = None) -> None:
        self._console, self._rounds = console or Console(), rounds
        self._progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[status]}"),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=rounds, status="")
        self._figures: Measurements = {}  # as they were measured last

    def log(self, row: Measurements) -> None:
        number, self._figures = int(row["round"]) + 1, self._figures | row
        parts = [
            f"{label} {self._figures[key]:{form}}"
            for key, label, form in (("gap", "gap", ".2e"), ("test_error", "test error", ".4f"))
            if key in self._figures
        ]
        if not self._console.is_terminal:
            self._console.progress_line("  ".join([f"round {number}/{self._rounds}", *parts]))
            return
        self._progress.start()
        self._progress.update(self._task, completed=number, status="  ".join(parts))

    def finish(self, summary: Summary, figures: Mapping[str, "Figure"]) -> None:
        self.close()
        for part in report(summary.to_dict()):
            if isinstance(part, str):
                self._console.print(part)
            else:
                self._console.table(part)

    def close(self) -> None:
        if self._progress.live.is_started:
            self._progress.stop()


def report(summary: Mapping[str, Any]) -> list[Table | str]:
    """The tables of a finished run, loads, time, learning, and a sentence where one says more."""
    parts: list[Table | str] = [_loads(summary), _times(summary)]
    if "empty_rounds" in summary:
        few = summary["communicator"] == "coded" and len(summary["aggregators"]) < summary["H"]
        parts.append(
            f"Empty rounds: {summary['empty_rounds']}, as no relay with the present state was there."
            + " There would be fewer with more aggregators, such as aggregators=all." * few
        )
    if summary["loads"]["users_to_relays"] < summary["K"]:
        parts.append("Not all took part in every round; formula and lower bound are for rounds in which all do.")
    if summary["time"]["plans"] or "handover_bits" in summary:
        parts.append(_planning(summary))
    if not summary["V_bits"]:
        before = f" but {bits:,} bit before the first round, for scaling" if (bits := summary["bits_total"]) else ""
        parts = [f"Nothing travels{before}: every user learns for itself."]
    elif "passes" in summary:
        parts.append(_local_work(summary))
    if summary.get("omega_learned") is False:
        parts.append("Ω was never learned: it rests in the last algorithm.omega_every rounds. Ask for more rounds.")
    learning = Table(title=f"Learning; error: {summary['error_measure']}", title_justify="left")
    learning.add_column("")
    learning.add_column("final", justify="right")
    for key, label, form in _LEARNING:
        if key in summary:
            learning.add_row(label, f"{summary[key]:{form}}")
    return [*parts, learning, *_users(summary)]


def _users(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Those who err most, if anybody does."""
    worst = summary.get("worst_users", ())
    if not worst or not (worst[0]["test_error"] or worst[0]["train_error"]):
        return
    some = f"the {len(worst)} of {summary['K']} who err most, all in users.csv"
    users = Table(title=f"Users: {some}" if len(worst) < summary["K"] else "Users", title_justify="left")
    splits = [split for split in ("train", "test") if any(user[f"{split}_rows"] for user in worst)]
    users.add_column("user")
    for what in ("rows", "error"):
        for split in splits:
            users.add_column(f"{split} {what}", justify="right")
    for user in worst:
        rows, errors = ([user[f"{split}_{what}"] for split in splits] for what in ("rows", "error"))
        users.add_row(Text(user["user"]), *map(str, rows), *(f"{e:.4f}" if e is not None else "" for e in errors))
    yield users


def _loads(summary: Mapping[str, Any]) -> Table:
    loads = Table(title=f"Loads per round, in IVs of {summary['V_bits']:,} bit", title_justify="left")
    loads.add_column("")
    for name in ("measured", "formula", "lower bound", "uncoded"):
        loads.add_column(name, justify="right")
    for tier in TIERS:
        theory, bound = (summary[key].get(tier, summary["K"]) for key in ("loads_theory", "bounds"))
        uncoded = summary.get("loads_uncoded", {}).get(tier, summary["K"])
        numbers = (summary["loads"][tier], theory, bound, uncoded)
        loads.add_row(tier.replace("_", " "), *(f"{number:.2f}" for number in numbers))
    return loads


def _times(summary: Mapping[str, Any]) -> Table:
    spent = summary["time"]
    times = Table(title=f"Time of {summary['rounds']} rounds; compute: CPU time", title_justify="left")
    for name in ("", "compute", "communication", "total"):
        times.add_column(name, justify="right" if name else "left")
    sending, total = spent["communication_s"], spent["total_s"]
    rows = {summary["communicator"]: (spent["compute_s"], sending, total)}
    if summary["communicator"] != "uncoded":
        forwarding, uncoded = spent["uncoded_communication_s"], spent["uncoded_total_s"]
        rows["uncoded"] = (uncoded - forwarding, forwarding, uncoded)
    for name, seconds in rows.items():
        times.add_row(name, *(f"{each:.3f} s" for each in seconds))
    if len(rows) > 1 and forwarding:  # whose sign no load of the machine can change, as that of the total could
        times.add_row("communication saved", "", f"{1 - sending / forwarding:.1%}", "")
    return times


def _planning(summary: Mapping[str, Any]) -> str:
    """What it cost that not all rounds have the plan that was there before the first."""
    spent = summary["time"]
    share = spent["planning_s"] / spent["total_s"]
    return (
        f"New plans made between rounds: {spent['plans']}, in {spent['planning_s']:.2f} s, {share:.1%} of the time. "
        f"State for relays that missed rounds: {summary.get('handover_bits', 0):,} bit."
    )


def _local_work(summary: Mapping[str, Any]) -> str:
    """Its share of the time, and whether more of it, to save rounds, would be cheap."""
    share = summary["time"]["local_s"] / summary["time"]["total_s"]
    advice = f"; solver.passes={2 * summary['passes']:g} would be nearly free" if share <= NEARLY_FREE else ""
    return f"Local work takes {share:.1%} of the time{advice}."


NEARLY_FREE = 0.05  # of a run's time
_LEARNING = (
    ("primal", "primal objective", ".6f"),
    ("dual", "dual objective", ".6f"),
    ("gap", "duality gap", ".2e"),
    ("joint_primal", "primal objective, at the best Ω", ".6f"),
    ("joint_gap", "joint gap of models and Ω", ".2e"),
    ("train_error", "train error, mean over users", ".4f"),
    ("train_error_worst", "train error, worst user", ".4f"),
    ("test_error", "test error, mean over users", ".4f"),
    ("test_error_worst", "test error, worst user", ".4f"),
    ("train_r2", "train R², all users' rows together", ".4f"),
    ("test_r2", "test R², all users' rows together", ".4f"),
    ("global_test_error", "test error of the global model", ".4f"),
)
