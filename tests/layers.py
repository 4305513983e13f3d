"""Learners with personal layers, a network of three layers, and its training in plain torch."""

import numpy as np
import torch
from torch import nn

from hmtl.data import Task
from hmtl.mtl import CrossEntropy, FedPer, FedRep, LGFedAvg, Problem, Ridge

K, D, C = 4, 3, 3
COUNTS = (14, 9, 11, 28)
FULL = 100  # rows in a minibatch: all of them
KINDS = {"fedper": FedPer, "fedrep": FedRep, "lg_fedavg": LGFedAvg}
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]


def deep(d, C):
    return nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, C)).double()


def several_classes(seed=1):
    rng, tasks = np.random.default_rng(seed), []
    for k, n in enumerate(COUNTS):
        x, y = torch.from_numpy(rng.normal(size=(n + 4, D))), torch.from_numpy(rng.integers(0, C, n + 4))
        tasks.append(Task(str(k), x[:n], y[:n], x[n:], y[n:], C))
    return Problem(tasks, CrossEntropy(), Ridge(1.0))


def usual(kind):
    """The names that are personal by default."""
    return NAMES[:4] if kind == "lg_fedavg" else NAMES[4:]


def batches(solver, seed, round, user):
    """The rows of each minibatch of a user in a round."""
    order = solver.draw(seed, round, range(K), COUNTS).split(solver.steps(COUNTS).tolist())
    return [batch[batch >= 0] for batch in order[user]]


def descend(module, task, names, steps, rate, rows=slice(None)):
    """Take some steps on these rows, which change the parameters with these names."""
    for _ in range(steps):
        module.zero_grad()
        nn.functional.cross_entropy(module(task.x_train[rows]), task.y_train[rows].long()).backward()
        with torch.no_grad():
            for name, w in module.named_parameters():
                if name in names:
                    w -= rate * w.grad
