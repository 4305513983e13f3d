"""Resuming a run: from a checkpoint that does not fit, and from one without a round."""

from pathlib import Path

import pytest
import torch

from hmtl.config.build import build, compose
from hmtl.errors import CheckpointError
from hmtl.train import train
from hmtl.training.checkpoint import load_checkpoint

SMALL = ("K=6", "H=3", "r=2", "dataset.rows_per_user=20", "logger=none")


def test_a_state_that_does_not_fit_is_one_error(tmp_path: Path) -> None:
    train(compose(*SMALL, "rounds=1", f"output_dir={tmp_path}"))
    checkpoint = load_checkpoint(tmp_path)
    del checkpoint["algorithm"]["users"]
    run = build(compose(*SMALL, "rounds=2", f"output_dir={tmp_path}"))
    with pytest.raises(CheckpointError, match="does not fit"):
        run.trainer.fit(checkpoint)


def test_a_run_that_was_stopped_before_its_first_round_continues(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("nothing", "resumed", "whole")]
    for folder in folders:
        folder.mkdir()
    nothing, resumed, whole = folders
    run = build(compose(*SMALL, "rounds=2", f"output_dir={nothing}"))
    run.trainer._continues = lambda: False
    assert run.trainer.fit() == []
    train(compose(*SMALL, "rounds=2", f"output_dir={resumed}", f"resume={nothing}"))
    train(compose(*SMALL, "rounds=2", f"output_dir={whole}"))
    W = [load_checkpoint(folder)["algorithm"]["users"]["W"] for folder in (resumed, whole)]
    assert torch.equal(*W)
