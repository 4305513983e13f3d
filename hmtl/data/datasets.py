"""Tasks from torch Datasets of the users, and users from one Dataset that a partition divides."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from hmtl.data.partitions import Partition
from hmtl.data.splitting import split
from hmtl.data.tasks import Task
from hmtl.errors import DataError
from hmtl.rng import generator

Source = Dataset[Any] | DataLoader[Any]
UserData = Task | Source | tuple[Source, Source]
"""The data of a user: a Task, training rows, or training and test rows."""
AT_ONCE = 256  # rows that are read together


def from_datasets(users: Sequence[UserData], classes: int | None = None) -> tuple[Task, ...]:
    """Return the tasks of users who have torch Datasets, or DataLoaders, whose Datasets are then taken.

    Items are pairs of a row, which is a tensor or an array, and its target. Integers from 0 are class numbers, −1 and 1
    are two classes, and floats are numbers to predict. Each Dataset is read once, for counts and errors; a
    `LocalTrainer` or `TorchTrainer` trains on the Dataset itself, so that random transforms draw anew in each epoch.

    Args:
        users: the data of each user; Tasks stay as they are.
        classes: C; None: as many as the largest class number of all users needs, at least 2.

    Raises:
        DataError: a Dataset cannot be read, or users have different kinds of targets.
    """
    if isinstance(users, Dataset | DataLoader | Mapping):
        raise DataError("Data has to be a list with a Dataset for each user. `hmtl.data.deal` divides one Dataset.")
    read: dict[int, list[tuple[Tensor, Tensor]]] = {}
    own: dict[int, Dataset[Any]] = {}
    for k, user in enumerate(users):
        if isinstance(user, Task):
            continue
        sources = user if isinstance(user, tuple) else (user,)
        if len(sources) not in (1, 2) or None in sources:
            raise DataError(
                f"User {k} has {len(sources)} Datasets, or None. Give training rows, or training and test rows."
            )
        own[k], *test = (source.dataset if isinstance(source, DataLoader) else source for source in sources)
        held_out = [each for each in test if len(each)]  # type: ignore[arg-type]  # a Dataset need not have a length
        read[k] = [_rows(dataset, k) for dataset in (own[k], *held_out)]
    labels = [y for parts in read.values() for _, y in parts]
    is_integer = {not y.is_floating_point() for y in labels}
    if len(is_integer) > 1:
        raise DataError("Some targets are integers and others are floats. Give classes as int, and numbers as float.")
    largest = max((int(y.max()) for y in labels), default=0)
    are_classes = True in is_integer and min(int(y.min()) for y in labels) >= 0
    classes = (classes or max(2, largest + 1)) if are_classes else None
    made = []
    for k, user in enumerate(users):
        if isinstance(user, Task):
            made.append(user)
            continue
        (x, y), (x_test, y_test) = (*read[k], tuple(rows[:0] for rows in read[k][0]))[:2]
        made.append(Task(f"user {k}", x, y, x_test, y_test, classes, dataset=None if _is_stored(own[k]) else own[k]))
    return tuple(made)


def _is_stored(dataset: Dataset[Any]) -> bool:
    """Whether items are rows of tensors, and thus the same whenever they are read."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return type(dataset) is TensorDataset


def deal(
    dataset: Dataset[Any], partition: Partition, K: int, seed: int = 0, test_fraction: float = 0.0
) -> list[tuple[Dataset[Any], Dataset[Any]]]:
    """Return the training and test rows of K users to whom a partition deals the rows of one Dataset.

    Args:
        dataset: pairs of a row and its class; `dataset.targets`, if it exists, has the classes without reading rows.
        partition: such as `Dirichlet(0.1)`.
        K: number of users.
        seed: seed of the partition and of the split into training and test rows.
        test_fraction: share of each user's rows to test on, rounded up.

    Raises:
        ConfigError, DataError: see the partition.
    """
    targets = getattr(dataset, "targets", None)
    y = np.asarray(_rows(dataset, 0)[1] if targets is None else targets)
    users: list[tuple[Dataset[Any], Dataset[Any]]] = []
    for k, rows in enumerate(partition(y, K, generator(seed, "data", "partition"))):
        parts = split(f"user {k}", y[rows], test_fraction, generator(seed, "data", "split", k), classes=2)
        train, test = (Subset(dataset, rows[part].tolist()) for part in parts)
        users.append((train, test))
    return users


def _rows(dataset: Dataset[Any], user: int) -> tuple[Tensor, Tensor]:
    """Return the rows and targets of a Dataset; random transforms draw by the user's number."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(user)
        try:
            if not (n := len(dataset)):  # type: ignore[arg-type]  # a Dataset need not have a length
                raise ValueError("it has no rows")
            if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
                return dataset.tensors[0], dataset.tensors[1]  # not copied
            x, y = torch.empty(0), list[Tensor]()
            for at, (rows, targets) in enumerate(DataLoader(dataset, AT_ONCE)):
                x = x if at else rows.new_empty(n, *rows.shape[1:])  # whole at once, not twice when parts are joined
                x[at * AT_ONCE :][: len(rows)] = rows
                y.append(targets)
            return x, torch.cat(y)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise DataError(
                f"The Dataset of user {user} cannot be read ({reason}). Give a Dataset with a length, whose items are "
                "pairs of a tensor, or an array, and a target."
            ) from error
