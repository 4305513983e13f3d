"""The portable codec beside zfec, in one process and by turns, and the products that a coded round is made of."""

import os
import time

import pytest
import torch
from timing import medians

from hmtl.coding import make_plan
from hmtl.gf256.products import portable
from hmtl.topology import symmetric


def draw(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_throughput_beside_zfec(record):
    zfec = pytest.importorskip("zfec")
    """8 parity rows of 20 rows of 1 MiB: both do 160 MiB of multiply-accumulate."""
    n, m, L = 8, 20, 1 << 20
    A, X = draw(n, m), draw(m, L)
    blocks, parity, encoder = [os.urandom(L) for _ in range(m)], list(range(m, m + n)), zfec.Encoder(m, m + n)
    ours, theirs = medians(
        lambda: portable(A, X), lambda: encoder.encode(blocks, parity), repeats=25, clock=time.process_time
    )
    record(
        "portable codec, 8 × 20 × 1 MiB, one thread", n * m * L / ours / 1e9, "GB/s", peer="zfec", ratio=theirs / ours
    )


@pytest.mark.parametrize(("n", "m"), [(12, 72), (48, 60), (48, 120)])
def test_small_products(n, m, record):
    A, X = draw(n, m), draw(m, 2091)
    (ours,) = medians(lambda: portable(A, X), repeats=100)
    record(f"portable codec, {n} × {m} × 2091 bytes, one thread", 1e3 * ours, "ms")


def test_products_of_a_coded_round(record):
    """All products of one exchange, K=40, H=5, r=3, IVs of 6272 bytes."""
    (block,) = make_plan(symmetric(K=40, H=5, r=3), "paper").blocks
    matrices = [*block.uplink, block.downlink, *block.decoders]
    work = [(A, draw(A.shape[1], -(-6272 // block.pieces))) for A in matrices]
    (ours,) = medians(lambda: [portable(A, X) for A, X in work], repeats=30)
    record("portable codec, all products of a coded round, K=40 H=5 r=3, one thread", 1e3 * ours, "ms")
