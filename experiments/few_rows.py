"""Compare personalized networks where users have few rows: `python experiments/few_rows.py --mnist FOLDER --har PATH`.

`digits`: 20 users share 8,000 images of MNIST (without --mnist the 5,000 that come with hmtl), each class divided in
proportions drawn from Dir(0.5, ..., 0.5). `activities`, with --har: the 30 subjects of Human Activity Recognition
classify six activities. A user has 30 or 100 training rows on average; all other rows are for testing. Couplings run
with several strengths λ and a step of 0.03; all other settings are the defaults.

Writes experiments/results/few_rows.csv: a line per data set, number of rows, seed, method and λ.
"""

import argparse
import shlex
import tempfile
from pathlib import Path

import pandas as pd
from dirichlet_table import write_rows
from joblib import Parallel, delayed
from paths import data_path

from hmtl.config.build import build_algorithm, build_problem, build_tasks, compose

NETWORKS, HEADS = "algorithm=fedu", "algorithm=fedper algorithm.coupled=true"
COUPLINGS = {"graph": "graph", "mean": "mean", "Ω": "task_relationship", "Ω and a common model": "common"}
COUPLED = {
    f"{name}, {how}": f"{settings} regularizer={regularizer}"
    for name, settings in {"FedU": NETWORKS, "FedPer": HEADS}.items()
    for how, regularizer in COUPLINGS.items()
}
METHODS = {
    "local": f"{NETWORKS} regularizer=ridge lam=1e-6",
    "FedAvg": "algorithm=fedavg",
    "Ditto": "algorithm=ditto",
    "FedPer": "algorithm=fedper",
    "FedRep": "algorithm=fedrep",
}
METHODS |= {f"{name}, λ={lam:g}": f"{each} lam={lam}" for name, each in COUPLED.items() for lam in (0.01, 0.1, 1)}


def run(data: str, total: int, settings: str, rows: int, seed: int, rounds: int) -> list[dict[str, object]]:
    """Return the test errors of each method on one split of a data set with `total` rows per user."""
    results, problem = [], None
    common = (
        f"{settings} loss=cross_entropy solver.step=0.03 algorithm.model._target_=hmtl.mtl.mlp seed={seed} output_dir=."
    )
    for method, choice in METHODS.items():
        cfg = compose(*shlex.split(f"{choice} {common} dataset.test_fraction={1 - rows / total}"))
        tasks = build_tasks(cfg)[0] if problem is None else problem.everybody
        problem = build_problem(cfg, tasks)
        algorithm = build_algorithm(cfg, problem)
        for round in range(rounds):
            algorithm.step(round)
        figures = algorithm.metrics()
        result = {"data": data, "rows": rows, "seed": seed, "method": method}
        results.append(result | {key: figures[key] for key in ("test_error", "test_error_weighted")})
        print(*results[-1].values(), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder with MNIST/raw, torchvision's layout")
    parser.add_argument("--har", type=Path, help="UCI's zip or folder, or the folder that contains it")
    parser.add_argument("--rows", type=int, nargs="+", default=[30, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "few_rows.csv")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        digits, total = "dataset=mnist5k", 250
        if args.mnist:
            file, total = Path(folder, "mnist.npz"), 400
            write_rows(args.mnist, file)
            digits = f"dataset=files {shlex.quote(data_path(file))} dataset.intercept=false dataset.standardize=none"
        sets = [("digits", total, f"{digits} K=20 partition=dirichlet partition.alpha=0.5")]
        if args.har:
            subjects = f"dataset=har_subjects dataset.target=activity {shlex.quote(data_path(args.har))}"
            sets.append(("activities", 343, subjects))
        jobs = [
            delayed(run)(*each, rows, seed, args.rounds)
            for rows in args.rows
            for each in sets
            for seed in range(args.seeds)
        ]
        table = pd.DataFrame([line for lines in Parallel(args.jobs)(jobs) for line in lines])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out, index=False, float_format="%.5f")
    errors = 100 * table.groupby(["data", "rows", "method"], sort=False)[["test_error", "test_error_weighted"]].agg(
        ["mean", "std"]
    )
    print("Test error in %", errors.round(1).to_string(), sep="\n")


if __name__ == "__main__":
    main()
