"""Small random problems, with rows in numpy beside them for oracles that share no code with the package."""

from types import SimpleNamespace

import numpy as np
import torch

from hmtl.data import Task
from hmtl.data.splitting import split
from hmtl.mtl import Hinge, Problem, TaskRelationship


def make(seed, K=4, d=5, n_max=12, regularizer=None, reduction="mean", loss=None):
    """K tasks with 3..n_max rows each, unequal, one row of zeros in each; mixed scales."""
    rng = np.random.default_rng(seed)
    X, y = [], []
    for _ in range(K):
        n = int(rng.integers(3, n_max + 1))
        x = rng.normal(size=(n, d)) * rng.choice([0.1, 1.0, 3.0])
        x[rng.integers(n)] = 0
        labels = rng.choice([-1.0, 1.0], size=n)
        labels[:2] = 1, -1
        X.append(x)
        y.append(labels)
    tasks = [Task(f"user{k}", *map(torch.from_numpy, (X[k], y[k], X[k], y[k]))) for k in range(K)]
    problem = Problem(tasks, loss or Hinge(), regularizer or TaskRelationship(0.1), reduction)
    s = [1 / len(labels) if reduction == "mean" else 1.0 for labels in y]

    def by_user(rows):
        return [each.numpy() for each in rows.flatten().split([*map(len, y)])]

    return SimpleNamespace(problem=problem, X=X, y=y, s=s, K=K, d=d, rng=rng, by_user=by_user)


def split_task(name, x, y, test_fraction, rng, classes=None):
    """The task of rows x and targets y, split at random."""
    train, test = split(name, y, test_fraction, rng, classes)
    return Task(name, *map(torch.from_numpy, (x[train], y[train], x[test], y[test])), classes=classes)
