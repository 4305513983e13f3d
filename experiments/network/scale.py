"""How a run by Ray grows with K: seconds, memory and bits, with 1 % of the users sampled in each round.

`python experiments/network/scale.py K` prints a row of a table; `H=25`, say, changes a setting. Four hosts make six
rows for each of their users, and train an MLP of 51,000 parameters by FedAvg over five relays; the first and the last
of ten rounds are evaluated. Memory is the most at any time, of all processes (shared pages count once) and of the
largest one.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch

from hmtl.config.build import build, compose
from hmtl.data import Task

SETTINGS = """engine=ray engine.hosts=4 engine.seconds=300 dataset=own dataset._target_=scale.users algorithm=fedavg
algorithm.model._target_=hmtl.mtl.mlp loss=cross_entropy participation=fraction participation.fraction=0.01 H=5 r=3
rounds=10 evaluate_every=10 logger=none"""


def users(K: int, wanted: Callable[[int], set[int]]) -> list[Task]:
    """Return K users, with rows for those who are wanted."""

    def task(k: int, n: int = 5) -> Task:
        rng = torch.Generator().manual_seed(k)
        x, y = (torch.randn(rows, 784, generator=rng) for rows in (n, 1)), torch.randint(10, (n + 1,), generator=rng)
        return Task(f"user {k}", next(x), y[:n], next(x), y[n:], classes=10)

    own, other = wanted(K), task(0).without_rows()
    return [task(k) if k in own else other.renamed(f"user {k}") for k in range(K)]


def processes() -> Iterator[tuple[float, float]]:
    """Yield the CPU time [s] and the memory [GiB] of each process of this run."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == Path.cwd():
                ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
                share = (process / "smaps_rollup").read_text().partition("Pss:")[2].split()[0]
                yield sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), int(share) / 2**20


def watch(memory: list[list[float]]) -> None:
    while True:
        memory.append([share for _, share in processes()])
        time.sleep(2.0)


def main(K: str, *words: str) -> None:
    memory = [[0.0]]
    threading.Thread(target=watch, args=(memory,), daemon=True).start()
    run = build(compose(*SETTINGS.split(), f"K={K}", f"output_dir={Path.cwd()}", *words))
    start, own, begin = sum(cpu for cpu, _ in processes()), time.process_time(), time.monotonic()
    bits = run.trainer.fit()[-1]["bits_total"] / 1e9
    seconds, cpu = time.monotonic() - begin, sum(cpu for cpu, _ in processes()) - start
    own = time.process_time() - own
    most, largest = max(map(sum, memory)), max(map(max, memory))
    print(
        "| K | start, CPU s | rounds, CPU s | controller's, CPU s | rounds, s | memory, GiB | largest, GiB | 1e9 bits |"
    )
    print(f"| {K} | {start:.0f} | {cpu:.0f} | {own:.1f} | {seconds:.0f} | {most:.1f} | {largest:.1f} | {bits:.1f} |")
    run.engine.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main(*sys.argv[1:])
