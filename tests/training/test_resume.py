"""Resuming a run: from a checkpoint that does not fit, and from one without a round."""

from pathlib import Path

import pytest
import torch

from hmtl.config.build import build, compose
from hmtl.errors import CheckpointError
from hmtl.training.checkpoint import load_checkpoint

SMALL = ("K=6", "H=3", "r=2", "dataset.rows_per_user=20", "logger=none")


def test_a_state_that_does_not_fit_is_one_error(tmp_path: Path) -> None:
    build(compose(*SMALL, "rounds=1", f"output_dir={tmp_path}")).trainer.fit()
    checkpoint = load_checkpoint(tmp_path)
    del checkpoint["algorithm"]["users"]
    run = build(compose(*SMALL, "rounds=2", f"output_dir={tmp_path}"))
    with pytest.raises(CheckpointError, match="does not fit"):
        run.trainer.fit(checkpoint)


def test_a_run_that_was_stopped_before_its_first_round_continues(tmp_path: Path) -> None:
    stopped, resumed, whole = (build(compose(*SMALL, "rounds=2", f"output_dir={tmp_path}")) for _ in range(3))
    stopped.trainer._continues = lambda: False
    assert stopped.trainer.fit() == []
    resumed.trainer.fit(load_checkpoint(tmp_path))
    whole.trainer.fit()
    assert torch.equal(resumed.algorithm.W, whole.algorithm.W)
