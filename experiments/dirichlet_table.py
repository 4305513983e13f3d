"""Compare learners of networks where users see few digits: `python experiments/dirichlet_table.py --mnist FOLDER`.

8,000 images of MNIST, or without --mnist the 5,000 that come with hmtl, are divided among 20 users by class, in
proportions drawn from Dir(0.1, ..., 0.1). The result is the test error of the models that users predict with, after
several numbers of rounds: averaged over users, and over users weighted by their test rows, each averaged over seeds.
"Tuned" are the models that users of FedAvg and FedProx hold after their own steps. All learners run with cross-entropy,
a step of 0.03 and otherwise their defaults.

Writes experiments/results/dirichlet_table.csv: a line per method and number of rounds.
"""

import argparse
import csv
import shlex
import statistics
import tempfile
from pathlib import Path

import numpy as np
from paths import data_path
from rich.console import Console
from rich.table import Table
from torchvision.datasets import MNIST

from hmtl.config.build import build_algorithm, build_problem, build_tasks, compose

METHODS = {
    "FedAvg": "algorithm=fedavg",
    "FedProx": "algorithm=fedprox",
    "FedNova": "algorithm=fednova",
    "FedAvgM": "algorithm=fedavgm",
    "FedAdam": "algorithm=fedadam",
    "FedYogi": "algorithm=fedyogi",
    "SCAFFOLD": "algorithm=scaffold",
    "local": "algorithm=fedu regularizer=ridge lam=1e-6",
    "FedU, graph": "algorithm=fedu",
    "FedU, mean": "algorithm=fedu regularizer=mean",
    "Ditto": "algorithm=ditto",
    "pFedMe": "algorithm=pfedme",
    "APFL": "algorithm=apfl",
    "FedPer": "algorithm=fedper",
    "FedPer, coupled by a graph": "algorithm=fedper algorithm.coupled=true regularizer=graph",
    "FedRep": "algorithm=fedrep",
    "LG-FedAvg": "algorithm=lg_fedavg",
}
MODELS = {"": "test_error", ", tuned": "tuned_test_error"}  # what is added to a method's name, and the error
MILESTONES = (5, 10, 20, 30)
ROWS = 8000


def write_rows(mnist: Path, file: Path) -> None:
    """Write `ROWS` of MNIST's images, drawn at random, as one table."""
    sets = [MNIST(mnist, train) for train in (True, False)]
    x, y = (np.concatenate([getattr(each, name).numpy() for each in sets]) for name in ("data", "targets"))
    drawn = np.random.default_rng(0).choice(len(y), ROWS, replace=False)
    np.savez(file, x=x[drawn].reshape(ROWS, -1).astype(np.float32) / 255, y=y[drawn])


def metrics(settings: str, seed: int, rounds: int) -> dict[int, dict[str, float]]:
    """Return the metrics after each of the `MILESTONES` that the rounds reach."""
    cfg = compose(*shlex.split(settings), "solver.step=0.03", f"seed={seed}", "output_dir=.")
    algorithm, reached = build_algorithm(cfg, build_problem(cfg, build_tasks(cfg)[0])), {}
    for round in range(rounds):
        algorithm.step(round)
        if round + 1 in MILESTONES:
            reached[round + 1] = algorithm.metrics()
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, help="folder with MNIST/raw, torchvision's layout")
    parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=MILESTONES[-1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dirichlet_table.csv")
    args = parser.parse_args()

    table = Table(title=f"Test error in % (weighted by rows), mean over {args.seeds} seeds", title_justify="left")
    for column in ("after rounds", *map(str, MILESTONES)):
        table.add_column(column)
    rows: list[tuple[str, ...]] = [("model", "method", "rounds", "test_error", "sd", "test_error_weighted")]
    with tempfile.TemporaryDirectory() as folder:
        data = "dataset=mnist5k"
        if args.mnist:
            file = Path(folder, "mnist.npz")
            write_rows(args.mnist, file)
            data = f"dataset=files {shlex.quote(data_path(file))} dataset.intercept=false dataset.standardize=none"
        data += " K=20 partition=dirichlet partition.alpha=0.1 loss=cross_entropy"
        data += f" algorithm.model._target_=hmtl.mtl.{args.model}"
        for method in args.methods:
            runs = [metrics(f"{METHODS[method]} {data}", seed, args.rounds) for seed in range(args.seeds)]
            for ending, error in MODELS.items():
                if not all(error in now for now in runs[0].values()):
                    continue
                line = []
                for round in runs[0]:
                    each = [run[round][error] for run in runs]
                    mean, sd = statistics.mean(each), statistics.stdev(each) if args.seeds > 1 else 0.0
                    weighted = statistics.mean(run[round][f"{error}_weighted"] for run in runs)
                    figures = (f"{figure:.5f}" for figure in (mean, sd, weighted))
                    rows.append((args.model, method + ending, str(round), *figures))
                    line.append(f"{100 * mean:.1f} ({100 * weighted:.1f})")
                    print(*rows[-1], flush=True)
                table.add_row(method + ending, *line)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows(rows)
    Console().print(table)


if __name__ == "__main__":
    main()
