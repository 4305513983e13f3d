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


class Convolutional(Size):
    """Users with networks of two convolutions; `hidden` is the number of channels of the first."""

    def __str__(self) -> str:
        return f"K={self.K} n={self.n}, CNN of {sum(w.numel() for w in self.network().parameters()):,} parameters"

    def network(self, d: int = 784, C: int = C) -> nn.Module:
        from hmtl.mtl import cnn

        return cnn(d, C, self.hidden)


SIZES = {"small": Size(100, 600, 100, 64), "users": Size(1000, 60, 10, 64), "large": Size(100, 600, 100, 1270)}
LEARNERS = "FedAvg", "FedU, mean", "FedU, graph"


def epoch(module: nn.Module, x: Tensor, y: Tensor, step: float, batch: int, shuffle: torch.Generator) -> None:
    """One epoch of SGD as a loop is fastest: rows are gathered once, and no optimizer and no `.grad` is in between."""
    parameters = list(module.parameters())
    order = torch.randperm(len(x), generator=shuffle)
    for x_batch, y_batch in zip(x[order].split(batch), y[order].split(batch), strict=True):
        gradients = torch.autograd.grad(nn.functional.cross_entropy(module(x_batch), y_batch), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=step)


class Loop:
    """One user after the other: local steps from the last mean of the models, the next mean, and what came of it.

    Args:
        modules: 1, which all users take over in turn, or K, as personalized learners need.
    """

    def __init__(self, size: Size, modules: int) -> None:
        self.rows = digits(size.K, size.n, size.n_test)
        torch.manual_seed(0)
        network = size.network()
        self.modules = [copy.deepcopy(network) for _ in range(modules)]
        self.mean = [parameter.detach() for parameter in network.parameters()]
        self.shuffle = torch.Generator().manual_seed(0)
        self.error = float("nan")

    def module(self, k: int) -> nn.Module:
        """Return user k's module, which starts from the mean."""
        module = self.modules[k % len(self.modules)]
        with torch.no_grad():
            for parameter, mean in zip(module.parameters(), self.mean, strict=True):
                parameter.copy_(mean)
        return module

    def __call__(self) -> None:
        total = [torch.zeros_like(mean) for mean in self.mean]
        for k, (x, y) in enumerate(zip(*self.rows[:2], strict=True)):
            module = self.module(k)
            epoch(module, x, y, STEP, BATCH, self.shuffle)
            for parameter, partial_sum in zip(module.parameters(), total, strict=True):
                partial_sum += parameter.detach()
        self.mean = [partial_sum / len(self.rows[0]) for partial_sum in total]
        self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> None:
        losses, errors, test_errors = [], [], []
        for k, (x, y, x_test, y_test) in enumerate(zip(*self.rows, strict=True)):
            module = self.module(k)
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

    def __init__(self, size: Size, learner: str, communicator: str, folder: Path, batch: int = BATCH) -> None:
        from hmtl.communication import CodedHierarchical, Uncoded, sums_if_faster
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
        solver = LocalSGD(STEP, epochs=1, batch=batch)
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
    loops = {"loop": partial(Loop, size, 1), "loop of K modules": partial(Loop, size, size.K)}
    return {**loops, "vmap": partial(VmapLoop, size), **ours}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        side = sides(SIZES[sys.argv[1]], sys.argv[3], Path(folder))[sys.argv[2]]()
        for _ in range(2):
            side()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)  # Linux counts in KiB
