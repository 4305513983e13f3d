"""Graphs of users: weights a_kl ≥ 0, symmetric, that say how much the models of users k and l should be alike.

K users, d features; weights are [K, K], float64, and what stands on the diagonal does not matter.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hmtl.data import Task
from hmtl.errors import ConfigError, DataError
from hmtl.io.npz import load_arrays, open_file


def read_weights(path: str | Path, K: int) -> Tensor:
    """Weights from a CSV file of K lines with K numbers each, or from an npz file that holds one array.

    Raises:
        DataError: the file cannot be read, or an entry or the shape is not as it should be.
    """
    try:
        if Path(path).suffix == ".npz":
            (a,) = load_arrays(path).values()
        else:
            with open_file(path) as file:
                a = np.loadtxt(file, delimiter=",", ndmin=2)
        a = np.asarray(a, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} holds no weights of a graph ({error}). Give a CSV file of {K} lines with {K} numbers each, or an "
            "npz file with one such array."
        ) from error
    if a.shape != (K, K):
        raise DataError(f"{path} has shape {a.shape}, not {(K, K)}: it needs one row and one column per user.")
    for wrong, what in (
        (~((a >= 0) & (a < np.inf)), "no finite number ≥ 0"),
        (a != a.T, "not symmetric: the entry across the diagonal differs"),
    ):
        if wrong.any():
            k, other = (int(i) for i in np.argwhere(wrong)[0])
            raise DataError(
                f"{path}: the weight of users {k} and {other} (from 0), {a[k, other]:g}, is {what}. Fix it."
            )
    return torch.from_numpy(a)


def nearest(covariances: Tensor, neighbors: int) -> Tensor:
    """Weight 1 between two users where one is among the `neighbors` nearest of the other, 0 elsewhere.

    Near is a small angle between the users' `covariances`, [K, f].

    Raises:
        ConfigError: there are not that many other users.
    """
    from sklearn.neighbors import kneighbors_graph  # takes a second to load, and few need it

    K = len(covariances)
    if not 0 < neighbors < K:
        raise ConfigError(f"neighbors={neighbors} is not between 1 and K − 1 = {K - 1}, the number of other users.")
    near = kneighbors_graph(covariances.cpu().numpy(), neighbors, metric="cosine").toarray()
    return torch.from_numpy(np.maximum(near, near.T))


def covariance(task: Task) -> Tensor:
    """Of features and label, (1/n) Σ_j (y_j − ȳ)(x_j − x̄), up to a factor: [d], or [C·d] where there are C classes.

    A user's training rows give it before any model exists, and it is the direction in which its model sets out.
    """
    y = task.y_train
    label = one_hot(y, task.classes).double() if task.classes else y[:, None].double()
    x = task.x_train.double()
    return ((label - label.mean(0)).T @ (x - x.mean(0))).flatten()
