"""Whole rounds of FedAvg and FedU, evaluated each time, beside the faster of two loops and one by vmap; CPU time."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gradients import LEARNERS, SIZES, sides
from timing import medians

REPEATS = {"small": 5, "users": 3, "large": 2}


@pytest.mark.parametrize("communicator", ["uncoded", "coded"])
@pytest.mark.parametrize("size", SIZES)
def test_whole_round(size: str, communicator: str, tmp_path: Path, record: Callable[..., None]) -> None:
    made = {name: make() for name, make in sides(SIZES[size], communicator, tmp_path).items()}
    seconds = dict(zip(made, medians(*made.values(), repeats=REPEATS[size], clock=time.process_time), strict=True))
    loop = min("loop", "loop of K modules", key=seconds.__getitem__)
    for learner in LEARNERS:
        name = f"whole round of {learner}, {communicator}, {SIZES[size]}"
        record(name, seconds[learner], "s", loop, seconds[loop] / seconds[learner])
        record(name, seconds[learner], "s", "vmap loop", seconds["vmap"] / seconds[learner])
        record(name, seconds[learner], "s", "FedAvg", seconds["FedAvg"] / seconds[learner])
        record(f"test error of {learner}, {communicator}, {SIZES[size]}", made[learner].error, "", "loop")


@pytest.mark.parametrize("communicator", ["uncoded", "coded"])
@pytest.mark.parametrize("size", SIZES)
def test_memory(size: str, communicator: str, record: Callable[..., None]) -> None:
    """The most that each side takes in a process of its own, with torch and all else that it loads."""
    taken = {}
    for side in ("loop", "loop of K modules", "vmap", *LEARNERS):
        command = [sys.executable, str(Path(__file__).with_name("gradients.py")), size, side, communicator]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken[side] = float(done.stdout)
    for side, mebibytes in taken.items():
        record(f"memory of {side}, {communicator}, {SIZES[size]}", mebibytes, "MiB", "loop", taken["loop"] / mebibytes)
