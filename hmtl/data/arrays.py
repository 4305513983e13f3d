"""Features and targets that users pass as arrays, lists or tables such as DataFrames.

Shapes: n rows, d columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, issparse

from hmtl.errors import DataError

MANY_CLASSES = 20
"""A target with more distinct whole numbers than this may hold classes or numbers to predict."""

INFERRED_DTYPES = ("string", "boolean", "integer", "floating", "mixed-integer-float", "empty")
"""What pandas calls values that can be labels or numbers."""


def all_columns(x: object) -> tuple[Any, ...]:
    """Return the names of x's columns, of any type; () if x is not a table."""
    return tuple(getattr(x, "column_names", getattr(x, "columns", ())))


def column_names(x: object) -> tuple[str, ...]:
    """Return the names of x's columns, or () if x is not a table, or its names are not distinct strings."""
    names = all_columns(x)
    return names if all(isinstance(name, str) for name in names) and len(set(names)) == len(names) else ()


def select(x: Any, columns: Sequence[Any]) -> Any:
    """Return these columns of a table."""
    return x.select(list(columns)) if hasattr(x, "select") else x[list(columns)]


def selected(x: Any, name: str, columns: Sequence[str]) -> Any:
    """Return these columns of x, in this order, if x is a table with column names, and x otherwise.

    Raises:
        DataError: if x, called `name` in the message, lacks a column.
    """
    if columns and (present := column_names(x)):
        if missing := [column for column in columns if column not in present]:
            raise DataError(
                f"{name} has no column {missing[0]}, which the model was trained on: {', '.join(columns)}. Add it, or "
                "give an array."
            )
        return select(x, columns)
    return x


def features(x: ArrayLike, name: str, columns: Sequence[str] = (), copy: bool = True) -> Any:
    """Return x [n, d] as float32 if it is float32, and as float64 otherwise; sparse x as float64 CSR.

    Args:
        name: name of x in messages.
        columns: columns to select, in this order, if x is a table with column names.
        copy: whether dense x is copied even if that is not necessary.

    Raises:
        DataError: if x lacks a column, or is not an array of numbers.
    """
    x = selected(x, name, columns)
    try:
        if issparse(x):
            return csr_array(x, dtype=np.float64, copy=True)
        values = np.asarray(x)
        if values.dtype.kind not in "biufO":
            raise TypeError(f"its type is {values.dtype}")
        return np.array(values, np.float32 if values.dtype == np.float32 else np.float64, order="C", copy=copy or None)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that requires a gradient
        raise DataError(
            f"{name} is not an array of numbers ({error}). Give rows of equal length, of numbers."
        ) from error


def targets(y: ArrayLike, name: str) -> NDArray[Any]:
    """Return a copy of y [n], which holds numbers, booleans or strings.

    Raises:
        DataError: if y holds other values, values of several kinds, or numbers that are not finite.
    """
    try:
        values = np.array(y)
        if values.dtype.kind == "U" and not isinstance(y, np.ndarray):  # numpy converts mixed lists to strings
            values = np.array(y, object)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} is not a list of labels or numbers ({error}). Give one value per row.") from error
    if values.dtype == object:
        from pandas.api.types import infer_dtype  # late, as in `table_features`

        if (kind := infer_dtype(values.ravel(), skipna=False)) not in INFERRED_DTYPES:
            raise DataError(f"{name} holds {kind} values. Give labels of one kind, or numbers.")
        values = np.array(values.tolist())
    if values.dtype.kind not in "biufU" or values.ndim != 1:
        raise DataError(f"{name} has shape {list(values.shape)} and type {values.dtype}. Give [n] labels or numbers.")
    if values.dtype.kind == "f" and (bad := ~np.isfinite(values)).any():
        raise DataError(f"{name} is NaN or infinite in row {int(bad.argmax())} (from 0). Fix or drop such rows.")
    return values


def check_list(values: object, name: str, ndim: int) -> None:
    """Raise DataError unless `values` is a list with an array of `ndim` dimensions for each task."""
    is_array = issparse(values) or (isinstance(values, np.ndarray) and values.dtype != object and values.ndim <= ndim)
    if is_array or isinstance(values, Mapping) or hasattr(values, "iloc") or not hasattr(values, "__len__"):
        raise DataError(f"{name} is a single {type(values).__name__}. Give a list with {name}[k] for task k.")
