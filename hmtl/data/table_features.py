"""Features from raw tables with categories and missing numbers, fitted to what users tell of their training rows.

Shapes: K users, n rows, d features, q numeric columns.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hmtl.data.arrays import column_names
from hmtl.errors import DataError, few

Categories = Literal["auto"] | list[str] | None
Missing = Literal["mean"] | None


@dataclass(frozen=True)
class TableFeatures:
    """The features of a raw table: numeric columns first, and then one feature for each category.

    A missing number becomes the mean of its column. Empty cells are a category of their own, called "". A category that
    no training row has is 0 in all features of its column.

    Args:
        columns: raw columns, in their order.
        categories: categories of each categorical column, sorted.
        means: means of the numeric columns, in their order; None: no number may be missing.
    """

    columns: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    means: tuple[float, ...] | None = None

    @property
    def numeric(self) -> list[str]:
        """The numeric columns."""
        return [name for name in self.columns if name not in self.categories]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features [d]; that of a category is `column=category`."""
        return (*self.numeric, *(f"{name}={each}" for name, known in self.categories.items() for each in known))

    def table(self, x: ArrayLike, name: str) -> pd.DataFrame:
        """Return raw rows x, a table with the raw columns or an array with as many columns, as a table of them.

        Raises:
            DataError: if columns are missing. `name` is that of x in the message.
        """
        x = x.to_pandas() if hasattr(x, "to_pandas") else x
        table = x if isinstance(x, pd.DataFrame) else pd.DataFrame(np.asarray(x, dtype=object))
        if not column_names(x) and table.shape[1] == len(self.columns):
            table = table.set_axis(list(self.columns), axis=1)
        if missing := [column for column in self.columns if column not in table]:
            remedy = (
                "Add it." if column_names(x) else f"Give a table, or an array with these {len(self.columns)} columns."
            )
            raise DataError(f"{name} has no column {few(missing)}, which the model was trained on. {remedy}")
        return table[list(self.columns)]

    def features(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """Return the features [n, d] of raw rows.

        Raises:
            DataError: if a numeric column holds text.
        """
        numbers = pd.DataFrame({name: _numbers(table[name]) for name in self.numeric}, index=range(len(table)))
        if self.means:
            numbers = numbers.fillna(dict(zip(self.numeric, self.means, strict=True)))
        parts = [numbers.to_numpy(np.float64)]
        for name, known in self.categories.items():
            number = pd.Index(known, dtype=object).get_indexer(category_names(table[name]))  # -1: unknown
            parts.append(number[:, None] == np.arange(len(known)))
        return np.hstack(parts)

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps([self.columns, self.categories, self.means])

    @classmethod
    def from_json(cls, text: str) -> "TableFeatures":
        """Return what `to_json` wrote; raise ValueError or TypeError if the text is something else."""
        columns, categories, means = json.loads(text)
        known = {str(name): tuple(map(str, each)) for name, each in dict(categories).items()}
        return cls(tuple(map(str, columns)), known, None if means is None else tuple(map(float, means)))


@dataclass(frozen=True, eq=False)
class FittedTable:
    """The features of all users, and what one of them told for the fit.

    Args:
        features: features of raw rows.
        told: facts of this user [f] by exchange, in the order of the exchanges; see `fit`.
    """

    features: TableFeatures
    told: dict[str, Tensor]


def fit(
    tables: Sequence[pd.DataFrame], categories: Categories = None, missing: Missing = None
) -> tuple[TableFeatures, list[dict[str, Tensor]]]:
    """Return the features of raw tables, and what each user tells for the fit; the fit uses nothing else.

    The exchanges, as far as settings need them: `kinds`, whether each column holds text; `sums`, how many values each
    numeric column has, and their sums; `length`, the bytes of the categories; `text`, the categories of each column as
    JSON, padded to the longest. `POOLED` has what users receive.

    Args:
        tables: raw training rows of each user.
        categories: the categorical columns; "auto": those that hold text.
        missing: "mean": missing numbers become means, see `TableFeatures`.

    Raises:
        DataError: if there is no such column, or a column has no value at all.
    """
    columns, told = tuple(map(str, tables[0])), [dict[str, Tensor]() for _ in tables]

    def exchange(name: str, facts: list[Any]) -> Tensor:
        for own, each in zip(told, facts, strict=True):
            own[name] = torch.tensor(each, dtype=torch.float64)
        return POOLED[name](torch.stack([own[name] for own in told]))[0]

    if categories == "auto":
        kinds = exchange("kinds", [[holds_text(table[name]) for name in columns] for table in tables])
        categorical = [name for name, is_text in zip(columns, kinds, strict=True) if is_text]
    else:
        categorical = list(dict.fromkeys(categories or ()))
        if unknown := [name for name in categorical if name not in columns]:
            raise DataError(
                f"dataset.categories has {few(unknown)}, but the columns are {few(columns)}. Name columns of the table."
            )
    means, known = None, {}
    if missing:
        numeric = [name for name in columns if name not in categorical]
        numbers = [[_numbers(table[name]) for name in numeric] for table in tables]
        sums = [[np.isfinite(x).sum() for x in own] + [np.nansum(x) for x in own] for own in numbers]
        means = tuple(exchange("sums", sums).tolist())
        if empty := [name for name, mean in zip(numeric, means, strict=True) if np.isnan(mean)]:
            raise DataError(f"Column {few(empty)} has no value in any training row. Drop it.")
    if categorical:
        texts = [_to_bytes({name: set(category_names(table[name])) for name in categorical}) for table in tables]
        longest = int(exchange("length", [[len(text)] for text in texts]))
        union = exchange("text", [np.frombuffer(text.ljust(longest)) for text in texts])
        known = {name: tuple(each) for name, each in _from_bytes(union).items()}
    return TableFeatures(columns, known, means), told


def _largest(facts: Tensor) -> Tensor:
    return facts.amax(0).expand_as(facts)


def _means(facts: Tensor) -> Tensor:
    counts, sums = facts.sum(0).chunk(2)
    return (sums / counts).expand(len(facts), -1)


def _union(facts: Tensor) -> Tensor:
    union: dict[str, set[str]] = {}
    for own in facts:
        for name, known in _from_bytes(own).items():
            union.setdefault(name, set()).update(known)
    return torch.from_numpy(np.frombuffer(_to_bytes(union)).copy()).expand(len(facts), -1)


POOLED: dict[str, Callable[[Tensor], Tensor]] = {"kinds": _largest, "sums": _means, "length": _largest, "text": _union}
"""What each user receives in an exchange of `fit`, [K, e] with equal rows, from the facts of all users [K, f]."""


def _to_bytes(categories: dict[str, set[str]]) -> bytes:
    """Return categories as UTF-8, padded to whole float64: eight bytes travel as one number."""
    text = json.dumps({name: sorted(known) for name, known in categories.items()}, ensure_ascii=False).encode()
    return text.ljust(-(-len(text) // 8) * 8)


def _from_bytes(row: Tensor) -> dict[str, list[str]]:
    categories: dict[str, list[str]] = json.loads(row.numpy().tobytes())
    return categories


def _numbers(column: pd.Series) -> NDArray[np.float64]:
    """Return a column's numbers, NaN if missing."""
    try:
        numbers: NDArray[np.float64] = column.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"Column {column.name} holds text ({error}), but is numeric. Fix or drop such rows.") from error
    return numbers


def holds_text(column: pd.Series) -> bool:
    """Return whether a column has a cell that is neither a number nor empty."""
    if pd.api.types.is_numeric_dtype(column):
        return False
    return bool(pd.to_numeric(column.dropna().astype(str), errors="coerce").isna().any())


def category_names(column: pd.Series) -> NDArray[Any]:
    """Return the cells of a column as names of categories: "" if empty; 01, 1 and 1.0 are the same number."""
    names = np.array([str(cell) for cell in column.astype(object).where(column.notna(), "")], dtype=object)
    numbers = pd.to_numeric(pd.Series(names), errors="coerce").to_numpy(np.float64)
    is_number = np.abs(numbers) < 2**53
    names[is_number] = [f"{number + 0.0:.15g}" for number in numbers[is_number]]
    return names
