"""A round of sums beside a forwarded one of the same learner: users make their own models, an aggregator makes all."""

import time
from collections.abc import Callable
from itertools import count

import pytest
import torch
from timing import medians

from hmtl.communication import Communicator, Sums, Uncoded
from hmtl.data import Task
from hmtl.mtl import MOCHA, SDCA, Hinge, Mean, Problem
from hmtl.topology import any_r


@pytest.mark.parametrize("K", [1_000])
def test_round_of_sums(K: int, record: Callable[..., None]) -> None:
    numbers = torch.Generator().manual_seed(0)
    y, t = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64), any_r(K=K, H=5, r=3)
    rows = torch.randn(K, 4, 561, dtype=torch.float64, generator=numbers)
    problem = Problem([Task(str(k), x, y, x, y) for k, x in enumerate(rows)], Hinge(), Mean(1e-3, 1e-4))

    def play(communicator: Communicator) -> Callable[[], object]:
        mocha, round = MOCHA(problem, SDCA(1.0)), count()
        return lambda: communicator.round(next(round), mocha.users, mocha.aggregator)

    sums, uncoded = medians(play(Sums(t)), play(Uncoded(t)), repeats=9, clock=time.process_time)
    name = f"round of MOCHA in sums, K={K} H=5 r=3, 4,488-byte messages, CPU"
    record(name, 1e3 * sums, "ms", peer="the same forwarded", ratio=uncoded / sums)
