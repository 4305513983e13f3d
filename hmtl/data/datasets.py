"""Tasks from torch Datasets of the users, and users from one Dataset that a partition divides."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate
from torch.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler

from hmtl.data.items import Collate, Items, each_tensor, tensors_of
from hmtl.data.partitions import Partition
from hmtl.data.splitting import split
from hmtl.data.tasks import Task
from hmtl.errors import DataError, few, reason
from hmtl.rng import generator

Source = Dataset[Any] | DataLoader[Any]
UserData = Task | Source | tuple[Source, Source] | list[Source] | Mapping[str, Source]
"""The data of a user: a Task, training rows, or training and test rows, by place or as "train" and "test"."""
SAMPLERS = SequentialSampler, RandomSampler, BatchSampler
"""Samplers that a DataLoader makes itself."""
READ_CHUNK_ROWS = 256  # rows that are read together


def from_datasets(
    users: Iterable[UserData], classes: int | None = None, networks: bool = False, as_given: bool = False
) -> tuple[Task, ...]:
    """Return the tasks of users who have torch Datasets, or DataLoaders, whose Datasets are then taken.

    Items are pairs of a row, which is a tensor or an array, and its target. Integers from 0 are class numbers, −1 and 1
    are two classes, and floats are numbers to predict. Each Dataset is read once, for counts and errors; a
    `LocalTrainer` or `TorchTrainer` trains on the Dataset itself, so that random transforms draw anew in each epoch.

    Args:
        users: the data of each user; Tasks stay as they are.
        classes: C; None: as many as the largest class number of all users needs, at least 2.
        networks: whether networks are trained. They read rows from the Datasets whenever they need them, as `Items`,
            unless all rows are vectors or arrays of floats in TensorDatasets. Targets may then have any shape.
        as_given: whether networks read all rows as `Items`, whose targets keep their types and shapes.

    Raises:
        DataError: a Dataset cannot be read, or users have different kinds of targets.
    """
    if isinstance(users, Dataset | DataLoader | Mapping):
        remedy = "`hmtl.data.deal` divides one Dataset"
        if isinstance(users, Mapping):
            is_one = users and not users.keys() - {"train", "test"}
            remedy = "Give [data] for a single user" if is_one else "Give list(data.values())"
        raise DataError(f"Data has to be a list with a Dataset for each user. {remedy}.")
    if not (users := list(users)):
        raise DataError("The list of users is empty. Give a Dataset for each user.")
    sources = {k: _sources(user, k) for k, user in enumerate(users) if not isinstance(user, Task)}
    are_items = (
        networks and len(sources) == len(users) and (as_given or not all(map(_is_matrix, chain(*sources.values()))))
    )
    read: dict[int, list[tuple[Any, Tensor]]] = {
        k: [
            (_targets if are_items else _rows)(*source, k, name)
            for name, source in zip(("training", "test"), own, strict=False)
        ]
        for k, own in sources.items()
    }
    if some := [k for k, parts in read.items() if len({x is None for x, _ in parts}) > 1]:
        raise DataError(f"Only one of user {some[0]}'s training and test sets has targets. Give targets for both.")
    labels = [y for parts in read.values() for _, y in parts]
    is_integer = {not y.is_floating_point() for y in labels}
    if len(is_integer) > 1:
        raise DataError("Some targets are integers and others are floats. Give classes as int, and numbers as float.")
    largest = max((int(y.max()) for y in labels if not y.is_floating_point()), default=0)
    are_classes = True in is_integer and min(int(y.min()) for y in labels) >= 0
    classes = (classes or max(2, largest + 1)) if are_classes else None
    made = []
    for k, user in enumerate(users):
        if isinstance(user, Task):
            made.append(user)
            continue
        (x, y), *test = read[k]
        x_test, y_test = test[0] if test else (x if are_items else x[:0], y[:0])
        dataset, _ = sources[k][0]
        about: dict[str, Any] = {"dataset": None if tensors_of(dataset) else dataset}
        if are_items:
            n, n_test = len(y), len(y_test)
            items = Items(sources[k])
            numbers = torch.arange(n + n_test)[:, None]
            x, x_test = numbers[:n], numbers[n:]
            about = {"items": items, "example": _example(items, n)}
        made.append(Task(f"user {k}", x, y, x_test, y_test, classes, **about))
    return tuple(made)


def _sources(user: Any, k: int) -> list[tuple[Dataset[Any], Collate]]:
    """Return the Datasets of user k that have rows, the training rows first, and what makes batches of each."""
    if isinstance(user, Mapping):
        if "train" not in user or user.keys() - {"train", "test"}:
            what = f"Datasets by the names {few(list(map(str, user)))}" if user else "no Datasets"
            raise DataError(f"User {k} has {what}. Give train, or train and test.")
        user = tuple(user[name] for name in ("train", "test") if name in user)
    is_list = isinstance(user, list) and any(isinstance(each, Dataset | DataLoader) for each in user)
    given = user if isinstance(user, tuple) or is_list else (user,)
    if len(given) not in (1, 2) or any(each is None for each in given):
        what = "None in place of a Dataset" if any(each is None for each in given) else f"{len(given)} Datasets"
        raise DataError(f"User {k} has {what}. Give training rows, or training and test rows.")
    sources: list[tuple[Dataset[Any], Collate]] = []
    for each in given:
        parts = each if isinstance(each, list | tuple) and each else [each]
        if all(isinstance(part, np.ndarray | Tensor) for part in parts) or hasattr(each, "iloc"):
            raise DataError(
                f"User {k} has arrays or a table ({type(each).__name__}), not a Dataset. Give "
                "TensorDataset(torch.as_tensor(X), torch.as_tensor(y)), or a pair of Datasets to train and to test on."
            )
        dataset, collate = (each.dataset, each.collate_fn) if isinstance(each, DataLoader) else (each, default_collate)
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"User {k} has a {type(dataset).__name__}, whose rows have no numbers, so that they cannot be counted "
                "or shuffled. Give a Dataset with a length and items, such as list(dataset)."
            )
        chosen = [each.sampler, each.batch_sampler] if isinstance(each, DataLoader) else []
        chosen += [own.sampler for own in chosen if type(own) is BatchSampler]
        if others := [own for own in chosen if type(own) not in SAMPLERS or _draws_some(own, dataset)]:
            name = "batch_size=None" if others[0] is None else f"a {type(others[0]).__name__}"
            raise DataError(
                f"User {k} has a DataLoader with {name}, but users train on all rows, in batches of the solver. Give a "
                "Dataset of single rows, or a Subset, or set dataset.class_weight."
            )
        sources.append((dataset, collate))
    train, *test = sources
    if hasattr(train[0], "__len__") and not len(train[0]):
        raise DataError(f"User {k} has no training rows. Leave it out, or give it rows.")
    return [train, *(each for each in test if len(each[0]))]  # type: ignore[arg-type]  # see above


def _draws_some(sampler: Any, dataset: Dataset[Any]) -> bool:
    """Return whether a sampler draws some rows at random, perhaps several times, instead of all."""
    return isinstance(sampler, RandomSampler) and (sampler.replacement or len(sampler) != len(dataset))  # type: ignore[arg-type]  # torch does not declare it


def _is_matrix(source: tuple[Dataset[Any], Collate]) -> bool:
    """Return whether rows are stored as floats of one shape, each with a number as its target."""
    dataset, collate = source
    tensors, _ = tensors_of(dataset) or ((), None)
    if len(tensors) != 2 or collate is not default_collate:
        return False
    x, y = tensors
    return x.ndim > 1 and x.dtype in (torch.float32, torch.float64) and y.numel() == len(y)


def _targets(dataset: Dataset[Any], collate: Collate, user: int, split: str) -> tuple[tuple[()] | None, Tensor]:
    """Return the targets of a Dataset's items as numbers [n], or zeros if they have another shape.

    The first entry is None if the items have no targets, and () otherwise.
    """
    with _reading(user, split):
        items, targets = Items([(dataset, collate)]), list[Tensor | None]()
        n = len(items)
        for at in torch.split(torch.arange(n), READ_CHUNK_ROWS):
            inputs, y = items.batch(at)
            _check_finite(inputs, at)
            _check_finite([y], at)
            if type(y) in (list, tuple) and isinstance(y[0], str):
                raise ValueError("its targets are strings: number the classes")
            targets.append(y.flatten() if isinstance(y, Tensor) and y.numel() == len(at) else None)
        numbers = [y for y in targets if y is not None]
        return None if y is None else (), torch.cat(numbers) if len(numbers) == len(targets) else torch.zeros(n)


def _check_finite(inputs: Any, rows: Tensor) -> None:
    """Raise DataError if one of these rows has NaN, or infinity, which several inputs may have, such as masks."""

    def check(each: Tensor) -> Tensor:
        if each.is_floating_point() and len(each.shape) and len(each) == len(rows):
            bad = (each.isnan() if each is not inputs else ~each.isfinite()).reshape(len(each), -1).any(1)
            if bad.any():
                raise DataError(f"Row {int(rows[bad][0])} (from 0) is NaN or infinite. Fix or drop such rows.")
        return each

    each_tensor(inputs, check)


def _example(items: Items, n: int) -> Any:
    """Return the inputs and targets of two of the first n items, tensors without content."""
    with torch.random.fork_rng([]):
        inputs, targets = items.batch(torch.tensor([0, min(1, n - 1)]))
    return each_tensor((inputs, targets), lambda each: each.to("meta"))


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
    y = np.asarray(_targets(dataset, default_collate, 0, "training")[1] if targets is None else targets)
    users: list[tuple[Dataset[Any], Dataset[Any]]] = []
    for k, rows in enumerate(partition(y, K, generator(seed, "data", "partition"))):
        parts = split(f"user {k}", y[rows], test_fraction, generator(seed, "data", "split", k), classes=2)
        train, test = (Subset(dataset, rows[part].tolist()) for part in parts)
        users.append((train, test))
    return users


def _rows(dataset: Dataset[Any], collate: Collate, user: int, split: str) -> tuple[Tensor, Tensor]:
    """Return the rows and targets of a Dataset."""
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2 and (n := len(dataset)):
        rows, targets = dataset.tensors  # not copied
        return rows, targets.flatten() if targets.numel() == n else targets
    with _reading(user, split):
        n = len(dataset)  # type: ignore[arg-type]  # see `_sources`
        x, y = torch.empty(0), list[Tensor]()
        for at, (rows, targets) in enumerate(DataLoader(dataset, READ_CHUNK_ROWS)):
            x = x if at else rows.new_empty(n, *rows.shape[1:])  # whole at once, not twice when parts are joined
            x[at * READ_CHUNK_ROWS :][: len(rows)] = rows
            y.append(targets.flatten() if targets.numel() == len(targets) else targets)
        return x, torch.cat(y)


@contextmanager
def _reading(user: int, split: str) -> Iterator[None]:
    """Let random transforms draw by the user's number, and say what is wrong if a Dataset cannot be read."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(user)
        try:
            yield
        except DataError as error:
            raise DataError(f"The {split} rows of user {user}: {error}") from error
        except Exception as error:  # a Dataset is any code
            raise DataError(
                f"The {split} rows of user {user} cannot be read ({reason(error)}). Give a Dataset with a length, "
                "whose items are pairs of a tensor, or an array, and a target, such as TensorDataset(X, y)."
            ) from error
