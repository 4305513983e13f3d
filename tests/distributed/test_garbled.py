"""Garbled messages count as messages that were not sent: runs go on, and sums of the users who count are right."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cells import SMALL, train_in_cells
from garbled import RUNS, Truth, garbled, write_uneven
from omegaconf import DictConfig

from hmtl.distributed.frames import Frame


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_sums_of_all_who_count_are_right(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    seed: int,
) -> None:
    """A twentieth of all messages is garbled, of all kinds, in eight rounds."""
    rng, truth, spoiled = np.random.default_rng(seed), Truth(), Counter[str]()
    truth.watch(monkeypatch.setattr)

    def change(receiver: str, frame: Frame) -> Frame:
        if frame.round < 1 or rng.random() > 0.05:  # set-ups need everybody
            return frame
        spoiled[frame.kind] += 1
        return garbled(frame, rng)

    words = [word for word in SMALL if not word.startswith(("K=", "H=", "r="))]
    cfg = configure(*words, *write_uneven(tmp_path), *RUNS[name], "rounds=8")
    run = train_in_cells(cfg, hosts=3, prepare=lambda run: setattr(run.engine, "change", change))
    assert len(run.rows) == 8
    assert truth.check()
    refused = [record for record in caplog.records if record.name == "hmtl.communication.gate"]
    assert sum(spoiled.values()) >= len(refused) > 0
    assert "failed at" not in caplog.text
