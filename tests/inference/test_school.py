"""Tables of School's shape through the default settings, beside the joint optimum of models and Ω.

School: 139 schools, 22 to 251 pupils each, 28 columns, one of them constant, the exam score 1..70 to predict.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from numpy.typing import NDArray
from school import school

from hmtl.config.build import build_tasks, compose

LAM = 0.01  # the default
Array = NDArray[np.float64]


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
