"""Test error of every learner on real data, λ by cross-validation: `python experiments/compare.py [--har PATH]`.

Writes experiments/expected/compare.csv: a line per data set and method, mean and standard deviation over seeds.
"""

import argparse
import csv
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hmtl.config import build_algorithm, build_problem, build_tasks, compose
from hmtl.tune import cross_validate, train_side_by_side

METHODS = {
    "local": ("algorithm=local",),
    "global": ("algorithm=cocoa",),
    "mean": ("regularizer=mean",),
    "task_relationship": ("regularizer=task_relationship",),
    "graph": ("regularizer=graph",),
    "FedU": ("algorithm=fedu",),
}


def test_error(overrides: tuple[str, ...], seed: int, rounds: int) -> tuple[float, float]:
    """Mean test error over users with the λ that cross-validation chose, and that λ."""
    cfg = compose(*overrides, f"seed={seed}", f"rounds={rounds}", "output_dir=.")
    tasks, _ = build_tasks(cfg)
    cfg.lam = cross_validate(cfg, tasks)["best"]
    algorithm = build_algorithm(cfg, build_problem(cfg, tasks))
    train_side_by_side([algorithm], rounds)
    return algorithm.metrics()["test_error"], cfg.lam


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--har", type=Path, help="UCI's zip or folder; without it only mnist5k is run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "expected" / "compare.csv")
    args = parser.parse_args()

    datasets = {"mnist5k": ("K=20", "dataset=mnist5k")}
    if args.har:
        datasets["har by subject"] = ("dataset=har_subjects", f"dataset.path={args.har}", "topology=any_r")
    table = Table(title=f"Test error, mean ± sd over {args.seeds} seeds; {args.rounds} rounds", title_justify="left")
    for column in ("data", "method", "test error", "λ chosen"):
        table.add_column(column)
    rows = []
    for name, data in datasets.items():
        for method in args.methods:
            found = [test_error((*data, *METHODS[method]), seed, args.rounds) for seed in range(args.seeds)]
            errors, lams = [error for error, _ in found], sorted({lam for _, lam in found})
            mean, sd = statistics.mean(errors), statistics.stdev(errors)
            chosen = " ".join(f"{lam:g}" for lam in lams)
            rows.append((name, method, f"{mean:.5f}", f"{sd:.5f}", chosen))
            table.add_row(name, method, f"{mean:.2%} ± {sd:.2%}", chosen)
            print(rows[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        csv.writer(file).writerows([("data", "method", "test_error", "sd", "lam"), *rows])
    Console().print(table)


if __name__ == "__main__":
    main()
