"""The console during training: a progress bar, or a line twice a minute, and the report of the finished run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from rich.markup import escape
from rich.progress import Progress, TextColumn
from rich.table import Table

from hmtl.communication import TIERS
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS, USERS_TO_RELAYS
from hmtl.mtl.measures import shares
from hmtl.reporting.console import MISCLASSIFIED, Console, as_table, compared
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary

LEARNED = {
    "test_error": "test error",
    "test_error_worst": "test error of the worst user",
    "global_test_error": "test error of the global model",
    "tuned_test_error": "test error after own steps",
    "test_r2": "test R² of all rows together",
    "train_error": "training error",
    "gap": "duality gap",
    "epsilon": "ε for outsiders",
    "epsilon_sample_known": "ε for relays and server",
    "empty_rounds": "empty rounds",
}
"""What the report of a run shows of learning: keys of the summary, and labels."""
SHOWN = ("gap", "test_error", "epsilon", "epsilon_sample_known")  # during training
SPEED = 600.0  # seconds over which the time of a round is estimated
LARGE_GAP = 0.5  # a larger duality gap, relative to the primal objective, has a remark
OVER_USERS = {"": "average", "_weighted": "weighted by rows", "_median": "median", "_worst": "worst user"}
"""The columns of the table of measures: ends of measurements, and headers."""


class ConsoleLogger:
    """A logger that shows progress, gap and test error, and prints the report of the finished run.

    Args:
        rounds: of the run in total.
        lines: whether to print lines of progress if output is not a terminal.
        report: what is printed: "short", "full" (all tables at the end) or "none" (only a progress bar is shown).
        label: of the progress bar; None: the number of rounds.
    """

    def __init__(
        self,
        rounds: int,
        lines: bool = True,
        report: Literal["short", "full", "none"] = "short",
        label: str | None = None,
    ) -> None:
        self._console = Console()
        self._rounds = rounds
        self._progress = Progress(
            *Progress.get_default_columns(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            speed_estimate_period=SPEED,
        )
        self._task = self._progress.add_task(escape(label or f"{rounds} rounds"), total=rounds, status="")
        self._latest: Measurements = {}  # not every round is evaluated
        self._report = report
        self._lines = lines and report != "none"

    def log(self, row: Measurements) -> None:
        """Show the progress of the run."""
        self._latest |= row
        percent, latest = shares(self._latest), {key: self._latest[key] for key in SHOWN if key in self._latest}
        numbers = {key: f"{100 * x:.2f} %" if key in percent else f"{x:.4g}" for key, x in latest.items()}
        shown = [f"{LEARNED[key]} {number}" for key, number in numbers.items()]
        if self._console.is_terminal:
            self._progress.start()
        done = int(row["round"]) + 1
        self._progress.update(self._task, completed=done, status=", ".join(shown))
        if self._lines:
            self._console.progress_line(", ".join([f"round {done} of {self._rounds}", *shown]))

    def finish(self, summary: Summary, draw: Callable[[], Mapping[str, bytes]]) -> None:
        """Print the report of the finished run."""
        self.close()
        for part in run_report(summary, self._report == "full") if self._report != "none" else ():
            if isinstance(part, str):
                self._console.print(part, markup=False)
            else:
                self._console.table(part)

    def close(self) -> None:
        """Remove the progress bar."""
        if self._progress.live.is_started:
            self._progress.stop()


def run_report(summary: Summary, full: bool = False) -> Iterator[Table | str]:
    """Yield the table of a finished run (all tables if `full`), remarks, and what it saved and gained."""
    yield _overview(summary)
    if full:
        yield from _details(summary)
    yield from _remarks(summary)
    time, error, alone = summary.time, summary.figures.get("test_error", 0.0), summary.baseline or {}
    if error > alone.get("test_error", error):
        yield "Users who learn alone have a smaller test error. Choose lam by hmtl.tune, or set algorithm=local."
    if summary.communicator != "uncoded" and summary.V_bits and time.uncoded_communication_s:
        yield _savings(summary)


def _savings(summary: Summary) -> str:
    """Return the sentences that compare the time of a run with that of plain forwarding."""
    time, rates = summary.time.warm, summary.rates
    how = {"coded": "coding"}.get(summary.communicator, summary.communicator)
    whole = compared(time.total_s, time.uncoded_total_s)
    sending = compared(time.communication_s, time.uncoded_communication_s)
    if summary.rounds == 1:  # how much of its compute is a warm-up is unknown
        return f"Compared with plain forwarding at {rates}, communication took {sending} with {how}."
    text = f"Compared with plain forwarding at {rates}, the run took {whole} with {how}; communication took {sending}."
    if time.total_s > time.uncoded_total_s:
        text += (
            f" Computing took {time.compute_s - (time.uncoded_total_s - time.uncoded_communication_s):.2g} s longer."
        )
    if time.warm_up_s:
        text += f" The warm-up of the first round ({time.warm_up_s:.2g} s) is left out."
    return text


def _overview(summary: Summary) -> Table:
    """Return the table of what a run sent and learned, beside plain forwarding and users who learn alone."""
    K, time, content, alone = summary.K, summary.time.warm, summary.to_dict(), summary.baseline or {}
    own, uncoded, title = dict[str, float](), dict[str, float](), f"{summary.rounds} round{'s' * (summary.rounds > 1)}"
    title += f" at {summary.rates}" if summary.rates and summary.V_bits else ""
    if summary.models_after not in (None, summary.rounds):
        title += f", models after round {summary.models_after}"
    if summary.V_bits:
        # a message is what a user sends uncoded: rows of sums, which have other bits, are counted in this unit, too
        units = {tier: load / K for tier, load in (summary.loads_uncoded or {}).items()}
        title += f"; messages of {summary.V_bits * units.get(USERS_TO_RELAYS, 1):,.0f} bits"
        for tier, forwarded in ((RELAYS_TO_SERVER, min(K, summary.loads[USERS_TO_RELAYS])), (SERVER_TO_RELAYS, K)):
            label = f"messages a round, {tier.replace('_', ' ')}"
            own[label], uncoded[label] = summary.loads[tier] / units.get(tier, 1), forwarded
    own |= {"communication time [s]": time.communication_s, "whole time [s]": time.total_s}
    uncoded |= {"communication time [s]": time.uncoded_communication_s, "whole time [s]": time.uncoded_total_s}
    columns = {summary.communicator if summary.V_bits else summary.algorithm: own}
    columns |= {"uncoded": uncoded} if summary.V_bits and summary.communicator != "uncoded" else {}
    own |= _learned(content, summary.error_measure)
    if alone:
        title += f"; alone: lam={alone['lam']:.3g}"
        columns["alone"] = _learned(alone | {"gap": None}, summary.error_measure)  # its gap is of another objective
    return _matrix(title, columns)


def _learned(figures: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """Return what the report shows of learning by its label; shares misclassified are in %."""
    shown = {label: figures[key] for key, label in LEARNED.items() if key in figures}
    if measure != MISCLASSIFIED:
        return shown
    return {f"{k} [%]" if "error" in k else k: f"{100 * x:.2f}" if "error" in k else x for k, x in shown.items()}


def _details(summary: Summary) -> Iterator[Table]:
    """Yield tables of the other numbers in `summary.json`, by their keys there."""
    figures = summary.figures
    if summary.V_bits:
        loads = {"measured": summary.loads, "formula": summary.loads_theory, "lower bound": summary.bounds}
        loads |= {"uncoded": summary.loads_uncoded or dict.fromkeys(TIERS, summary.K)}
        loads |= {"bits of a number": summary.bits_per_number or {}}
        yield _matrix(f"Loads per round, in rows; users send rows of {summary.V_bits:,} bits", loads)
    measures = tuple(key.removesuffix("_weighted") for key in figures if key.endswith("_weighted"))
    over_users = {
        label: {measure: figures[measure + end] for measure in measures if measure + end in figures}
        for end, label in (OVER_USERS | {"_users": "users"}).items()
    }
    yield _matrix(f"Measures over users; error: {summary.error_measure}", over_users)
    if summary.worst_users:
        keys = ("train_rows", "test_rows", "train_error", "test_error")
        users = {key: {str(user["user"]): user[key] for user in summary.worst_users} for key in keys}
        yield _matrix("Users with the largest errors; all in users.csv", users)
    content = summary.to_dict()
    further = {f"{name}.{key}": each for name in ("time", "secure") for key, each in content.get(name, {}).items()}
    further |= {k: each for k, each in content.items() if isinstance(each, int | float) and not k.startswith(measures)}
    yield _matrix("Further numbers", {"value": further})


def link_tables(links: Any, n: int, run: str = "") -> Iterator[Table]:
    """Yield the table of Mbit by kind of message and tier, and that of the n busiest links, of a `LinkLedger.table`."""
    table = busiest(links, len(links), ("tier", "kind"))
    columns = {tier.replace("_", " "): table[table.tier == tier].set_index("kind").Mbit.to_dict() for tier in TIERS}
    yield _matrix(f"{run}Mbit by kind of message", columns)
    table, all_links = busiest(links, n), links[["tier", "link"]].drop_duplicates()
    table = table.set_index(table.link + ", " + table.tier.str.replace("_", " ")).drop(columns=["tier", "link"])
    yield _matrix(f"{run}the {len(table)} busiest of {len(all_links)} links", table.to_dict())


def busiest(links: Any, n: int, by: Sequence[str] = ("tier", "link")) -> Any:
    """Return the n links with the most bits: a DataFrame of `tier`, `link`, and `Mbit` with and `without overhead`."""
    payload, overhead = links.payload_bits / 1e6, links.overhead_bits / 1e6
    table = links.assign(**{"Mbit": payload + overhead, "without overhead": payload})
    return table.groupby([*by], sort=False, as_index=False)[["Mbit", "without overhead"]].sum().nlargest(n, "Mbit")


def _matrix(title: str, columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of columns of numbers by row; a column without numbers is left out."""
    shown = {header: cells for header, cells in columns.items() if any(each is not None for each in cells.values())}
    rows = dict.fromkeys(key for cells in shown.values() for key in cells)
    return as_table(title, ["", *shown], ([key, *(_cell(cells.get(key)) for cells in shown.values())] for key in rows))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str("" if value is None else value)


def _remarks(summary: Summary) -> Iterator[str]:
    """Yield what a user has to know about a run, in sentences."""
    figures = summary.figures
    if not summary.V_bits:
        bits = figures["bits_total"]
        yield f"{bits:,} bits are sent before the first round, and nothing in rounds." if bits else "Nothing is sent."
    if summary.note:
        yield f"Note: {summary.note}."
    if summary.omega_learned is False:
        yield "Ω was never updated: the last algorithm.omega_every rounds keep it fixed. Set more rounds."
    if summary.models_after not in (None, summary.rounds):
        what = "validation error" if "validation_error" in figures else "objective"
        what += " at its best Ω" * (what == "objective" and "joint_primal" in figures)
        stopped = "Stopped early: the validation error no longer fell. " if summary.stopped_early else ""
        yield f"{stopped}The models are those after round {summary.models_after}, which had the least {what}."
    if summary.randomness == "seed":
        yield "Noise and samples follow from the seed: anyone who knows it can subtract the noise."
    gap, primal = figures.get("gap", 0.0), figures.get("primal", 0.0)
    if gap > LARGE_GAP * abs(primal):
        share = gap / (abs(primal) or gap)
        yield f"Far from the optimum: the duality gap is {share:.0%} of the objective. Set more rounds or a larger lam."
