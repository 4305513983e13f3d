"""Compare the test errors of all learners on 5,000 handwritten digits: `python experiments/compare.py`.

For each seed, cross-validation on the training rows chooses λ and the other settings of the regularizer. Writes
experiments/results/compare.csv: a line per method with the mean and the standard deviation over seeds, and the largest
relative gap of the chosen models.
"""

import argparse
import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hmtl.config.build import build_algorithm, build_problem, build_tasks, compose
from hmtl.mtl import Algorithm
from hmtl.tuning.cross_validation import cross_validate
from hmtl.tuning.grid import as_words, with_values

RESULTS = Path(__file__).parent / "results"
WEAK = "[0.0001,0.01,0.1]"  # of λ2, which draws a model to zero: small, because another term couples the models
NEIGHBORS = "+tune.grid.regularizer.neighbors=[1,3]"
METHODS = {
    "local": "algorithm=local",
    "global (CoCoA+)": "algorithm=cocoa",
    "mean": f"regularizer=mean +tune.grid.regularizer.lam2={WEAK}",
    "graph": f"regularizer=graph +tune.grid.regularizer.lam2={WEAK} {NEIGHBORS}",
    "task_relationship": "regularizer=task_relationship",
    "FedU, graph, logistic": f"algorithm=fedu solver.step=0.1 regularizer.lam2=1e-4 {NEIGHBORS}",
}
LAMBDAS = "tune.grid={lam:[1e-5,1e-4,1e-3,1e-2,0.1,1,10]}"


def train(data: Sequence[str], method: str, seed: int, rounds: int) -> tuple[Algorithm, str]:
    """Choose settings by cross-validation, train on all training rows, and return the algorithm and the settings."""
    if "fedu" in method:
        rounds //= 4  # a round of FedU makes five passes over the rows and takes as long as several of MOCHA's
    cfg = compose(*data, LAMBDAS, *method.split(), f"seed={seed}", f"rounds={rounds}", "output_dir=.")
    tasks, _ = build_tasks(cfg)
    best = cross_validate(cfg, tasks)["best"]
    cfg = with_values(cfg, best)
    algorithm = build_algorithm(cfg, build_problem(cfg, tasks))
    for round in range(rounds):
        algorithm.step(round)
    return algorithm, as_words(best)


def relative_gap(algorithm: Algorithm) -> float | None:
    """Return the gap over the primal, jointly in models and Ω if it is known; None if the algorithm has no gap."""
    metrics = algorithm.metrics()
    for kind in ("joint_", ""):
        if f"{kind}gap" in metrics:
            return metrics[f"{kind}gap"] / abs(metrics[f"{kind}primal"])
    return None


def compare(data: Sequence[str], methods: Sequence[str], seeds: int, rounds: int, spread: str, out: Path) -> None:
    """Print the errors of the methods, and write them to the file `out`.

    Args:
        data: settings of the data set and the network.
        spread: "sd" over seeds, or "se", the standard error of their mean.
    """
    table = Table(title=f"Test error, mean ± {spread} over {seeds} seeds", title_justify="left")
    for column in ("method", "test error", "worst gap", "chosen"):
        table.add_column(column)
    rows: list[tuple[str, ...]] = [("method", "test_error", spread, "worst_relative_gap", "chosen")]
    for method in methods:
        trained = [train(data, METHODS[method], seed, rounds) for seed in range(seeds)]
        errors = [algorithm.metrics()["test_error"] for algorithm, _ in trained]
        sd = statistics.stdev(errors) if seeds > 1 else 0.0
        gaps = [gap for algorithm, _ in trained if (gap := relative_gap(algorithm)) is not None]
        mean, deviation = statistics.mean(errors), sd if spread == "sd" else sd / seeds**0.5
        settings = "; ".join(sorted({settings for _, settings in trained}))
        rows.append((method, f"{mean:.5f}", f"{deviation:.5f}", f"{max(gaps):.2g}" if gaps else "", settings))
        table.add_row(method, f"{mean:.2%} ± {deviation:.2%}", rows[-1][3], settings)
        print(*rows[-1], flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS / "compare.csv")
    args = parser.parse_args()
    compare(("K=20", "dataset=mnist5k"), args.methods, args.seeds, args.rounds, "sd", args.out)


if __name__ == "__main__":
    main()
