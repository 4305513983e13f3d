"""Tables of School's shape through the default settings, beside the joint optimum of models and Ω.

School: 139 schools, 22 to 251 pupils each, 28 columns, one of them constant, the exam score 1..70 to predict.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import run
from numpy.typing import NDArray

from hmtl.config.build import build_tasks, compose

LAM = 0.01  # the default
Array = NDArray[np.float64]


def school(rng: np.random.Generator, K: int = 139) -> pd.DataFrame:
    """Pupils of K schools: what they are told by is much the same everywhere, and most of the score is noise."""
    ethnicity, tables = rng.normal(0, 2, 11), []
    for k, n in enumerate([22, 251, *rng.integers(22, 252, K - 2)]):
        year, band, group = rng.integers(3, size=n), rng.choice(3, n, p=[0.25, 0.5, 0.25]), rng.integers(11, size=n)
        sex, earlier = rng.integers(2, size=n), rng.normal(100, 15, n)
        meals, mixed, church = rng.uniform(5, 60), rng.integers(3), rng.integers(3)
        x = np.column_stack(
            [np.eye(3)[year], np.eye(3)[band], sex, np.eye(11)[group], np.full(n, meals), earlier, rng.normal(size=n)]
            + [np.tile(np.eye(3)[column], (n, 1)) for column in (mixed, church)]
            + [np.ones(n)]
        )
        own = rng.normal(0, 1.5, 3)
        score = 20 + np.array([0, 0.5, 1.5])[year] + (np.array([11, 2, -6]) + own)[band] + 1.5 * sex
        score += ethnicity[group] - 0.1 * (meals - 30) + 0.1 * (earlier - 100) + rng.normal(0, 2.5)
        y = np.clip(np.rint(score + rng.normal(0, 9.5, n)), 1, 70).astype(int)
        tables.append(pd.DataFrame(x, columns=[f"x{j}" for j in range(x.shape[1])]).assign(score=y, school=k + 1))
    return pd.concat(tables, ignore_index=True)


def optimum(X: list[Array], y: list[Array], lam: float, steps: int = 500) -> Array:
    """W [K, d] that minimises Σ_k (1/2n_k)‖X_k w_k − y_k‖² + (λ/2)‖W‖²_tr: Ω is then the best for W.

    Accelerated proximal gradient with restarts. The proximal step of (c/2)(Σ σ)² lowers all singular values by
    θ = c Σ σ, the sum being that of those which stay above zero.
    """
    H = np.stack([x.T @ x / len(x) for x in X])
    b = np.stack([x.T @ target / len(x) for x, target in zip(X, y, strict=True)])
    step = 1 / max(np.linalg.eigvalsh(h)[-1] for h in H)
    W = ahead = np.zeros(b.shape)
    t = 1.0
    for _ in range(steps):
        U, s, Vt = np.linalg.svd(ahead - step * (np.einsum("kij,kj->ki", H, ahead) - b), full_matrices=False)
        theta = step * lam * s.cumsum() / (1 + step * lam * np.arange(1, len(s) + 1))
        new = (U * (s - theta[s > theta][-1]).clip(0)) @ Vt
        if ((ahead - new) * (new - W)).sum() > 0:
            t = 1.0
        later = (1 + np.sqrt(1 + 4 * t * t)) / 2
        W, ahead, t = new, new + (t - 1) / later * (new - W), later
    return W


def r2(W: Array, X: list[Array], y: list[Array], raw: list[Array]) -> float:
    """1 − Σ(p − y)²/Σ(y − ȳ)² of all rows together."""
    wrong = sum(float(((x @ w - target) ** 2).sum()) for w, x, target in zip(W, X, y, strict=True))
    every = np.concatenate(raw)
    return 1 - wrong / float(((every - every.mean()) ** 2).sum())


@pytest.mark.slow
def test_school_with_default_settings(tmp_path: Path) -> None:
    table = school(np.random.default_rng(0))
    assert table.shape[1] == 28 + 2
    assert set(np.unique(table["score"])) <= set(range(1, 71))
    table.to_csv(tmp_path / "school.csv", index=False)
    said = ("dataset=files", f"dataset.path={tmp_path}/school.csv", "dataset.task=school", "dataset.target=score")
    said += ("dataset.kind=regression", "loss=squared", "topology=any_r")
    done = run("hmtl.train", *said, "~logger.tensorboard", f"hydra.run.dir={tmp_path}/run")
    assert not done.stderr, "a warning"
    assert done.returncode == 0
    assert "R²" in done.stdout
    summary: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert {"train_r2", "test_r2"} <= set(next(csv.reader(file)))

    tasks, _ = build_tasks(compose(*said, "output_dir=none"))
    X, X_test, y, y_test, raw = (
        [getattr(part, name).numpy() for part in parts]
        for parts, name in (
            *((tasks, name) for name in ("x_train", "x_test", "y_train", "y_test")),
            ([task.raw for task in tasks], "y_test"),
        )
    )
    best = r2(optimum(X, y, LAM), X_test, y_test, raw)
    assert abs(summary["test_r2"] - best) < 0.02
    assert summary["test_r2"] > r2(np.zeros((139, 29)), X_test, y_test, raw) + 0.1  # above each task's own mean
