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


def random_tasks(loss, counts=(13, 20, 7, 9), d=16, seed=0, dtype=torch.float32, **about):
    """Users with these numbers of random rows, four more to test on, and targets for the loss: 0, 1, 2; ±1; or any."""
    rng, tasks, C = torch.Generator().manual_seed(seed), [], 3
    for k, n in enumerate(counts):
        x = torch.randn(n + 4, d, generator=rng, dtype=dtype)
        y = torch.randint(C, (n + 4,), generator=rng)
        if not loss.classes:
            y = y.clamp(max=1) * 2.0 - 1 if loss.labels else torch.randn(n + 4, generator=rng)
        tasks.append(Task(str(k), x[:n], y[:n], x[n:], y[n:], C if loss.classes else None, **about))
    return tasks


def planted(K, d, n, labels=False, common=2.0):
    """X [K, n, d] and y [K, n] of users whose models deviate from a common one, and their tasks."""
    rng = np.random.default_rng(0)
    true = common * rng.normal(size=(d, 1)) + 0.5 * rng.normal(size=(d, 2)) @ rng.normal(size=(2, K))
    X = rng.normal(size=(K, n, d))
    y = np.einsum("knd,dk->kn", X, true) + 0.5 * rng.normal(size=(K, n))
    y = np.where(y < 0, -1.0, 1.0) if labels else y
    rows = zip(torch.from_numpy(X), torch.from_numpy(y), strict=True)
    return X, y, [Task(str(k), x, t, x, t) for k, (x, t) in enumerate(rows)]


def split_task(name, x, y, test_fraction, rng, classes=None):
    """The task of rows x and targets y, split at random."""
    train, test = split(name, y, test_fraction, rng, classes)
    return Task(name, *map(torch.from_numpy, (x[train], y[train], x[test], y[test])), classes=classes)
