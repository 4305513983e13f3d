"""The local baseline: the errors of users who learn alone, beside those of a run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from hmtl.config.build import build
from hmtl.errors import ConfigError
from hmtl.mtl import Local
from hmtl.train import train
from hmtl.training.baseline import local_baseline

SMALL = ("K=6", "H=3", "r=2", "dataset.rows_per_user=40", "rounds=1", "logger=none")


@pytest.mark.parametrize("regularizer", ["task_relationship", "graph", pytest.param("mean", marks=pytest.mark.slow)])
def test_it_is_local_training_with_the_strength_of_the_regularizer(
    configure: Callable[..., DictConfig], regularizer: str
) -> None:
    algorithm = build(configure(*SMALL, f"regularizer={regularizer}", "lam=0.1")).algorithm
    found = local_baseline(algorithm)
    assert found
    alone = Local(algorithm.problem, algorithm.solver, found["lam"])
    for round in range(30):
        alone.step(round)
    figures = alone.metrics()
    assert found["test_error"] == pytest.approx(figures["test_error"], abs=0.02)
    assert 0 <= found["gap"] <= 1e-3 * figures["primal"] * 1.01
    if regularizer == "task_relationship":
        assert found["lam"] == pytest.approx(6 * 0.1), "A = λΩ with Ω = K·I"


@pytest.mark.parametrize("words", [["algorithm=local"], ["algorithm=fedu"], ["dataset.test_fraction=0"], ["lam=1e-9"]])
def test_there_is_none_where_it_says_nothing_or_is_not_cheap(
    configure: Callable[..., DictConfig], words: list[str]
) -> None:
    assert local_baseline(build(configure(*SMALL, *words)).algorithm) is None


def test_it_can_be_left_out(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    for setting in ("local", "null"):
        train(configure(*SMALL, f"baseline={setting}"))
        assert ("baseline" in json.loads((tmp_path / "summary.json").read_text())) == (setting == "local")
    with pytest.raises(ConfigError, match="baseline"):
        train(configure(*SMALL, "baseline=global"))
