"""Figures that are sums: with secure=true, users mask their terms, and only the sum over all users is known."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cells import FIGURES, LATE, SMALL, Fault, Trained, train, train_in_cells
from omegaconf import DictConfig
from torch import Tensor

from hmtl.communication import TIERS
from hmtl.communication.messages import IVS
from hmtl.config.build import Run
from hmtl.errors import EngineError

SECURE = (*SMALL, "communicator=sums", "aggregators=server", "metrics=sums", "secure=true", "algorithm=cocoa")
STEPS = {"advertise": 5, "share": 5, "read": 5, "rows": 5, "answer": 10}
"""The turn of a round of figures in which a host ends, and whose figures are known then."""


def terms_of_figures(trained: Trained) -> list[dict[int, Tensor]]:
    """The terms of figures that hosts sent, by round and user."""
    rows: list[dict[int, Tensor]] = [{} for _ in trained.rows]
    for plays, sender, _, frame in trained.cells.frames:
        if plays == "figures" and sender.startswith("host") and frame.kind == IVS:
            numbers = [torch.frombuffer(bytearray(row), dtype=torch.int64) for row in frame.payload.numpy()]
            rows[frame.round].update(zip(frame.users.tolist(), numbers, strict=True))
    return rows


@pytest.mark.slow
def test_masked_sums_are_unmasked_exactly(configure: Callable[..., DictConfig]) -> None:
    """Each row is uniform, and so is the sum of the rows of all users before the masks are removed."""
    cfg, runs = configure(*SECURE, "rounds=2"), []
    for secure in (True, False):
        cfg.secure = secure
        runs.append(train_in_cells(cfg))
    assert runs[0].rows[0].keys() == runs[1].rows[0].keys()
    for masked, plain in zip(runs[0].rows, runs[1].rows, strict=True):
        assert {key: each for key, each in masked.items() if "bits" not in key} == {
            key: each for key, each in plain.items() if "bits" not in key
        }
    hidden, shown = (terms_of_figures(run) for run in runs)
    assert [len(each) for each in hidden] == [10] * 2
    assert [len(each) for each in shown] == [2] * 2
    assert {int(row[1]) >> 20 for each in shown for row in each.values()} == {5}, "how many users a host has"
    assert all(row.abs().double().log2().median() > 60 for each in hidden for row in each.values())
    for each in hidden:
        assert torch.stack(list(each.values())).sum(0).abs().double().log2().median() > 60


@pytest.mark.parametrize(
    "step", ["rows", *(pytest.param(step, marks=pytest.mark.slow) for step in STEPS if step != "rows")]
)
@pytest.mark.slow
def test_a_host_that_ends_takes_its_users_along(configure: Callable[..., DictConfig], step: str) -> None:
    """Means of the round are over the users whose masked rows arrived; wrong masks would give random numbers."""
    cfg, rows = configure(*SECURE), list[Any]()

    def prepare(run: Run) -> None:
        run.trainer.loggers = [SimpleNamespace(log=rows.append)]

    with pytest.raises(EngineError, match="host 1"):
        train_in_cells(cfg, Fault("host 1", step, FIGURES + 1, away=10**6), prepare=prepare, patience=0.2)
    cfg.secure = False
    alone = train(cfg).rows
    for name, figure in alone[0].items():
        assert "bits" in name or rows[0][name] == figure
    assert ("gap" in rows[1]) == (STEPS[step] == 10)
    assert "gap" not in rows[2]
    for row in rows[1:]:
        errors = [each for name, each in row.items() if name.endswith("_error")]
        assert len(errors) == 4
        assert all(0 <= error <= 1 for error in errors)
    if STEPS[step] == 10:
        assert rows[1]["train_error"] == alone[1]["train_error"]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["advertise", "rows"])
@pytest.mark.slow
def test_a_late_host_takes_part_again(configure: Callable[..., DictConfig], step: str) -> None:
    """Its users are missing in some sums, but nobody mistakes what it says late for a later answer."""
    rows = train_in_cells(configure(*SECURE, "rounds=6"), Fault("host 1", step, FIGURES + 1, LATE)).rows
    assert "gap" not in rows[1]
    assert all(row["users"] == 10 and row["gap"] >= -1e-9 for row in rows[4:])


@pytest.mark.slow
def test_too_few_users_show_no_figures(configure: Callable[..., DictConfig]) -> None:
    """Half of the users are fewer than `least`: their host reveals nothing, and the round has no figures."""
    cfg = configure(*SECURE, "rounds=2")
    cfg.communicator.least = 8
    rows = train_in_cells(cfg, Fault("host 1", "rows", FIGURES + 1, LATE, 0)).rows
    assert "train_error" in rows[0]
    assert "train_error" not in rows[1]


@pytest.mark.slow
def test_a_host_may_be_late_with_its_first_figures(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    """Its users are not among those of the first row, which has no objective; the file has all columns."""
    rows = train_in_cells(configure(*SECURE, "rounds=4"), Fault("host 1", "rows", FIGURES, LATE)).rows
    assert ("train_error" in rows[0], "gap" in rows[0]) == (True, False)
    assert all("gap" in row for row in rows[3:])
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["gap"] != "" for row in csv.DictReader(file)] == ["gap" in row for row in rows]


@pytest.mark.parametrize(
    "words", ["secure=false", *(pytest.param(word, marks=pytest.mark.slow) for word in ("secure=true", "sums=coded"))]
)
@pytest.mark.slow
def test_figures_are_not_among_the_bits_of_a_run(
    configure: Callable[..., DictConfig], tmp_path: Path, words: str
) -> None:
    tables = []
    for metrics in ("users", "sums"):
        train_in_cells(configure(*SECURE, "secure=false", words, f"metrics={metrics}"))
        with (tmp_path / "metrics.csv").open() as file:
            tables.append([[row[f"bits/{tier}"] for tier in TIERS] for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 3


@pytest.mark.parametrize(
    "words",
    [
        ("algorithm=fedper",),
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (
                ("algorithm=fedper", "validation_fraction=0.2"),
                ("algorithm=fedrep",),
                ("algorithm=lg_fedavg",),
                ("algorithm=apfl",),
                ("algorithm=pfedme",),
                ("algorithm=ditto",),
                ("algorithm=scaffold",),
                ("algorithm=local_networks",),
                ("algorithm=fedu", "regularizer=mean"),
                ("algorithm=fedavg",),
                ("algorithm=fedavg", "validation_fraction=0.2"),
            )
        ),
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_models_are_where_they_belong(
    configure: Callable[..., DictConfig], tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Those with personal numbers are at the hosts of their users. They equal those of one process, also resumed."""
    mlp = ("algorithm.model._target_=hmtl.mtl.mlp", "+algorithm.model.hidden=4", "solver.epochs=1")
    cfg = configure(*SMALL, "communicator=sums", "aggregators=server", *mlp, *words)
    alone = train(cfg)
    cfg.metrics, cfg.rounds = "sums", 2
    train_in_cells(cfg, hosts=3)
    cfg.rounds, cfg.resume = 3, str(tmp_path)
    ours = train_in_cells(cfg, hosts=3)
    assert (ours.run.trainer.best is None) == ("validation_fraction=0.2" not in words)
    assert (ours.models is not None) == (words[0] in ("algorithm=fedavg", "algorithm=scaffold"))
    if ours.models is None:
        saved = [np.load(tmp_path / f"models-host-{n}.npz")["W"] for n in range(3)]
        ours = replace(ours, models=torch.from_numpy(np.concatenate(saved)).T)
    torch.testing.assert_close(ours.models, alone.models, rtol=1e-6, atol=1e-6)
