"""What is given in Python, arrays, lists or tables such as DataFrames, as arrays of numbers.

n rows, d columns.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hmtl.errors import DataError


def names_of(x: object) -> tuple[str, ...]:
    """What the columns of x are called; none where x is no table, or has numbers for names, or one of them twice."""
    names = tuple(getattr(x, "column_names", getattr(x, "columns", ())))
    return names if all(isinstance(name, str) for name in names) and len(set(names)) == len(names) else ()


def numbers(x: ArrayLike, called: str, columns: Sequence[str] = ()) -> NDArray[Any]:
    """x [n, d] as it is to be learned from: a new array of float32, if x is of that, else of float64.

    Args:
        called: what messages call it.
        columns: those to take, in this order, where x is a table with names; others are left out.

    Raises:
        DataError: a column is not there, or there is what is no number.
    """
    if columns and (names := names_of(x)):
        if lacking := [name for name in columns if name not in names]:
            raise DataError(
                f"{called} has no column {lacking[0]}, which the model was trained on: {', '.join(columns)}. Add it, "
                "or give an array."
            )
        x = x.select(list(columns)) if hasattr(x, "select") else x[list(columns)]  # type: ignore[index]  # pandas' way
    try:
        found = np.asarray(x)
        if found.dtype.kind not in "biufO":
            raise TypeError(f"it is of type {found.dtype}")
        return np.array(found, np.float32 if found.dtype == np.float32 else np.float64, order="C")
    except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor that keeps its gradient
        raise DataError(f"{called} is no array of numbers ({error}). Give rows of equal length, of numbers.") from error


def targets(y: ArrayLike, called: str) -> NDArray[Any]:
    """y [n] of numbers, of truth values, or of text, a new array.

    Raises:
        DataError: it is of something else, or of several kinds.
    """
    try:
        found = np.array(y)
        if found.dtype.kind == "U" and not isinstance(y, np.ndarray):  # it may have been made text of other things
            found = np.array(y, object)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{called} is no list of labels or numbers ({error}). Give one for each row.") from error
    if found.dtype == object:
        kinds = {_kind(value) for value in found.flat}
        if len(kinds) > 1 or not kinds <= {str, bool, Real}:
            odd = next(value for value in found.flat if _kind(value) is not str)
            raise DataError(f"{called} has {odd!r} beside other values. Give labels of one kind, or numbers.")
        found = np.array(found.tolist())
    if found.dtype.kind not in "biufU" or found.ndim != 1:
        raise DataError(f"{called} has shape {list(found.shape)}, type {found.dtype}: give [n] labels, or numbers.")
    if found.dtype.kind == "f" and (bad := ~np.isfinite(found)).any():
        raise DataError(f"{called} is NaN or infinite in row {int(bad.argmax())} (from 0). Fix or drop such rows.")
    return found


def _kind(value: object) -> type:
    if isinstance(value, bool | np.bool_):
        return bool
    return next((kind for kind in (str, Real) if isinstance(value, kind)), type(value))


def check_list(each: object, called: str, ndim: int) -> None:
    """Refuse what is no list with something of `ndim` dimensions for each task.

    Raises:
        DataError: it is one array, one table or a dictionary.
    """
    array = isinstance(each, np.ndarray) and each.dtype != object and each.ndim <= ndim
    if array or isinstance(each, Mapping) or hasattr(each, "iloc") or not hasattr(each, "__len__"):
        raise DataError(f"{called} is one {type(each).__name__}: give a list, with {called}[k] of task k.")
