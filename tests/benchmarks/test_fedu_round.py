"""One round of FedU, beside the same work in a plain loop over modules."""

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from timing import medians
from torch import Tensor, nn

from hmtl.data import Task
from hmtl.mtl import CrossEntropy, FedU, LocalSGD, Mean, NetworkAlgorithm, Problem

K, N, D, C = 30, 375, 561, 6


def epoch(module: nn.Module, x: Tensor, y: Tensor, step: float, batch: int, shuffle: torch.Generator) -> None:
    """One epoch of SGD as a loop is fastest: rows are gathered once, and no optimizer and no `.grad` is in between."""
    parameters = list(module.parameters())
    order = torch.randperm(len(x), generator=shuffle)
    for x_batch, y_batch in zip(x[order].split(batch), y[order].split(batch), strict=True):
        gradients = torch.autograd.grad(nn.functional.cross_entropy(module(x_batch), y_batch), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=step)


def test_fedu_round(record: Callable[..., None]) -> None:
    """30 users × 375 × 561, 6 classes, 5 local epochs, minibatches of 20, a linear model, one thread."""
    rng = np.random.default_rng(0)
    tasks = []
    for k in range(K):
        x = torch.from_numpy(rng.normal(size=(N, D)).astype(np.float32))
        y = torch.from_numpy(rng.integers(C, size=N))
        tasks.append(Task(str(k), x, y, x[:2], y[:2], C))
    fedu = NetworkAlgorithm(
        FedU(), Problem(tasks, CrossEntropy(), Mean(0.01)), LocalSGD(0.01, epochs=5, batch=20), nn.Linear
    )
    modules = [copy.deepcopy(fedu.model.module) for _ in range(K)]
    numbers = iter(range(1000))

    def round() -> None:
        fedu.step(next(numbers))

    shuffle = torch.Generator().manual_seed(0)

    def loop() -> None:
        """The local steps alone."""
        for module, task in zip(modules, tasks, strict=True):
            for _ in range(5):
                epoch(module, task.x_train, task.y_train, 0.01, 20, shuffle)

    took, plain = medians(round, loop, repeats=9, clock=time.process_time)
    record("FedU round, K=30 n=375 d=561, 6 classes, 5 epochs of 20, linear, CPU", took, "s", "loop", plain / took)
