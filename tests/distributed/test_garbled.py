"""Garbled messages count as messages that were not sent: runs go on, and sums of the users who count are right."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import SMALL, train_in_cells
from garbled import CONTENTS, RUNS, Truth, garbled, with_other_content, write_moving, write_uneven
from omegaconf import DictConfig

from hmtl.communication.messages import ATTENDANCE, COMBINATIONS, IVS, SERVER, STATE
from hmtl.config.build import Run
from hmtl.distributed.frames import Frame

ALIKE = {"int4": (*RUNS["FedAvg by sums"], "communicator.wire=int4"), "moving": RUNS["MOCHA, coded"]}
QUICK = [("MOCHA, coded", 0)]
ALL = [(name, seed) for name in (*RUNS, *ALIKE) for seed in range(4)]


@pytest.mark.parametrize(
    ("name", "seed"), [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in ALL]
)
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
    contents = CONTENTS - {IVS} if name == "int4" else CONTENTS  # any content is a row of few bits

    def change(receiver: str, frame: Frame) -> Frame:
        if frame.round < 1 or rng.random() > 0.05:  # set-ups need everybody
            return frame
        spoiled[frame.kind] += 1
        truth.hear(wrong := garbled(frame, rng, contents=contents))
        return wrong

    words = [word for word in SMALL if not word.startswith(("K=", "H=", "r="))]
    place = write_moving(tmp_path) if name == "moving" else write_uneven(tmp_path)
    cfg = configure(*words, *place, *ALIKE.get(name, RUNS.get(name, ())), "rounds=8")
    run = train_in_cells(cfg, hosts=3, prepare=lambda run: setattr(run.engine, "change", change))
    assert len(run.rows) == 8
    assert truth.check()
    refused = [record for record in caplog.records if record.name == "hmtl.communication.gate"]
    assert sum(spoiled.values()) >= len(refused) > 0
    assert "failed at" not in caplog.text


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_a_state_that_a_relay_makes_up_ends_no_run(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seed: int,
) -> None:
    """Relay 2 misses round 1, and relay 0 hands it two false states before the right one."""
    rng, truth = np.random.default_rng(seed), Truth()
    truth.watch(monkeypatch.setattr)

    def prepare(run: Run) -> None:
        run.engine.lost = lambda sender, receiver, frame: (  # type: ignore[attr-defined]
            (receiver, frame.kind, frame.round) == ("relay 2", ATTENDANCE, 1)
        )
        run.engine.change = lambda receiver, frame: (  # type: ignore[attr-defined]
            made_up(frame, rng) if (receiver, frame.kind) == (SERVER, STATE) and frame.round < 4 else frame
        )

    words = [word for word in SMALL if not word.startswith(("K=", "H=", "r="))]
    cfg = configure(*words, *write_uneven(tmp_path), *RUNS["MOCHA, coded"], "algorithm.omega_every=1", "rounds=6")
    run = train_in_cells(cfg, prepare=prepare)
    assert [row["users"] for row in run.rows] == [10, 9, 9, 9, 9, 10]  # user 9 waits for a model
    assert truth.check()
    states = [run.cells.cells[f"relay {i}"].aggregator_state("learner") for i in range(3)]
    assert all(torch.equal(state[key], rows) for state in states for key, rows in states[0].items())
    assert "failed at" not in caplog.text


def test_combinations_of_numbers_that_are_not_finite_end_no_run(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Aggregators compute a coupling from what a relay makes up, before digests tell that it does."""
    rng, truth = np.random.default_rng(0), Truth()
    truth.watch(monkeypatch.setattr)

    def prepare(run: Run) -> None:
        run.engine.change = lambda receiver, frame: (  # type: ignore[attr-defined]
            with_other_content(frame, rng) if frame.kind == COMBINATIONS and frame.round in (1, 2) else frame
        )

    words = [word for word in SMALL if not word.startswith(("K=", "H=", "r="))]
    cfg = configure(*words, *write_uneven(tmp_path), *RUNS["MOCHA, coded"], "algorithm.omega_every=1", "rounds=6")
    run = train_in_cells(cfg, prepare=prepare)
    assert [row["users"] for row in run.rows][-1] == 10
    assert truth.check()
    assert "do not count: their numbers are too large" in caplog.text
    assert "failed at" not in caplog.text


def made_up(frame: Frame, rng: np.random.Generator) -> Frame:
    """Return a state, or rows of rounds that were missed, with other numbers in the same places."""
    content = torch.from_numpy(rng.integers(0, 256, frame.overhead.shape, np.uint8))
    content[:, :30] = frame.overhead[:, :30]
    return replace(frame, overhead=content)
