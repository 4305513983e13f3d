"""Graphs of users: weights a_kl ≥ 0 that say how similar the models of users k and l should be.

K users, d features, C classes. Weights are [K, K], float64 and symmetric; the diagonal does not matter.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hmtl.data import Task
from hmtl.data.sparse import times
from hmtl.errors import ConfigError, DataError
from hmtl.io.npz import load_arrays, open_file


def read_weights(path: str | Path, K: int) -> Tensor:
    """Read weights from a CSV file with K lines of K numbers, or from an npz file with one array.

    Raises:
        DataError: the file cannot be read, its shape is not [K, K], or an entry is negative, infinite, NaN or
            different from the one across the diagonal.
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
            f"{path} does not hold the weights of a graph ({error}). Give a CSV file with {K} lines of {K} numbers, "
            "or an npz file with one such array."
        ) from error
    if a.shape != (K, K):
        raise DataError(f"{path} has shape {a.shape}, not {(K, K)}. Give one row and one column per user.")
    for wrong, fault in (
        (~((a >= 0) & (a < np.inf)), "not a finite number ≥ 0"),
        (a != a.T, "different from the entry across the diagonal"),
    ):
        if wrong.any():
            k, l = (int(i) for i in np.argwhere(wrong)[0])  # noqa: E741, as in a_kl
            raise DataError(
                f"{path}: the weight {a[k, l]:g} of users {k} and {l} (from 0) is {fault}. Correct this entry."
            )
    return torch.from_numpy(a)


def nearest(covariances: Tensor, neighbors: int) -> Tensor:
    """Return weight 1 for two users if either is among the `neighbors` users nearest to the other, 0 otherwise.

    Users are near each other if the angle between their `covariances` [K, f] is small.

    Raises:
        ConfigError: there are fewer other users than `neighbors`.
    """
    from sklearn.neighbors import kneighbors_graph  # imported late: it takes a second, and few runs need it

    K = len(covariances)
    if not 0 < neighbors < K:
        raise ConfigError(f"neighbors={neighbors} is not between 1 and K − 1 = {K - 1}, the number of other users.")
    near = kneighbors_graph(covariances.cpu().numpy(), neighbors, metric="cosine").toarray()
    return torch.from_numpy(np.maximum(near, near.T))


def covariance(task: Task) -> Tensor:
    """Return the covariance of features and label up to a factor, Σ_j (y_j − ȳ)(x_j − x̄): [d], or [C·d] for classes.

    For rows without vectors of features, the mean label takes its place: the shares of the classes [C], or [1].

    It needs only a user's training rows, no model, and is the direction of the user's first gradient.
    """
    y = task.y_train
    label = one_hot(y, task.classes).double() if task.classes else y[:, None].double()
    if task.example is not None:
        return label.mean(0)
    if task.is_sparse:  # x̄ cancels, since the deviations of the labels sum to zero
        return times(task.x_train.T, label - label.mean(0)).T.flatten()
    x = task.x_train.double()
    return ((label - label.mean(0)).T @ (x - x.mean(0))).flatten()
