"""Rows as networks read them: batches of the items of a Dataset, as a DataLoader makes them.

Linear models need a matrix; a network takes whatever its module takes. Here a row is an item of a Dataset, and a task
knows it by its number.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate

from hmtl.errors import DataError

Collate = Callable[[list[Any]], Any]
"""Makes a batch of a list of items, like `torch.utils.data.default_collate`."""
TARGETS = ("labels", "label", "targets", "target", "y")
"""Keys of a dictionary's entry that may hold the targets; the first of them does."""
MAX_DESCRIBED = 160  # characters in a message


class Items(Dataset[Any]):
    """Items of Datasets, numbered through, the training rows first, of which batches are made.

    Args:
        sources: Datasets, each with what makes a batch of its items.
        rows: numbers of the items that these are [n]; None: all.
        targets_of: returns the targets of n items as numbers [n]; None: nobody needs them.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Dataset[Any], Collate]],
        rows: Tensor | None = None,
        targets_of: Callable[[Any, int], Tensor | None] | None = None,
    ) -> None:
        self.sources = tuple(sources)
        count = sum(map(length, (dataset for dataset, _ in sources)))
        self.rows = torch.arange(count) if rows is None else rows
        self.targets_of = targets_of
        self._stored = [tensors_of(dataset) if collate is default_collate else None for dataset, collate in sources]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        source, at = self._place(int(self.rows[row]))
        dataset, _ = self.sources[source]
        return dataset[at]

    def of(self, rows: Tensor, targets_of: Callable[[Any, int], Tensor | None] | None = None) -> "Items":
        """Return the items with these numbers [n]."""
        return Items(self.sources, self.rows[rows], targets_of or self.targets_of)

    def of_only_entries(self) -> "Items":
        """Return these items with `only_entry` of their inputs as inputs."""
        sources = [(dataset, partial(_of_only_entry, collate)) for dataset, collate in self.sources]
        return Items(sources, self.rows, self.targets_of)

    @property
    def is_stored(self) -> bool:
        """Whether all items are rows of tensors."""
        return all(self._stored)

    @property
    def dataset(self) -> Dataset[Any]:
        """The items as a Dataset: the user's own, if these are all items of the first one."""
        first, _ = self.sources[0]
        if torch.equal(self.rows, torch.arange(length(first))):
            return first
        return Subset(ConcatDataset([dataset for dataset, _ in self.sources]), self.rows.tolist())

    def batch(self, at: Tensor) -> tuple[Any, Any]:
        """Return the inputs and the targets of the items at these places, which belong to one of the Datasets."""
        numbers = self.rows[at]
        source, first = self._place(int(numbers[0]))
        numbers = numbers - (int(numbers[0]) - first)
        dataset, collate = self.sources[source]
        if stored := self._stored[source]:
            tensors, rows = stored
            numbers = numbers if rows is None else rows[numbers]
            return parted([each[numbers] for each in tensors])
        places = numbers.tolist()
        together = getattr(dataset, "__getitems__", None)
        return parted(collate(together(places) if together else [dataset[i] for i in places]))

    def _place(self, number: int) -> tuple[int, int]:
        """Return the number of the Dataset of an item, and the item's number in it."""
        for source, (dataset, _) in enumerate(self.sources):
            if number < (n := length(dataset)):
                return source, number
            number -= n
        raise IndexError(number)


def length(dataset: Dataset[Any]) -> int:
    """Return the number of items of a Dataset, which torch does not ask it to have."""
    return len(dataset)  # type: ignore[arg-type]  # torch does not declare it


def tensors_of(dataset: Dataset[Any]) -> tuple[tuple[Tensor, ...], Tensor | None] | None:
    """Return the tensors whose rows are a Dataset's items, with the numbers of these rows; None if there are none.

    None in place of the numbers stands for all rows. Such items are the same whenever they are read.
    """
    rows = None
    while type(dataset) is Subset:
        own = torch.as_tensor(dataset.indices)
        rows, dataset = own if rows is None else own[rows], dataset.dataset
    return (dataset.tensors, rows) if type(dataset) is TensorDataset else None


def parted(batch: Any) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch.

    The targets are the last entry of a list or tuple, and the entry of a dictionary, or the attribute of any other
    object, that has a name in TARGETS; None if there are none, as for modules that compute their loss without. The
    inputs are all other entries, or the object itself.
    """
    if isinstance(batch, Mapping):
        if (name := target_name(batch)) is None:
            return batch, None
        return {key: value for key, value in batch.items() if key != name}, batch[name]
    if not isinstance(batch, list | tuple):
        return batch, next((getattr(batch, name) for name in TARGETS if hasattr(batch, name)), None)
    if len(batch) == 1:
        return batch[0], None
    *inputs, y = batch
    return inputs[0] if len(inputs) == 1 else inputs, y


def only_entry(inputs: Any) -> Any:
    """Return the only entry of a dictionary, besides text such as names of files; other inputs are as they are.

    Raises:
        DataError: there are several.
    """
    if not isinstance(inputs, Mapping):
        return inputs
    entries = [each for each in inputs.values() if not is_text(each)]
    if len(entries) != 1:
        raise DataError(
            f"Some rows are a dictionary of {described(inputs)}, where the module gets one tensor as others have it. "
            "Give all users rows of one kind."
        )
    return entries[0]


def _of_only_entry(collate: Collate, items: list[Any]) -> tuple[Any, ...]:
    inputs, y = parted(collate(items))
    return (only_entry(inputs),) if y is None else (only_entry(inputs), y)


def described(inputs: Any) -> str:
    """Return a phrase on the inputs of a batch: types and shapes of tensors, without the number of rows, if short."""
    text = _described(inputs)
    return text if len(text) <= MAX_DESCRIBED else f"{text[: MAX_DESCRIBED - 3]}..."


def _described(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape[1:])}"
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {_described(each)}" for name, each in inputs.items())
    if type(inputs) in (list, tuple):
        return ", ".join(map(_described, inputs))
    return type(inputs).__name__


def is_text(batched: Any) -> bool:
    """Return whether an entry of a batch is text, a string for each row."""
    return type(batched) in (list, tuple) and all(isinstance(each, str) for each in batched)


def target_name(batch: Mapping[Any, Any]) -> Any:
    """Return the key of the targets in a batch, None if there is none."""
    return next((name for name in TARGETS if name in batch), None)


def each_tensor(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return inputs with every tensor in them replaced; other objects that have tensors are left as they are."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: each_tensor(each, change) for name, each in inputs.items()}
    if type(inputs) in (list, tuple):
        return type(inputs)(each_tensor(each, change) for each in inputs)
    return inputs
