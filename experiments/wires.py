"""Measure what few bits in a number cost in accuracy: `python experiments/wires.py --har PATH`.

Each method trains for the same number of rounds with each wire. The result is the test error (R² for a regression), its
mean and standard deviation over seeds, and the same of its difference to wire=null with the same seed.

Writes experiments/results/wires.csv: a line per data set, method and wire.
"""

import argparse
import csv
import shlex
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from paths import data_path
from rich.console import Console
from rich.table import Table

from hmtl.config.build import build, compose

WIRES = ("null", "int8", "int4")
DIGITS = "dataset=mnist5k partition=dirichlet loss=cross_entropy solver.step=0.1 solver.epochs=2"
FEDU = "algorithm=fedu lam=1e-4 regularizer.lam2=1e-6"
METHODS = {  # data, learner: settings, rounds
    ("HAR by subject", "task_relationship"): ("dataset=har_subjects topology=any_r lam=1e-3", 50),
    ("HAR by subject", "graph"): (
        "dataset=har_subjects topology=any_r lam=1e-3 regularizer=graph regularizer.neighbors=3 regularizer.lam2=1e-4",
        50,
    ),
    ("HAR by subject", "CoCoA+"): ("dataset=har_subjects topology=any_r lam=1e-3 algorithm=cocoa", 50),
    ("5,000 digits", "task_relationship"): ("dataset=mnist5k lam=0.01", 50),
    ("regression", "task_relationship"): ("dataset=files loss=squared topology=any_r", 50),
    ("ten digits", "FedAvg, mlp"): (f"{DIGITS} algorithm=fedavg algorithm.model._target_=hmtl.mtl.mlp", 20),
    ("ten digits", "FedU, mlp"): (f"{DIGITS} {FEDU} algorithm.model._target_=hmtl.mtl.mlp", 20),
    ("ten digits", "Ditto, mlp"): (f"{DIGITS} algorithm=ditto algorithm.model._target_=hmtl.mtl.mlp", 20),
    ("ten digits", "FedAvg, cnn"): (f"{DIGITS} algorithm=fedavg algorithm.model._target_=hmtl.mtl.cnn", 15),
    ("ten digits", "FedU, cnn"): (f"{DIGITS} {FEDU} algorithm.model._target_=hmtl.mtl.cnn", 15),
}
COLUMNS = (
    "data", "method", "rounds", "measure", "wire", "mean", "sd", "difference", "difference_sd", "second_hop_Mbit"
)  # fmt: skip


def write_regression(path: Path, tasks: int = 40, features: int = 28) -> None:
    """Write one table of related regression tasks of unequal size: models near a plane, and as much noise as signal."""
    rng = np.random.default_rng(0)
    common, plane = rng.normal(size=features), rng.normal(size=(2, features))
    tables = []
    for task in range(tasks):
        x = rng.normal(size=(rng.integers(22, 252), features))
        model = common + rng.normal(size=2) @ plane / 2 + rng.normal(0, 0.1, features)
        y = x @ model + rng.normal(0, np.linalg.norm(model), len(x))
        tables.append(pd.DataFrame(x, columns=[f"x{j}" for j in range(features)]).assign(y=y, task=task))
    pd.concat(tables).to_csv(path, index=False, float_format="%.6g")


def run(settings: str, seed: int, rounds: int) -> dict[str, Any]:
    """Return the measurements after the last round, and the Mbit between relays and server in all rounds."""
    with tempfile.TemporaryDirectory() as folder:
        words = shlex.split(settings)
        if "dataset=files" in words:
            write_regression(table := Path(folder, "regression.csv"))
            words += [data_path(table), "dataset.task=task", "dataset.kind=regression"]
        cfg = compose(*words, f"seed={seed}", f"rounds={rounds}", f"output_dir={folder}", "logger=none")
        history = build(cfg).trainer.fit()
    bits = sum(row["bits/relays_to_server"] + row["bits/server_to_relays"] for row in history)
    return {**history[-1], "Mbit": bits / 1e6}


def spread(values: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--har", type=Path, help="UCI's zip or folder; by default HAR is left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="the largest number of rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "wires.csv")
    args = parser.parse_args()
    table = Table(title=f"Few bits, mean and standard deviation over {args.seeds} seeds", title_justify="left")
    for column in COLUMNS:
        table.add_column(column.replace("_", " "))
    rows: list[tuple[str, ...]] = [COLUMNS]
    for (data, method), (settings, most) in METHODS.items():
        if "har" in settings:
            if not args.har:
                continue
            settings += f" {shlex.quote(data_path(args.har))}"
        rounds, reference = min(most, args.rounds or most), list[float]()
        for wire in WIRES:
            runs = [run(f"{settings} wire={wire}", seed, rounds) for seed in range(args.seeds)]
            measure = "test_r2" if "test_r2" in runs[0] else "test_error"
            values = [result[measure] for result in runs]
            reference = reference or values
            difference = spread([value - other for value, other in zip(values, reference, strict=True)])
            figures = (f"{figure:.5f}" for figure in (*spread(values), *difference))
            mbit = f"{statistics.mean(result['Mbit'] for result in runs):.3g}"
            rows.append((data, method, str(rounds), measure, wire, *figures, mbit))
            table.add_row(*rows[-1])
            print(*rows[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    Console().print(table)


if __name__ == "__main__":
    main()
