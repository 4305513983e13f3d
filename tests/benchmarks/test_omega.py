"""Ω of many users with models of few numbers: an update with its coupling, and a whole measurement; CPU time."""

import time

import numpy as np
import torch
from timing import medians

from hmtl.data import Task
from hmtl.mtl import MOCHA, SDCA, Problem, Squared, TaskRelationship
from hmtl.mtl.algorithms.mocha_aggregator import DualCoupling

D, ROWS = 50, 20


def test_update(record):
    for K in (5_000, 100_000):
        regularizer, W = TaskRelationship(0.1), torch.randn(D, K, dtype=torch.float64)
        first = regularizer.start(K, D)
        (seconds,) = medians(
            lambda W=W, first=first, regularizer=regularizer: DualCoupling(
                regularizer, regularizer.update_omega(W, first)
            ),
            repeats=5,
            clock=time.process_time,
        )
        record(f"update of Ω, K={K:,} d={D}", seconds, "s")


def test_measurement(record):
    rng, K = np.random.default_rng(0), 5_000
    x, w = rng.normal(size=(K, ROWS, D)), rng.normal(size=(K, D))
    y = np.einsum("knd,kd->kn", x, w)
    rows = zip(*map(torch.from_numpy, (x[:, 5:], y[:, 5:], x[:, :5], y[:, :5])), strict=True)
    tasks = [Task(f"user {k}", *each) for k, each in enumerate(rows)]
    mocha = MOCHA(Problem(tasks, Squared(), TaskRelationship(0.1)), SDCA(2.0), omega_every=1)
    mocha.step(0)
    (seconds,) = medians(mocha.metrics, repeats=5, clock=time.process_time)
    record(f"measurement, K={K:,} d={D}", seconds, "s")
