"""Learn all six activities at once by FedU's protocol: `python experiments/fedu_table.py --har PATH`.

Each of the 30 subjects is a user. 75 % of a user's rows, stratified by activity, are for training. The result is the
test accuracy, averaged over users and then over seeds, after several numbers of rounds. The authors of FedU report for
UCI's features and their own shuffles, after 200 rounds (accuracy in %, linear model / network): FedU 99.10 / 99.21,
MOCHA 98.79, local 98.29 / 98.34, global 93.79 / 94.58.

Writes experiments/results/fedu_table.csv: a line per model, method and number of rounds.
"""

import argparse
import csv
import shlex
import statistics
from pathlib import Path

from paths import data_path
from rich.console import Console
from rich.table import Table

from hmtl.config.build import build_algorithm, build_problem, build_tasks, compose

DUAL, SGD = "lam=1e-3", "loss=cross_entropy solver.step=0.1"
UNCOUPLED = f"algorithm=fedu regularizer=ridge lam=1e-6 {SGD}"
GRAPH = "algorithm=fedu regularizer=graph regularizer.neighbors=3"
METHODS = {  # settings and number of rounds
    "MOCHA, one Ω": (DUAL, 50),
    "mean": (f"regularizer=mean regularizer.lam2=1e-4 {DUAL}", 50),
    "global (CoCoA+)": (f"algorithm=cocoa {DUAL}", 200),
    "local": (f"algorithm=local {DUAL}", 200),
    "FedU, graph": (f"{GRAPH} lam=1e-4 regularizer.lam2=1e-6 {SGD}", 200),
    "FedU, graph, its authors' step and η": (f"{GRAPH} lam=0.01 regularizer.lam2=1e-6 loss=cross_entropy", 200),
    "FedU without coupling": (UNCOUPLED, 200),
    "global (FedAvg)": (f"algorithm=fedavg {SGD}", 200),
}
NETWORK = "algorithm.model._target_=hmtl.mtl.mlp"
MILESTONES = (20, 30, 50, 100, 200)


def accuracies(settings: str, seed: int, rounds: int) -> dict[int, float]:
    """Return the accuracy after each of the `MILESTONES` that the rounds reach."""
    cfg = compose(*shlex.split(settings), f"seed={seed}", f"rounds={rounds}", "output_dir=.")
    tasks, _ = build_tasks(cfg)
    algorithm, reached = build_algorithm(cfg, build_problem(cfg, tasks)), {}
    for round in range(rounds):
        algorithm.step(round)
        if round + 1 in MILESTONES:
            reached[round + 1] = 1 - algorithm.metrics()["test_error"]
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--har", type=Path, required=True, help="UCI's zip or folder, or the folder that contains it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="the largest number of rounds; by default 50 or 200")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fedu_table.csv")
    args = parser.parse_args()

    table = Table(title=f"Test accuracy in %, mean over {args.seeds} seeds, after rounds", title_justify="left")
    for column in ("model", "method", *map(str, MILESTONES)):
        table.add_column(column)
    rows: list[tuple[str, ...]] = [("model", "method", "rounds", "test_accuracy", "sd")]
    path = shlex.quote(data_path(args.har))
    data = f"dataset=har_subjects dataset.target=activity {path} topology=any_r"
    for model in ("linear", "network"):
        for method, (settings, rounds) in METHODS.items():
            if model == "network" and "cross_entropy" not in settings:
                continue
            settings = f"{data} {settings} {NETWORK if model == 'network' else ''}"
            rounds = min(rounds, args.rounds or rounds)
            runs = [accuracies(settings, seed, rounds) for seed in range(args.seeds)]
            line = []
            for round in (round for round in MILESTONES if round <= rounds):
                each = [run[round] for run in runs]
                sd = statistics.stdev(each) if args.seeds > 1 else 0.0
                rows.append((model, method, str(round), f"{statistics.mean(each):.5f}", f"{sd:.5f}"))
                line.append(f"{100 * statistics.mean(each):.2f}")
                print(*rows[-1], flush=True)
            table.add_row(model, method, *line)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    Console().print(table)


if __name__ == "__main__":
    main()
