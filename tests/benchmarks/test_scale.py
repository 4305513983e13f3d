"""How planning and exchange grow with the number of users, and what an exchange of long IVs takes of memory."""

import resource
import statistics
import subprocess
import sys
import time
from itertools import count

import torch
from echo import EchoAggregator, EchoUsers

from hmtl.coding import loads
from hmtl.communication import CodedHierarchical
from hmtl.topology import any_r

USERS, BYTES = 40, 10_000_000


def test_many_users(record):
    """Exchange time per user at K = 100, 1,000, 10,000: the groups are alike, so it should not grow."""
    first = None
    for K in (100, 1_000, 10_000):
        start = time.perf_counter()
        communicator = CodedHierarchical(any_r(K=K, H=10, r=3))
        planned = time.perf_counter() - start
        ivs = torch.randn(K, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        users, aggregator, numbers, seconds = EchoUsers(ivs), EchoAggregator(), count(), []
        for _ in range(8):
            start = time.perf_counter()
            communicator.round(next(numbers), users, aggregator)
            seconds.append(time.perf_counter() - start)
        each = 1e6 * statistics.median(seconds[1:]) / K
        first = first or each
        made, best = communicator.plan.loads, loads(communicator.topology)
        name = f"optimal, K={K} H=10 r=3, {len(communicator.plan.blocks)} generations"
        record(f"plan, {name}", planned, "s")
        record(f"exchange per user, 1 KiB IVs, {name}", each, "µs", peer="K=100", ratio=first / each)
        for direction in ("uplink", "downlink"):
            value, least = getattr(made, direction), getattr(best, direction)
            record(f"{direction}, {name}", value, "IVs", peer="optimum", ratio=least / value)


def test_memory_of_long_ivs(record):
    """In a process of its own, so that what other tests took does not count."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True)
    record(f"memory beyond IVs and models, K={USERS} H=5, {BYTES / 1e6:g} MB per IV", float(done.stdout), "MB")


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    torch.set_num_threads(1)
    communicator = CodedHierarchical(any_r(K=USERS, H=5, r=3))
    communicator.round(0, EchoUsers(torch.zeros(USERS, 8, dtype=torch.float64)), EchoAggregator())
    ivs = torch.ones(USERS, BYTES // 8, dtype=torch.float64)
    before = peak_bytes()
    users = EchoUsers(ivs)
    communicator.round(0, users, EchoAggregator())
    print((peak_bytes() - before - users.models.numel() * users.models.itemsize) / 1e6)
