"""One coded round in process beside the function that sees everything, and one MOCHA round of the default job."""

import time
from collections.abc import Callable
from itertools import count

import pytest
import torch
from echo import EchoAggregator, EchoUsers
from from_above import exchange
from omegaconf import DictConfig
from timing import medians

from hmtl.communication import CodedHierarchical
from hmtl.config.build import build
from hmtl.topology import symmetric


@pytest.mark.parametrize("scheme", ["optimal", "paper"])
@pytest.mark.parametrize(("K", "m", "repeats"), [(40, 784, 60), (30, 100_000, 9)])
def test_coded_round(scheme: str, K: int, m: int, repeats: int, record: Callable[..., None]) -> None:
    """CPU seconds; the peer is what the first version did, without sending any model down."""
    communicator = CodedHierarchical(symmetric(K=K, H=5, r=3), scheme=scheme, aggregators="all")
    ivs = torch.randn(K, m, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    users, aggregator, numbers = EchoUsers(ivs), EchoAggregator(), count()
    nodes, from_above = medians(
        lambda: communicator.round(next(numbers), users, aggregator),
        lambda: exchange(communicator.plan, ivs, lambda x: x),
        repeats=repeats,
        clock=time.process_time,
    )
    assert torch.equal(users.models, ivs)
    name = f"coded round, {scheme}, K={K} H=5 r=3, {8 * m}-byte IVs, CPU"
    record(name, 1e3 * nodes, "ms", peer="the exchange computed from above", ratio=from_above / nodes)


def test_mocha_round(configure: Callable[..., DictConfig], record: Callable[..., None]) -> None:
    run = build(configure())
    numbers = count()

    def round() -> None:
        run.communicator.round(next(numbers), run.algorithm.users, run.algorithm.aggregator)
        run.algorithm.metrics()

    (took,) = medians(round, repeats=30)
    record("MOCHA round on the default job, exchange and metrics included", 1e3 * took, "ms")
