"""Test error of every learner on 5,000 genuine digits: `python experiments/compare.py`.

λ, and what else a regularizer leaves open, is chosen by cross-validation on the training rows, anew for each seed.
Writes experiments/results/compare.csv: a line for each method, mean and standard deviation over seeds, and how far the
chosen models are from converged.
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
WEAK = "[0.0001,0.01,0.1]"  # λ2: how little a model may be drawn to zero, where another term couples it to the others
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


def chosen(data: Sequence[str], method: str, seed: int, rounds: int) -> tuple[Algorithm, str]:
    """A method trained on all training rows with the settings that cross-validation chose, and these."""
    if "fedu" in method:
        rounds //= 4  # whose rounds make five passes over the rows, and take as long as several of MOCHA's
    cfg = compose(*data, LAMBDAS, *method.split(), f"seed={seed}", f"rounds={rounds}", "output_dir=.")
    tasks, _ = build_tasks(cfg)
    best = cross_validate(cfg, tasks).best
    cfg = with_values(cfg, best)
    algorithm = build_algorithm(cfg, build_problem(cfg, tasks))
    for round in range(rounds):
        algorithm.step(round)
    return algorithm, as_words(best)


def relative_gap(algorithm: Algorithm) -> float | None:
    """Gap over primal, of models and Ω together where that is known; None where the algorithm has no gap."""
    metrics = algorithm.metrics()
    for kind in ("joint_", ""):
        if f"{kind}gap" in metrics:
            return metrics[f"{kind}gap"] / abs(metrics[f"{kind}primal"])
    return None


def table(data: Sequence[str], methods: Sequence[str], seeds: int, rounds: int, spread: str, out: Path) -> None:
    """Errors of some methods, printed and written.

    Args:
        data: settings that choose it.
        spread: "sd" over seeds, or "se", the standard error of their mean.
    """
    shown = Table(title=f"Test error, mean ± {spread} over {seeds} seeds", title_justify="left")
    for column in ("method", "test error", "worst gap", "chosen"):
        shown.add_column(column)
    rows: list[tuple[str, ...]] = [("method", "test_error", spread, "worst_relative_gap", "chosen")]
    for method in methods:
        found = [chosen(data, METHODS[method], seed, rounds) for seed in range(seeds)]
        errors = [algorithm.metrics()["test_error"] for algorithm, _ in found]
        sd = statistics.stdev(errors) if seeds > 1 else 0.0
        gaps = [gap for algorithm, _ in found if (gap := relative_gap(algorithm)) is not None]
        mean, by = statistics.mean(errors), sd if spread == "sd" else sd / seeds**0.5
        settings = "; ".join(sorted({settings for _, settings in found}))
        rows.append((method, f"{mean:.5f}", f"{by:.5f}", f"{max(gaps):.2g}" if gaps else "", settings))
        shown.add_row(method, f"{mean:.2%} ± {by:.2%}", rows[-1][3], settings)
        print(*rows[-1], flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    Console().print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS / "compare.csv")
    args = parser.parse_args()
    table(("K=20", "dataset=mnist5k"), args.methods, args.seeds, args.rounds, "sd", args.out)


if __name__ == "__main__":
    main()
