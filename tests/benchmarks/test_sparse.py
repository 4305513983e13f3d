"""Local passes on sparse rows beside the same rows dense, and the memory of a training on them."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from scipy import sparse
from timing import medians

from hmtl.data import Task
from hmtl.mtl import MOCHA, SDCA, Hinge, Mean, Problem
from hmtl.mtl.solvers.sdca import DualSubproblem

K, n, d, FILLED = 100, 60, 20_000, 100
MEASURED = """
from pathlib import Path

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

import torch
before = peak()
from hmtl.mtl import MOCHA, SDCA, Hinge, Mean, Problem
{imports}
imported = peak()
from test_sparse import K, labels, pass_of, problem, rows
x = rows()
{work}
print(peak() - before, imported - before)
"""


def rows():
    """The rows of each user, FILLED numbers in each row."""
    rng = np.random.default_rng(0)
    columns = rng.integers(d, size=(K, n * FILLED))
    starts = np.arange(n + 1) * FILLED
    return [sparse.csr_array((rng.normal(size=n * FILLED), own, starts), shape=(n, d)) for own in columns]


def labels(x):
    rng = np.random.default_rng(1)
    w = rng.normal(size=d)
    return [np.where(own @ w > 0, 1, -1) for own in x]


def problem(x):
    y = labels(rows())
    tasks = [Task(str(k), own, y[k], own[:0], y[k][:0]) for k, own in enumerate(x)]
    return Problem(tasks, Hinge(), Mean(0.1, 0.1))


def pass_of(problem, passes, rounds=1):
    """Local passes of all users, from the state after some rounds."""
    mocha = MOCHA(problem, SDCA(passes), omega_every=0)
    for round in range(rounds):
        mocha.step(round)
    users, counts = mocha.users, problem.rows.counts
    drawn = mocha.solver.draw(0, rounds, range(K), counts), mocha.solver.steps(counts)
    start = DualSubproblem(users.a[:, 0], users.W, users.curvature)
    return lambda: mocha.solver(problem.loss, problem.rows, start, *drawn)


@pytest.mark.parametrize("passes", [1, 10])
def test_beside_dense(passes, record):
    dense = problem([own.toarray() for own in rows()])
    works = pass_of(problem(rows()), passes), pass_of(dense, passes)
    for ours, theirs in zip(*(work() for work in works), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    ours, theirs = medians(*works, repeats=9, clock=time.process_time)
    record(
        f"{passes} local passes, {K} × {n} × {d}, {FILLED} non-zeros, one thread, CPU",
        1e3 * ours,
        "ms",
        "dense",
        theirs / ours,
    )
    assert theirs > 5 * ours


WORKS = {
    "a pass": ("", "pass_of(problem(x), 1, rounds=0)()"),
    "MultiTask": (
        "from hmtl import MultiTask",
        "MultiTask(0.1, standardize='none', rounds=20).fit(x, labels(x)).score(x, labels(x))",
    ),
}


@pytest.mark.parametrize("work", WORKS)
def test_memory(work, record):
    """Peak beyond what torch takes, hmtl's other imports included."""
    imports, statement = WORKS[work]
    script = MEASURED.format(imports=imports, work=statement)
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    whole, imported = map(float, done.stdout.split())
    size = f"{K} × {n} × {d}, {FILLED} non-zeros"
    record(f"memory of {work}, {size}, beyond torch", whole, "MB")
    record("of which imports", imported, "MB")
    if work == "a pass":
        assert whole < 300
