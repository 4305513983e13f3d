"""Compute is CPU time, which must not grow with what else the machine does."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from hmtl.io.cpu_time import cpu_seconds

WAITING = """
import os, sys, time
import hmtl
assert "torch" not in sys.modules  # whose threads would have chosen how to wait
import torch
torch.set_num_threads(2)
from hmtl.io.cpu_time import cpu_seconds
W = torch.ones(200, 200)
W @ W
start, start_alone = cpu_seconds(), time.thread_time()
for _ in range(50):
    W @ W
    end = time.thread_time() + 0.01
    while time.thread_time() < end:  # one thread works, where the other has nothing to do
        pass
print(os.environ["OMP_WAIT_POLICY"], (cpu_seconds() - start) / (time.thread_time() - start_alone))
"""


def told(policy: dict[str, str]) -> tuple[str, float]:
    """How threads wait, and the CPU time of all over that of the one that works."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP", "KMP"))}
    line = [sys.executable, "-c", WAITING]
    done = subprocess.run(line, env={**environment, **policy}, capture_output=True, text=True, check=True)
    name, ratio = done.stdout.split()
    return name, float(ratio)


@pytest.mark.parametrize("threads", [1, 2])
def test_other_threads_count_if_torch_computes_with_several(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    start, other = cpu_seconds(), threading.Thread(target=work)
    other.start()
    other.join()
    assert (cpu_seconds() - start > 0.04) == (threads > 1)


@pytest.mark.slow
def test_threads_that_wait_do_not_compute() -> None:
    name, ratio = told({})
    assert name == "PASSIVE"
    assert ratio < 1.3  # 1.02; where they wait busily 1.7 or more


@pytest.mark.slow
def test_who_asks_for_another_policy_gets_it() -> None:
    assert told({"OMP_WAIT_POLICY": "ACTIVE"})[0] == "ACTIVE"
