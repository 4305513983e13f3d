"""The report of a finished run on the console: tables of loads, time, learning and users, with remarks."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from hmtl.communication import TIERS
from hmtl.training.summary import Summary

CHEAP = 0.05  # local work is nearly free if it takes at most this share of a run's time
LEARNING = (
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
"""The rows of the table "Learning": measurement, label and format."""


def run_report(summary: Summary) -> Iterator[Table | str]:
    """Yield the tables of a finished run, and the remarks between them."""
    if summary.V_bits:
        yield _loads(summary)
        yield _times(summary)
        yield from _remarks(summary)
    else:
        bits = summary.figures["bits_total"]
        before = f" but {bits:,} bit before the first round, for scaling" if bits else ""
        yield f"Nothing is sent{before}: every user learns alone."
    if summary.omega_learned is False:
        yield "Ω was never updated: the last algorithm.omega_every rounds keep it fixed. Set more rounds."
    yield _learning(summary)
    yield from _users(summary)


def _loads(summary: Summary) -> Table:
    table = Table(title=f"Loads per round, in IVs of {summary.V_bits:,} bit", title_justify="left")
    table.add_column("")
    for name in ("measured", "formula", "lower bound", "uncoded"):
        table.add_column(name, justify="right")
    for tier in TIERS:
        reference = (summary.loads_theory, summary.bounds, summary.loads_uncoded or {})
        loads = [summary.loads[tier], *(known.get(tier, summary.K) for known in reference)]
        table.add_row(tier.replace("_", " "), *(f"{load:.2f}" for load in loads))
    return table


def _times(summary: Summary) -> Table:
    table = Table(title=f"Time of {summary.rounds} rounds; compute: CPU time", title_justify="left")
    table.add_column("")
    for name in ("compute", "communication", "total"):
        table.add_column(name, justify="right")
    time = summary.time
    rows = {summary.communicator: (time.compute_s, time.communication_s, time.total_s)}
    forwarding = time.uncoded_communication_s
    if summary.communicator != "uncoded":
        rows["uncoded"] = (time.uncoded_total_s - forwarding, forwarding, time.uncoded_total_s)
    for name, row in rows.items():
        table.add_row(name, *(f"{seconds:.3f} s" for seconds in row))
    if len(rows) > 1 and forwarding:
        # Saved communication follows from bits; the sign of saved total time would depend on the machine's load.
        table.add_row("communication saved", "", f"{1 - time.communication_s / forwarding:.1%}", "")
    return table


def _remarks(summary: Summary) -> Iterator[str]:
    time = summary.time
    if summary.empty_rounds:
        few = summary.communicator == "coded" and len(summary.aggregators) < summary.H
        remedy = " More aggregators make them rarer, such as aggregators=all." if few else ""
        yield f"Empty rounds: {summary.empty_rounds}, because no relay with the latest state was present.{remedy}"
    if summary.loads["users_to_relays"] < summary.K:
        yield "Some users were absent; formula and lower bound assume that all users take part in every round."
    if time.plans or summary.handover_bits is not None:
        yield (
            f"New plans between rounds: {time.plans}, in {time.planning_s:.2f} s, "
            f"{time.planning_s / time.total_s:.1%} of the time. "
            f"State sent to relays that had missed rounds: {summary.handover_bits or 0:,} bit."
        )
    if summary.passes is not None:
        share = time.local_s / time.total_s
        advice = f"; solver.passes={2 * summary.passes:g} would be nearly free" if share <= CHEAP else ""
        yield f"Local work takes {share:.1%} of the time{advice}."


def _learning(summary: Summary) -> Table:
    table = Table(title=f"Learning; error: {summary.error_measure}", title_justify="left")
    table.add_column("")
    table.add_column("final", justify="right")
    for key, label, form in LEARNING:
        if key in summary.figures:
            table.add_row(label, f"{summary.figures[key]:{form}}")
    return table


def _users(summary: Summary) -> Iterator[Table]:
    """Yield the table of the users with the largest errors, if any user has an error."""
    worst = summary.worst_users
    if not worst or not worst[0].error:
        return
    title = "Users"
    if len(worst) < summary.K:
        title = f"Users: the {len(worst)} of {summary.K} with the largest errors; all in users.csv"
    with_train = any(user.train_rows for user in worst)
    with_test = any(user.test_rows for user in worst)
    table = Table(title=title, title_justify="left")
    table.add_column("user")
    for what in ("rows", "error"):
        for split, shown in (("train", with_train), ("test", with_test)):
            if shown:
                table.add_column(f"{split} {what}", justify="right")
    for user in worst:
        train = (str(user.train_rows), _error(user.train_error))
        test = (str(user.test_rows), _error(user.test_error))
        shown_splits = [cells for cells, shown in ((train, with_train), (test, with_test)) if shown]
        rows, errors = zip(*shown_splits, strict=True)
        table.add_row(Text(user.user), *rows, *errors)
    yield table


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.4f}"
