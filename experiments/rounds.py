"""Count the rounds, bits and seconds that a good model costs: `python experiments/rounds.py --har PATH`.

The learner is MOCHA with task_relationship: with hmtl's defaults, also with plain forwarding or low precision, and as
its authors run it (half a pass per round, the largest curvature for all users, no momentum, Ω learned every 10 rounds,
no eigenvalue floor). The result is the number of rounds after which the mean over seeds stays below the bar, and the
least and the most among single seeds; the bits between relays and server in both directions; and the seconds: measured
compute plus communication by eq. (13) of Hu et al. 2022. Further rows, without the authors' settings, are for a network
in which each user is absent in 10 % of the rounds and each relay in 5 %.

Writes experiments/results/rounds.csv. With `--variants`, the rows of the other variants stay as they are.
"""

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from paths import data_path
from rich.console import Console
from rich.table import Table

from hmtl.config.build import build, compose

AUTHORS = (
    "solver.passes=0.5 algorithm.curvature=max algorithm.accelerated=false algorithm.omega_every=10 "
    "regularizer.floor=1e-12"
)
VARIANTS = {
    "plain forwarding": "communicator=uncoded",
    "default": "",
    **{f"{bits} bits": f"wire=int{bits}" for bits in (8, 4, 3)},
    "as its authors": AUTHORS,
}
ABSENT = ("participation.dropout=0.1", "participation.relays=0.05")
COLUMNS = ("data", "wanted", "MOCHA", "rounds", "rounds_by_seed", "second_hop_Mbit", "seconds")
Histories = dict[str, NDArray[np.float64]]  # [seeds, rounds] by column


def histories(settings: Sequence[str], seeds: int, rounds: int) -> Histories:
    """Return the measurements of one run per seed."""
    runs = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            cfg = compose(*settings, f"seed={seed}", f"rounds={rounds}", "logger=none", f"output_dir={folder}")
            runs.append(build(cfg).trainer.fit())
    return {key: np.array([[row[key] for row in run] for run in runs]) for key in runs[0][0]}


def relative_gap(runs: Histories) -> NDArray[np.float64]:
    return np.asarray(runs["gap"] / abs(runs["primal"]))


def test_error(runs: Histories) -> NDArray[np.float64]:
    return runs["test_error"]


def rounds_until(value: NDArray[np.float64], bar: float) -> int:
    """Return the rounds after which a value [rounds] stays at or below the bar; one more than there are if never."""
    above = np.flatnonzero(value > bar)
    return int(above[-1]) + 2 if len(above) else 1


def cost(runs: Histories, value: NDArray[np.float64], bar: float) -> tuple[str, ...]:
    """Return the cells of COLUMNS from `rounds` on, for a value [seeds, rounds] and its bar."""
    most = value.shape[1]
    rounds, by_seed = rounds_until(value.mean(0), bar), sorted(rounds_until(seed, bar) for seed in value)
    least, last = (f"> {most}" if seed > most else str(seed) for seed in (by_seed[0], by_seed[-1]))
    if rounds > most:
        return f"> {most}", f"{least} .. {last}", "", ""
    bits = sum(runs[f"bits/{tier}"][:, :rounds].sum(1).mean() for tier in ("relays_to_server", "server_to_relays"))
    seconds = sum(runs[f"{part}_s"][:, :rounds].sum(1).mean() for part in ("compute", "communication"))
    return str(rounds), f"{least} .. {last}", f"{bits / 1e6:.3g}", f"{seconds:.2f}"


def recorded(path: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the rows of a results file by data and variant; none if it has other columns."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        header, *rows = [tuple(row) for row in csv.reader(file)]
    return {(row[0], row[2]): row for row in rows} if header == COLUMNS else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--har", type=Path, help="UCI's zip or folder; by default only mnist5k is run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1000, help="for its authors' settings; others: a tenth")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rounds.csv")
    args = parser.parse_args()

    jobs = [("mnist5k", ["dataset=mnist5k", "lam=0.01"], "relative gap ≤ 1e-2", relative_gap, 1e-2)]
    if args.har:
        har = ["dataset=har_subjects", data_path(args.har), "topology=any_r", "lam=1e-3"]
        jobs.append(("HAR by subject", har, "test error ≤ 0.5 %", test_error, 0.005))
    jobs += [(f"{job[0]}, nodes absent", [*job[1], *ABSENT], *job[2:]) for job in jobs]
    table = Table(title=f"Cost of a good model, mean over {args.seeds} seeds", title_justify="left")
    for column in COLUMNS:
        table.add_column(column.replace("_", " "))
    rows = recorded(args.out)
    for data, settings, wanted, value, bar in jobs:
        for variant in args.variants:
            if ABSENT[0] in settings and VARIANTS[variant] == AUTHORS:
                continue
            rounds = args.rounds if VARIANTS[variant] == AUTHORS else max(1, args.rounds // 10)
            runs = histories([*settings, *VARIANTS[variant].split()], args.seeds, rounds)
            rows[data, variant] = (data, wanted, variant, *cost(runs, value(runs), bar))
            last = {key: float(runs[key][:, -1].mean()) for key in ("joint_primal", "test_error")}
            print(*rows[data, variant], last, flush=True)
    order = [(job[0], variant) for job in jobs for variant in VARIANTS]
    rows = {key: rows[key] for key in order if key in rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows.values()])
    for row in rows.values():
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
