"""Labels, loss, algorithm and solver that do not go together: one error names all that has to be chosen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import DictConfig

from hmtl.config.build import build
from hmtl.errors import ConfigError, DataError

Configure = Callable[..., DictConfig]
CLASSES, NUMBERS, SIGNS = (f"dataset.path={{folder}}/{name}" for name in ("classes", "numbers", "signs"))
REGRESSION = "dataset.kind=regression"

CASES = [
    # what was chosen; what the error tells to choose, any one of it
    ((CLASSES, "loss=cross_entropy"), ("loss=hinge", "algorithm=fedu")),
    ((CLASSES, REGRESSION), ("dataset.kind=classification loss=hinge",)),
    ((SIGNS, "loss=cross_entropy"), ("loss=hinge",)),
    ((SIGNS, REGRESSION, "loss=hinge"), ("loss=squared", "dataset.kind=classification")),
    ((NUMBERS,), ("dataset.kind=regression loss=squared",)),
]
MORE = [  # of the same kinds
    ((NUMBERS, REGRESSION), ("loss=squared",)),
    ((SIGNS, "solver=sgd"), ("solver=sdca", "algorithm=fedu")),
    ((CLASSES, "loss=squared"), ("loss=hinge",)),
    ((CLASSES, "loss=cross_entropy", "solver=sgd"), ("algorithm=fedu",)),
    ((SIGNS, "algorithm=fedu", "solver=sdca"), ("solver=sgd",)),
    ((NUMBERS, REGRESSION, "loss=cross_entropy"), ("loss=squared",)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five tasks with labels of each kind."""
    place, rng = tmp_path_factory.mktemp("choices"), np.random.default_rng(0)
    for k in range(5):
        table = pd.DataFrame(rng.normal(size=(24, 2)), columns=["a", "b"])
        kinds = {"classes": np.tile(["red", "green", "blue"], 8), "numbers": rng.normal(50, 9, 24)}
        for name, y in (kinds | {"signs": np.repeat([-1, 1], [8, 16])}).items():
            (place / name).mkdir(exist_ok=True)
            table.assign(y=y).to_csv(place / name / f"u{k}.csv", index=False)
    return place


@pytest.mark.parametrize(
    ("chosen", "remedies"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
    ids=lambda words: " ".join(words).format(folder=""),
)
def test_one_step(configure: Configure, folder: Path, chosen: tuple[str, ...], remedies: tuple[str, ...]) -> None:
    setting = ["dataset=files", "topology=any_r", "logger=none", *(word.format(folder=folder) for word in chosen)]
    with pytest.raises((ConfigError, DataError)) as error:
        build(configure(*setting))
    assert "\n" not in str(error.value)
    for remedy in remedies:
        assert remedy in str(error.value)
        changed = {word.split("=")[0]: word for word in (*setting, *remedy.split(" "))}
        run = build(configure(*changed.values()))
        run.algorithm.step(0)
