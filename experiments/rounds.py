"""Count the rounds, bits and seconds that a good model costs: `python experiments/rounds.py --har PATH`.

The learner is MOCHA with task_relationship, with hmtl's defaults and as its authors run it: half a pass per round, the
largest curvature for all users, no momentum, Ω learned every 10 rounds, no eigenvalue floor. The result is the number
of rounds after which the mean over seeds stays below the bar, the bits between relays and server in both directions,
and the seconds: measured compute plus communication by eq. (13) of Hu et al. 2022.

Writes experiments/results/rounds.csv.
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
VARIANTS = {"default": "", "as its authors": AUTHORS}
COLUMNS = ("data", "wanted", "MOCHA", "rounds", "second_hop_Mbit", "seconds")
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
    return np.asarray((runs["gap"] / abs(runs["primal"])).mean(0))


def test_error(runs: Histories) -> NDArray[np.float64]:
    return np.asarray(runs["test_error"].mean(0))


def cost(runs: Histories, value: NDArray[np.float64], bar: float) -> tuple[str, ...]:
    """Return the rounds after which a value [rounds] stays at or below the bar, and their Mbit and seconds."""
    above = np.flatnonzero(value > bar)
    rounds = 1 + (int(above[-1]) + 1 if len(above) else 0)
    if rounds > len(value):
        return f"> {len(value)}", "", ""
    bits = sum(runs[f"bits/{tier}"][:, :rounds].sum(1).mean() for tier in ("relays_to_server", "server_to_relays"))
    seconds = sum(runs[f"{part}_s"][:, :rounds].sum(1).mean() for part in ("compute", "communication"))
    return str(rounds), f"{bits / 1e6:.1f}", f"{seconds:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--har", type=Path, help="UCI's zip or folder; by default only mnist5k is run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1000, help="the largest number; a tenth of it with the defaults")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rounds.csv")
    args = parser.parse_args()

    jobs = [("mnist5k", ["dataset=mnist5k", "lam=0.01"], "relative gap ≤ 1e-2", relative_gap, 1e-2)]
    if args.har:
        har = ["dataset=har_subjects", data_path(args.har), "topology=any_r", "lam=1e-3"]
        jobs.append(("HAR by subject", har, "test error ≤ 0.5 %", test_error, 0.005))
    table = Table(title=f"Cost of a good model, mean over {args.seeds} seeds", title_justify="left")
    for column in COLUMNS:
        table.add_column(column.replace("_", " "))
    rows: list[tuple[str, ...]] = [COLUMNS]
    for data, settings, wanted, value, bar in jobs:
        for variant, more in VARIANTS.items():
            runs = histories([*settings, *more.split()], args.seeds, args.rounds if more else max(1, args.rounds // 10))
            rows.append((data, wanted, variant, *cost(runs, value(runs), bar)))
            table.add_row(*rows[-1])
            last = {key: float(runs[key][:, -1].mean()) for key in ("joint_primal", "test_error")}
            print(*rows[-1], last, flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    Console().print(table)


if __name__ == "__main__":
    main()
