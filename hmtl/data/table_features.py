"""Features from raw tables with categories and missing numbers, fitted to what users tell of their training rows.

Shapes: K users, n rows, d features, q numeric columns.
"""

from __future__ import annotations  # so that pandas, half a second, is imported by the first table

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hmtl.data.arrays import column_names
from hmtl.errors import DataError, few

if TYPE_CHECKING:
    import pandas as pd

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
        import pandas as pd

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
        import pandas as pd

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
    def from_json(cls, text: str) -> TableFeatures:
        """Return what `to_json` wrote; raise ValueError or TypeError if the text is something else."""
        columns, categories, means = json.loads(text)
        known = {str(name): tuple(map(str, each)) for name, each in dict(categories).items()}
        return cls(tuple(map(str, columns)), known, None if means is None else tuple(map(float, means)))


@dataclass(frozen=True, eq=False)
class FittedTable:
    """The features of all users, and what one of them told for the fit.

    Args:
        features: features of raw rows.
        told: what this user tells in each exchange [f], as `packed` returns it.
    """

    features: TableFeatures
    told: tuple[Tensor, ...]

    @property
    def answers(self) -> list[Tensor]:
        """What all users receive in each exchange [1, e]: which columns are categorical, and the features."""
        features = json.loads(self.features.to_json())
        return [packed([list(self.features.categories)]), packed([features])][-len(self.told) :]


def fit(tables: Sequence[pd.DataFrame], categories: Categories = None, missing: Missing = None) -> list[FittedTable]:
    """Return the features of raw tables, with what each user tells for the fit, which uses nothing else.

    In an exchange for "auto", users tell which columns hold text. In the last exchange, they tell how many values each
    numeric column has and their sums, if they are needed, and the categories of the other columns.

    Args:
        tables: raw training rows of each user.
        categories: the categorical columns; "auto": those that hold text.
        missing: "mean": missing numbers become means, see `TableFeatures`.

    Raises:
        DataError: if there is no such column, or a column has no value at all.
    """
    columns, kinds = tuple(map(str, tables[0])), list[list[int]]()
    if categories == "auto":
        kinds = [[int(holds_text(table[name])) for name in columns] for table in tables]
        categorical = [name for name, *is_text in zip(columns, *kinds, strict=True) if any(is_text)]
    else:
        categorical = list(dict.fromkeys(categories or ()))
        if unknown := [name for name in categorical if name not in columns]:
            raise DataError(
                f"dataset.categories has {few(unknown)}, but the columns are {few(columns)}. Name columns of the table."
            )
    numeric = [name for name in columns if name not in categorical] if missing else []
    numbers = [[_numbers(table[name]) for name in numeric] for table in tables]
    counts = [[int(np.isfinite(x).sum()) for x in own] for own in numbers]
    sums = [[float(np.nansum(x)) for x in own] for own in numbers]
    known = [{name: sorted(set(category_names(table[name]))) for name in categorical} for table in tables]
    if empty := [name for name, count in zip(numeric, np.sum(counts, axis=0), strict=True) if not count]:
        raise DataError(f"Column {few(empty)} has no value in any training row. Drop it.")
    means = tuple((np.sum(sums, axis=0) / np.sum(counts, axis=0)).tolist()) if missing else None
    union = {name: tuple(sorted(set().union(*(own[name] for own in known)))) for name in categorical}
    features = TableFeatures(columns, union, means)
    exchanges = [packed(facts) for facts in (kinds, list(zip(counts, sums, known, strict=True))) if facts]
    return [FittedTable(features, told) for told in zip(*exchanges, strict=True)]


def packed(facts: Sequence[Any]) -> Tensor:
    """Return facts [K] as JSON in rows [K, f] of equal length, eight bytes in each number."""
    texts = [json.dumps(each, ensure_ascii=False, separators=(",", ":")).encode() for each in facts]
    nbytes = -(-max(map(len, texts)) // 8) * 8
    return torch.from_numpy(np.stack([np.frombuffer(text.ljust(nbytes)) for text in texts]))


def _numbers(column: pd.Series) -> NDArray[np.float64]:
    """Return a column's numbers, NaN if missing."""
    try:
        numbers: NDArray[np.float64] = column.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"Column {column.name} holds text ({error}), but is numeric. Fix or drop such rows.") from error
    return numbers


def holds_text(column: pd.Series) -> bool:
    """Return whether a column has a cell that is neither a number nor empty."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        return False
    return bool(pd.to_numeric(column.dropna().astype(str), errors="coerce").isna().any())


def category_names(column: pd.Series) -> NDArray[Any]:
    """Return the cells of a column as names of categories: "" if empty; 01, 1 and 1.0 are the same number."""
    import pandas as pd

    names = np.array([str(cell) for cell in column.astype(object).where(column.notna(), "")], dtype=object)
    numbers = pd.to_numeric(pd.Series(names), errors="coerce").to_numpy(np.float64)
    is_number = np.abs(numbers) < 2**53
    names[is_number] = [f"{number + 0.0:.15g}" for number in numbers[is_number]]
    return names
