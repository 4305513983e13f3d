"""Users with squared losses and a linear model: the gradient of user k is H_k w − b_k, which numpy follows.

K users, n_k rows of D features. With full batches, H_k = X_kᵀX_k/n_k and b_k = X_kᵀy_k/n_k; with sums, without 1/n_k.
"""

import numpy as np
import torch
from torch import nn

from hmtl.data import Task
from hmtl.mtl import LocalSGD, NetworkAlgorithm, Problem, Ridge, Squared

K, D = 4, 2
COUNTS = np.array([14, 18, 11, 28])
P = COUNTS / COUNTS.sum()
FULL = 100  # rows in a minibatch: all of them


def rows(seed=0):
    """X_k [n_k, D] and y_k [n_k] of models that differ from user to user."""
    rng = np.random.default_rng(seed)
    X = [rng.normal(size=(n, D)) for n in COUNTS]
    return X, [x @ rng.normal(1, 1, size=D) + 0.1 * rng.normal(size=len(x)) for x in X]


def problem(seed=0, reduction="mean"):
    made = [tuple(map(torch.from_numpy, pair)) for pair in zip(*rows(seed), strict=True)]
    return Problem([Task(str(k), *pair, *pair) for k, pair in enumerate(made)], Squared(), Ridge(1.0), reduction)


def quadratics(seed=0, reduction="mean"):
    """H [K, D, D] and b [K, D]."""
    n, (X, y) = COUNTS if reduction == "mean" else np.ones(K), rows(seed)
    H = np.stack([x.T @ x / m for x, m in zip(X, n, strict=True)])
    return H, np.stack([x.T @ t / m for x, t, m in zip(X, y, n, strict=True)])


def linear(d, C):
    return nn.Linear(d, C, bias=False).double()


def learn(learner, step=0.1, epochs=1, decay=0.0, seed=0, reduction="mean", rounds=0, **options):
    """A learner on `problem`, after some rounds."""
    solver = LocalSGD(step, epochs, FULL, decay)
    algorithm = NetworkAlgorithm(learner, problem(seed, reduction), solver, linear, seed=seed, **options)
    return run(algorithm, 0, rounds)


def run(algorithm, first, last):
    for round in range(first, last):
        algorithm.step(round)
    return algorithm


def shared(algorithm):
    """The numbers that are averaged, which all users hold."""
    rows = algorithm.users.held["averaged"].all().numpy()
    assert not np.ptp(rows, axis=0).any()
    return rows[0]
