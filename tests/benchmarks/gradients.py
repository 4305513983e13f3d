"""Rounds of gradient learners with all that is measured of them, and the loops that one would write instead.

Run as a script, it plays two rounds of one side and prints the most memory that its process took:
`python tests/benchmarks/gradients.py SIZE SIDE COMMUNICATOR`.
"""

import copy
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from digits import digits
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

STEP, BATCH, C = 0.03, 20, 10


@dataclass(frozen=True)
class Size:
    """K users, n training and n_test test rows of each, and the hidden layer of their networks."""

    K: int
    n: int
    n_test: int
    hidden: int

    def __str__(self) -> str:
        m = self.hidden * 785 + C * (self.hidden + 1)
        return f"K={self.K} n={self.n}, MLP of {m:,} parameters"

    def network(self, d: int = 784, C: int = C) -> nn.Module:
        return nn.Sequential(nn.Linear(d, self.hidden), nn.ReLU(), nn.Linear(self.hidden, C))


SIZES = {"small": Size(100, 600, 100, 64), "users": Size(1000, 60, 10, 64), "large": Size(100, 600, 100, 1270)}
LEARNERS = "FedAvg", "FedU, mean", "FedU, graph"


class Loop:
    """A module for each user, one after the other: local steps, the mean of the models, and what came of it."""

    def __init__(self, size: Size) -> None:
        self.rows = digits(size.K, size.n, size.n_test)
        torch.manual_seed(0)
        network = size.network()
        self.modules = [copy.deepcopy(network) for _ in range(size.K)]
        self.shuffle = torch.Generator().manual_seed(0)
        self.error = float("nan")

    def __call__(self) -> None:
        for module, x, y, _, _ in zip(self.modules, *self.rows, strict=True):
            optimizer = torch.optim.SGD(module.parameters(), lr=STEP)
            for at in torch.randperm(len(x), generator=self.shuffle).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(x[at]), y[at]).backward()
                optimizer.step()
        self.exchange()
        self.evaluate()

    @torch.no_grad()
    def exchange(self) -> None:
        for parameters in zip(*(module.parameters() for module in self.modules), strict=True):
            mean = torch.zeros_like(parameters[0])
            for parameter in parameters:
                mean += parameter / len(parameters)
            for parameter in parameters:
                parameter.copy_(mean)

    @torch.no_grad()
    def evaluate(self) -> None:
        losses, errors, test_errors = [], [], []
        for module, x, y, x_test, y_test in zip(self.modules, *self.rows, strict=True):
            scores = module(x)
            losses.append(float(nn.functional.cross_entropy(scores, y)))
            errors.append(float((scores.argmax(1) != y).float().mean()))
            test_errors.append(float((module(x_test).argmax(1) != y_test).float().mean()))
        self.error = float(np.mean(test_errors))


class VmapLoop:
    """The same for all users at once."""

    def __init__(self, size: Size) -> None:
        self.rows = digits(size.K, size.n, size.n_test)
        torch.manual_seed(0)
        self.network = size.network()
        stacked, _ = stack_module_state([self.network] * size.K)
        self.parameters = {name: parameter.detach() for name, parameter in stacked.items()}
        self.shuffle = torch.Generator().manual_seed(0)
        self.error = float("nan")

    def scores(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        scores: Tensor = functional_call(self.network, parameters, (x,))
        return scores

    def loss(self, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.scores(parameters, x), y)

    def __call__(self) -> None:
        x, y, x_test, y_test = self.rows
        K, n = y.shape
        order = torch.stack([torch.randperm(n, generator=self.shuffle) for _ in range(K)])
        gradients, users = vmap(grad(self.loss)), torch.arange(K)[:, None]
        for at in order.split(BATCH, dim=1):
            found = gradients(self.parameters, x[users, at], y[users, at])
            self.parameters = {name: w - STEP * found[name] for name, w in self.parameters.items()}
        means = {name: w.mean(0) for name, w in self.parameters.items()}
        self.parameters = {name: mean.expand(K, *mean.shape).contiguous() for name, mean in means.items()}
        with torch.no_grad():
            scores = vmap(self.scores)(self.parameters, x)
            nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="none").view(K, n).mean(1).tolist()
            (scores.argmax(2) != y).float().mean(1).tolist()
            self.error = float((vmap(self.scores)(self.parameters, x_test).argmax(2) != y_test).float().mean())


class Ours:
    """Rounds by the trainer.

    Args:
        learner: one of LEARNERS.
        communicator: "uncoded", or "coded" as it comes.
    """

    def __init__(self, size: Size, learner: str, communicator: str, folder: Path) -> None:
        from hmtl.communication import CodedHierarchical, Uncoded
        from hmtl.communication.communicators.sums import sums_if_faster
        from hmtl.data import Task
        from hmtl.mtl import CrossEntropy, FedAvg, FedU, Graph, LocalSGD, Mean, Problem
        from hmtl.topology import symmetric
        from hmtl.training.trainer import Trainer, TrainerSettings

        regularizer = Mean(1e-3, 1e-4)
        if "graph" in learner:  # each user hangs on the two before and the two after it
            ring = sum(np.roll(np.eye(size.K), shift, 1) for shift in (-2, -1, 1, 2))
            np.savez(folder / "ring.npz", ring)
            regularizer = Graph(1e-3, 1e-4, path=folder / "ring.npz")
        tasks = [
            Task(str(k), *rows, classes=C)
            for k, rows in enumerate(zip(*digits(size.K, size.n, size.n_test), strict=True))
        ]
        problem = Problem(tasks, CrossEntropy(), regularizer)
        del tasks
        kind = FedAvg if learner == "FedAvg" else FedU
        t = symmetric(K=size.K, H=5, r=3)
        q, network, messages = kind.sums_needed(problem), Uncoded(t), "ivs"
        if communicator == "coded":
            network = CodedHierarchical(t)
            if q and (sums := sums_if_faster(network, q, itemsize=4)):
                network, messages = sums, "sums"
        solver = LocalSGD(STEP, epochs=1, batch=BATCH)
        algorithm = kind(problem, solver, size.network, seed=0, messages=messages)
        self.trainer = Trainer(algorithm, network, TrainerSettings(folder, rounds=10**6))

    def __call__(self) -> None:
        trainer = self.trainer
        trainer.history.append(trainer._round(len(trainer.history), 0.0))

    @property
    def error(self) -> float:
        return self.trainer.history[-1]["test_error"]


def sides(size: Size, communicator: str, folder: Path) -> dict[str, Callable[[], Loop | VmapLoop | Ours]]:
    """What makes each side, by name."""
    folders = {learner: folder / str(n) for n, learner in enumerate(LEARNERS)}
    for each in folders.values():
        each.mkdir()
    ours = {learner: partial(Ours, size, learner, communicator, folders[learner]) for learner in LEARNERS}
    return {"loop": partial(Loop, size), "vmap": partial(VmapLoop, size), **ours}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        side = sides(SIZES[sys.argv[1]], sys.argv[3], Path(folder))[sys.argv[2]]()
        for _ in range(2):
            side()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)  # Linux counts in KiB
