"""One coded exchange in process, all relays included, and one MOCHA round of the default job."""

from collections.abc import Callable

import pytest
import torch
from omegaconf import DictConfig
from timing import medians

from hmtl.communication import CodedHierarchical
from hmtl.config import build
from hmtl.topology import symmetric

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("scheme", ["optimal", "paper"])
def test_coded_exchange(scheme: str, record: Callable[..., None]) -> None:
    communicator = CodedHierarchical(symmetric(K=40, H=5, r=3), scheme)
    ivs = torch.randn(40, 784, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (took,) = medians(lambda: communicator.exchange(ivs, lambda x: x), repeats=30)
    record(f"coded exchange, {scheme}, K=40 H=5 r=3, 6272-byte IVs", 1e3 * took, "ms")


def test_mocha_round(configure: Callable[..., DictConfig], record: Callable[..., None]) -> None:
    run = build(configure())
    numbers = iter(range(1000))

    def round() -> None:
        ivs = run.algorithm.local_update(next(numbers))
        run.algorithm.receive(run.communicator.exchange(ivs, run.algorithm.global_update))
        run.algorithm.metrics()

    (took,) = medians(round, repeats=30)
    record("MOCHA round on the default job, exchange and metrics included", 1e3 * took, "ms")
