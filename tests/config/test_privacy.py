"""Differentially private runs from a configuration: what is refused, what they report, and how they resume."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import train_in_cells
from cells import trained as train_here
from commands import saved_rows
from omegaconf import DictConfig
from rich.table import Table

from hmtl.config.build import Run, build, build_tasks, check, load_run
from hmtl.errors import CheckpointError, ConfigError
from hmtl.reporting.console_logger import run_report
from hmtl.train import train
from hmtl.training.checkpoint import load_checkpoint
from hmtl.training.summary import Summary
from hmtl.tune import tune

Configure = Callable[..., DictConfig]
FEDAVG = ("algorithm=fedavg", "communicator=sums", "logger=none", "dataset.rows_per_user=20")
NOISE = ("privacy.clip=0.5", "privacy.noise=2")
WRONG = {  # words of the command line, and what the error names
    "privacy.noise=1": "privacy.clip",
    "privacy.epsilon=8": "privacy.clip",
    "privacy.clip=1": "noise or epsilon",
    "privacy.clip=1 privacy.noise=1 privacy.epsilon=8": "noise or epsilon",
    "privacy.clip=0 privacy.noise=1": "privacy.clip=0",
    "privacy.clip=1 privacy.noise=-1": "privacy.noise=-1",
    "privacy.clip=1 privacy.epsilon=inf": "privacy.epsilon=inf",
    "privacy.clip=1 privacy.epsilon=8 privacy.delta=0": "privacy.delta=0",
    "privacy.clip=1 privacy.epsilon=8 privacy.delta=1": "privacy.delta=1",
    "privacy.clip=1 privacy.noise=1 privacy.share=0": "privacy.share=0",
    "privacy.clip=1 privacy.noise=1 privacy.randomness=none": "privacy.randomness=none",
    "privacy.clip=1 privacy.epsilon=8 privacy.against=me": "privacy.against=me",
    "privacy.clip=1 privacy.noise=1 communicator=coded": "communicator=sums",
    "privacy.clip=1 privacy.noise=1 communicator.wire=int4": "wire=null",
    "privacy.clip=1 privacy.noise=1 algorithm=cocoa": "algorithm=fedavg",
}
BUILT = {
    "algorithm=scaffold": "algorithm=fedavg",
    "algorithm=fedu regularizer=mean": "algorithm=fedavg",
    "algorithm=fedper algorithm.coupled=true regularizer=mean algorithm.model._target_=hmtl.mtl.mlp": "coupled",
    "dataset.standardize=all": "dataset.standardize",
    "fraction_bits=2": "fraction_bits",
    "privacy.delta=0.05": "privacy.delta=0.05",  # 1/K
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_settings_are_found_before_data_are_read(configure: Configure, words: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[words]) as error:
        check(configure(*FEDAVG, *words.split()))
    assert "\n" not in str(error.value)


def test_tuning_looks_at_rows_without_noise(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="privacy"):
        tune(configure(*FEDAVG, *NOISE))


@pytest.mark.parametrize("words", BUILT)
def test_parts_that_do_not_fit(configure: Configure, words: str) -> None:
    with pytest.raises(ConfigError, match=BUILT[words]):
        build(configure(*FEDAVG, *NOISE, *words.split()))


def test_the_system_draws_samples_that_the_seed_does_not_give(configure: Configure) -> None:
    """Eight of sixteen users train in each of 2 rounds: equal draws have a probability of 10^-8."""
    words = (*FEDAVG, *NOISE, "K=16", "participation=fraction", "participation.fraction=0.5", "rounds=2")
    drawn = []
    for randomness in ("system", "system", "seed"):
        run = build(configure(*words, f"privacy.randomness={randomness}"))
        play, taking_part = run.communicator.round, []
        run.communicator.round = lambda *given, play=play, taking_part=taking_part: (
            taking_part.append((outcome := play(*given)).users.tolist()) or outcome
        )
        run.trainer.fit()
        drawn.append(taking_part)
        precision = [sum(k in users for users in taking_part) / 4 for k in range(16)]
        np.testing.assert_allclose(run.trainer.accountant.precision, precision)
    seed = [sorted(run.algorithm.participation.sample(0, t, 16).tolist()) for t in range(2)]
    assert drawn[2] == seed
    assert drawn[0] != drawn[1] != seed != drawn[0]
    assert {len(users) for users in drawn[0]} == {8}


@pytest.mark.parametrize(
    ("algorithm", "cells"),
    [
        ("cocoa", False),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("cocoa", True), ("fedavg", False), ("fedavg", True))
        ),
    ],
)
def test_secure_sums_are_over_samples_that_the_seed_does_not_give(
    configure: Configure, algorithm: str, cells: bool
) -> None:
    """Ten of twenty users in each of 2 rounds; colluders who follow the seed could choose rounds for themselves."""
    words = ("communicator=sums", "secure=true", "participation=fraction", "participation.fraction=0.5", "rounds=2")
    words += (f"algorithm={algorithm}", "K=20", "logger=none", "dataset.rows_per_user=6", "aggregators=server")
    cfg, drawn = configure(*words), []

    def tap(run: Run) -> None:
        play = run.communicator.round
        run.communicator.round = lambda *given: drawn.append((outcome := play(*given)).users.tolist()) or outcome

    for _ in range(2):
        trained = train_in_cells(cfg, prepare=tap) if cells else train_here(cfg, tap)
    assert {len(users) for users in drawn} == {10}
    seed = [sorted(trained.run.algorithm.participation.sample(0, t, 20).tolist()) for t in range(2)]
    assert drawn[:2] != drawn[2:] != seed != drawn[:2]


def test_secure_sums_need_uniform_samples(configure: Configure) -> None:
    words = ("participation=fraction", "participation.fraction=0.5", "participation.sampler=rows", "secure=true")
    with pytest.raises(ConfigError, match=r"participation\.sampler=rows"):
        build(configure(*FEDAVG, *words, "K=20"))


def test_state_at_the_users_takes_the_gain_of_sampling_away(configure: Configure) -> None:
    """FedPer's heads depend on who was sampled before, and enter the terms."""
    words = ("K=16", "participation=fraction", "participation.fraction=0.25", "rounds=2", "privacy.randomness=seed")
    ends = {}
    for algorithm in ("fedavg", "fedper"):
        network = () if algorithm == "fedavg" else ("algorithm.model._target_=hmtl.mtl.mlp",)
        run = build(configure(*FEDAVG, *NOISE, *words, f"algorithm={algorithm}", *network))
        ends[algorithm] = run.trainer.fit()[-1]
    known = ends["fedavg"]["epsilon_sample_known"]
    assert ends["fedavg"]["epsilon"] != known
    assert ends["fedper"]["epsilon"] == ends["fedper"]["epsilon_sample_known"] == known
    with pytest.raises(ConfigError, match=r"privacy\.against"):
        build(
            configure(
                *FEDAVG,
                *words,
                *network,
                "privacy.clip=1",
                "privacy.epsilon=8",
                "privacy.against=outsiders",
                "algorithm=fedper",
            )
        )


@pytest.mark.slow
def test_a_private_run_reports_epsilon_and_resumes(configure: Configure, tmp_path: Path) -> None:
    settings = ("K=20", "participation=fraction", "participation.fraction=0.5", "participation.dropout=0.2", "rounds=4")
    private = ("privacy.clip=0.5", "privacy.epsilon=6", "privacy.randomness=seed", "privacy.share=0.6")
    folders = [tmp_path / name for name in ("whole", "stopped", "resumed")]
    for folder in folders:
        folder.mkdir()
    whole, stopped, resumed = folders
    cfgs = [configure(*FEDAVG, *settings, *private, f"output_dir={folder}") for folder in folders]
    train(cfgs[0])
    run = build(cfgs[1])
    goes_on = run.trainer._continues
    run.trainer._continues = lambda: len(run.trainer.history) < 2 and goes_on()
    run.trainer.fit()
    cfgs[2].resume = str(stopped)
    train(cfgs[2])
    W = [load_checkpoint(folder)["algorithm"]["users"]["averaged"] for folder in (whole, resumed)]
    assert torch.equal(*W)
    assert W[0].any()
    both = ("epsilon", "epsilon_sample_known")
    (rows, again) = (
        [[row[name] for name in ("users", *both)] for row in saved_rows(folder)] for folder in (whole, resumed)
    )
    assert rows == again
    assert np.all(np.diff(rows, axis=0)[:, 1] > 0)
    summary = json.loads((whole / "summary.json").read_text())
    assert rows[-1][1:] == [summary[name] for name in both]
    assert max(rows[-1][1:]) <= 6
    assert (summary["clip"], summary["delta"], summary["randomness"]) == (0.5, 1e-5, "seed")
    assert summary["against"] == "everyone"
    parts = list(run_report(Summary.model_validate(summary)))
    assert any("seed" in part for part in parts if isinstance(part, str))
    table = parts[0]
    assert isinstance(table, Table)
    assert {f"{summary[name]:.4g}" for name in both} <= set(map(str, table.columns[1].cells))
    longer = configure(*FEDAVG, *settings[:-1], *private, "rounds=9", f"output_dir={resumed}", f"resume={stopped}")
    with pytest.raises(CheckpointError, match="rounds"):
        build(longer)


def test_training_stops_before_epsilon_is_exceeded(configure: Configure, tmp_path: Path) -> None:
    """More users drop out than planned: a round costs more, and fewer rounds are left. The last one is evaluated."""
    schedule = [[t, k] for t in range(4) for k in range(3)]
    private = ("privacy.clip=1", "privacy.epsilon=4", f"participation.schedule={schedule}")
    cfg = configure(*FEDAVG, *private, "K=10", "rounds=8", "evaluate_every=7")
    train(cfg)
    rows = saved_rows(tmp_path)
    assert 4 <= len(rows) < 8
    assert rows[-1]["epsilon"] <= 4
    summary, run = json.loads((tmp_path / "summary.json").read_text()), load_run(tmp_path, torch.nn.Linear)
    assert summary["test_error"] == rows[-1]["test_error"]
    tasks, _ = build_tasks(cfg)
    wrong = [np.mean(run.scores(each.name, each.raw.x_test) * each.raw.y_test.numpy() <= 0) for each in tasks]
    assert summary["test_error"] == pytest.approx(np.mean(wrong))
