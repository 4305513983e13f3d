"""The console during training: a progress bar, or a line twice a minute, and the report of the finished run."""

from collections.abc import Callable, Iterator, Mapping

from rich.progress import Progress, TextColumn
from rich.table import Table

from hmtl.communication import TIERS
from hmtl.reporting.console import Console, as_table
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary, user_error

SHOWN = (
    ("gap", "gap", ".2e"),
    ("test_error", "test error", ".4f"),
    ("epsilon", "ε for outsiders", ".2f"),
    ("epsilon_sample_known", "ε for relays", ".2f"),
)
"""The measurements shown during training: name, label and format."""
SPEED = 600.0  # seconds over which the time of a round is estimated
FAR = 0.5  # a larger duality gap, relative to the primal objective, has a remark
LEARNING = (
    ("primal", "primal objective", ".6f"),
    ("dual", "dual objective", ".6f"),
    ("gap", "duality gap", ".2e"),
    ("gap_certified", "bound of the gap, without the duals", ".2e"),
    ("joint_primal", "primal objective, at the best Ω", ".6f"),
    ("joint_gap", "joint gap of models and Ω", ".2e"),
    ("train_r2", "train R², all users' rows together", ".4f"),
    ("test_r2", "test R², all users' rows together", ".4f"),
)
"""The rows of the table "Learning": measurement, label and format."""
OVER_USERS = {"": "mean", "_weighted": "weighted by rows", "_median": "median", "_worst": "worst user"}
"""The columns of the table of measures: ends of measurements, and headers."""


class ConsoleLogger:
    """A logger that shows progress, gap and test error, and prints the report of the finished run.

    Args:
        rounds: of the run in total.
        lines: whether to print lines of progress if output is not a terminal.
    """

    def __init__(self, rounds: int, lines: bool = True) -> None:
        self._console = Console()
        self._rounds = rounds
        self._progress = Progress(
            *Progress.get_default_columns(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            speed_estimate_period=SPEED,
        )
        self._task = self._progress.add_task(f"{rounds} rounds", total=rounds, status="")
        self._latest: Measurements = {}  # not every round is evaluated
        self._lines = lines

    def log(self, row: Measurements) -> None:
        """Show the progress of the run."""
        self._latest |= row
        shown = [f"{label} {self._latest[key]:{form}}" for key, label, form in SHOWN if key in self._latest]
        if self._console.is_terminal:
            self._progress.start()
        done = int(row["round"]) + 1
        self._progress.update(self._task, completed=done, status=", ".join(shown))
        if self._lines:
            self._console.progress_line(", ".join([f"round {done} of {self._rounds}", *shown]))

    def finish(self, summary: Summary, draw: Callable[[], Mapping[str, bytes]]) -> None:
        """Print the report of the finished run."""
        self.close()
        for part in run_report(summary):
            if isinstance(part, str):
                self._console.print(part, markup=False)
            else:
                self._console.table(part)

    def close(self) -> None:
        """Remove the progress bar."""
        if self._progress.live.is_started:
            self._progress.stop()


def run_report(summary: Summary) -> Iterator[Table | str]:
    """Yield the tables of a finished run, and the remarks between them."""
    if summary.V_bits:
        yield _loads(summary)
        yield _times(summary)
        yield from _facts(summary)
        if summary.note:
            yield f"Note: {summary.note}."
    else:
        bits = summary.figures["bits_total"]
        yield f"{bits:,} bits are sent before the first round, and nothing in rounds." if bits else "Nothing is sent."
    if summary.omega_learned is False:
        yield "Ω was never updated: the last algorithm.omega_every rounds keep it fixed. Set more rounds."
    if summary.models_after not in (None, summary.rounds):
        what = "validation error" if "validation_error" in summary.figures else "objective at its best Ω"
        stopped = "Stopped early: the validation error no longer fell. " if summary.stopped_early else ""
        yield f"{stopped}The models are those after round {summary.models_after}, which had the least {what}."
    if summary.randomness == "seed":
        yield "Noise and samples follow from the seed: anyone who knows it can subtract the noise."
    figures = summary.figures
    learned = [[label, f"{figures[key]:{form}}"] for key, label, form in LEARNING if key in figures]
    if learned:
        yield as_table("Learning", ("", "final"), learned)
    yield _measures(summary)
    gap, primal = figures.get("gap", 0.0), figures.get("primal", 0.0)
    if gap > FAR * abs(primal):
        share = f"{gap / abs(primal):.0%} of the primal objective" if primal else f"{gap:.2e}"
        yield f"Far from the optimum: the duality gap is {share}. Set more rounds or a larger lam."
    if any(map(user_error, summary.worst_users)):
        yield _users(summary)


def _loads(summary: Summary) -> Table:
    references = (summary.loads_theory, summary.bounds, summary.loads_uncoded or {})
    rows = []
    for tier in TIERS:
        loads = [summary.loads[tier], *(reference.get(tier, summary.K) for reference in references)]
        rows.append([tier.replace("_", " "), *(f"{load:.2f}" for load in loads)])
    headers = ["", "measured", "formula", "lower bound", "uncoded"]
    unit = f"{'IVs' if summary.loads_uncoded is None else 'rows of sums'} of {summary.V_bits:,} bits"
    if bits := summary.bits_per_number:
        unit, headers = "rows of each hop; bits of a number", [*headers, "bits"]
        rows = [[*row, f"{bits[tier]:.3g}"] for row, tier in zip(rows, TIERS, strict=True)]
    return as_table(f"Loads per round, in {unit}", headers, rows)


def _times(summary: Summary) -> Table:
    time, forwarding = summary.time, summary.time.uncoded_communication_s
    seconds = {summary.communicator: (time.compute_s, time.communication_s, time.total_s)}
    if summary.communicator != "uncoded":
        seconds["uncoded"] = (time.uncoded_total_s - forwarding, forwarding, time.uncoded_total_s)
    rows = [[name, *(f"{each:.3f} s" for each in row)] for name, row in seconds.items()]
    if len(rows) > 1 and forwarding:
        # Saved communication follows from bits; the sign of saved total time would depend on the machine's load.
        rows.append(["communication saved", "", f"{1 - time.communication_s / forwarding:.1%}"])
    title = f"Time of {summary.rounds} rounds; compute: CPU time"
    return as_table(title, ("", "compute", "communication", "total"), rows)


def _facts(summary: Summary) -> Iterator[Table]:
    """Yield the table of what else is known of a run, if anything; a row that does not apply is left out."""
    time, secure = summary.time, summary.secure or {"overhead": {}}
    facts = {
        "rounds without an aggregator": summary.empty_rounds,
        "plans made between rounds": time.plans or None,
        "seconds of planning": time.planning_s or None,
        "bits of state for relays that had missed rounds": summary.handover_bits,
        "share of local work in the time": None if summary.passes is None else time.local_s / time.total_s,
        "secure sums: users who may collude": secure.get("colluding"),
        "secure sums: fewest terms of a sum": secure.get("fewest"),
        "secure sums: neighbours of a user": secure.get("neighbors"),
        "secure sums: neighbours who reveal a mask": secure.get("threshold"),
        **{f"secure sums: bits added, {tier.replace('_', ' ')}": bits for tier, bits in secure["overhead"].items()},
        "privacy: ε for relays and server": summary.epsilon_sample_known,
        "privacy: ε for those who see only models": summary.epsilon,
        "privacy: δ": summary.delta,
        "privacy: largest change of the model": summary.clip,
        "privacy: noise, relative to that": summary.noise,
    }
    rows = [
        [name, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"]
        for name, value in facts.items()
        if value is not None
    ]
    if rows:
        yield as_table("Facts", ("", "value"), rows)


def _measures(summary: Summary) -> Table:
    """Return the table of measures over users: the error on training rows, and all measures on test rows, if any."""
    figures, rows = summary.figures, []
    measures = [key.removesuffix("_weighted") for key in figures if key.endswith("_weighted")]
    shown = {
        end: label for end, label in OVER_USERS.items() if any(f"{measure}{end}" in figures for measure in measures)
    }
    tested = any(measure.startswith("test_") for measure in measures)
    for measure in measures:
        errors = ("train_error", "validation_error", "test_error")
        if measure.startswith("test_") or measure.endswith(errors) or not tested:
            label = measure.replace("_", " ").replace("auc", "AUC")
            users = f", {figures[f'{measure}_users']} users" if f"{measure}_users" in figures else ""
            rows.append([f"{label}{users}", *(f"{figures[measure + end]:.4f}" for end in shown)])
    return as_table(f"Measures over users; error: {summary.error_measure}", ("", *shown.values()), rows)


def _users(summary: Summary) -> Table:
    """Return the table of the users with the largest errors; a split without rows has no columns."""
    worst = summary.worst_users
    splits = [split for split in ("train", "test") if any(user[f"{split}_rows"] for user in worst)]
    shown = [f"{split}_{what}" for what in ("rows", "error") for split in splits]
    title = "Users"
    if len(worst) < summary.K:
        title = f"Users: the {len(worst)} of {summary.K} with the largest errors; all in users.csv"
    rows = ([str(user["user"]), *(_cell(user[name]) for name in shown)] for user in worst)
    return as_table(title, ["user", *(name.replace("_", " ") for name in shown)], rows)


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"
