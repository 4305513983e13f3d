"""Test error of every learner on real data: `python experiments/compare.py [--har PATH]`.

λ, and what else a regularizer leaves open, is chosen by cross-validation on the training rows, anew for each seed.
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

GRAPHS = [f"regularizer.neighbors={n} regularizer.lam2={lam2}" for n in (1, 3) for lam2 in (0.01, 0.1)]
METHODS = {  # of each, the variants to choose from
    "local": ["algorithm=local"],
    "CoCoA+": ["algorithm=cocoa"],
    "mean": [f"regularizer=mean regularizer.lam2={lam2}" for lam2 in (0.01, 0.05)],
    "task_relationship": ["regularizer=task_relationship"],
    "graph": [f"regularizer=graph {graph}" for graph in GRAPHS],
    "FedU": [f"algorithm=fedu {graph}" for graph in GRAPHS[::2]],
}


def test_error(data: tuple[str, ...], variants: list[str], seed: int, rounds: int) -> tuple[float, float]:
    """Mean test error over users, with the variant and the λ that cross-validation chose, and that λ."""
    found = []
    for variant in variants:
        cfg = compose(*data, *variant.split(), f"seed={seed}", f"rounds={rounds}", "output_dir=.")
        tasks, _ = build_tasks(cfg)
        result = cross_validate(cfg, tasks)
        cfg.lam = result["best"]
        found.append((min(result["error"]), cfg))
    _, cfg = min(found, key=lambda pair: pair[0])
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
            rounds = args.rounds // 4 if method == "FedU" else args.rounds  # each of its rounds makes five passes
            found = [test_error(data, METHODS[method], seed, rounds) for seed in range(args.seeds)]
            errors, lams = [error for error, _ in found], sorted({lam for _, lam in found})
            mean, sd = statistics.mean(errors), statistics.stdev(errors) if args.seeds > 1 else 0.0
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
