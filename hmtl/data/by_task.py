"""Rows of several tasks as users pass them: one table that names the task of each row, or a list with a table per task.

Shapes: n rows, d columns, K tasks.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, issparse
from sklearn.utils import check_array, column_or_1d
from torch import Tensor

from hmtl.data import arrays
from hmtl.data.sparse import finite
from hmtl.errors import ConfigError, DataError, did_you_mean, few

COPY_CHUNK_ROWS = 1024  # rows that are copied together


@dataclass(frozen=True)
class TaskRows:
    """The training rows of K tasks, those of one task after those of another in memory if they are dense.

    Attributes:
        names: names of the tasks [K], sorted; for a list their numbers.
        x: features of each task [n_k, d].
        y: labels or numbers of each task [n_k].
        weights: weights above 0 of each task's rows [n_k]; None: all are equal.
        columns: names of the features [d]; empty if they have none.
    """

    names: NDArray[Any]
    x: list[Any]
    y: list[NDArray[Any]]
    weights: list[NDArray[np.float64]] | None
    columns: tuple[str, ...]


def is_list(X: Any) -> bool:
    """Return whether X is a list with one table for each task, rather than one table [n, d]."""
    if issparse(X) or isinstance(X, Mapping) or arrays.all_columns(X) or not hasattr(X, "__len__"):
        return False
    if getattr(X, "ndim", 1) != 1:
        return bool(X.ndim > 2)
    return any(_ndim(each) == 2 for each in X) or all(_ndim(each) == 1 and not len(each) for each in X)


def _ndim(x: Any) -> int:
    try:
        return np.ndim(x)
    except ValueError:  # rows of several lengths, which are refused later
        return 2


def from_list(X: Sequence[ArrayLike], y: Sequence[ArrayLike], room: int) -> TaskRows:
    """Return the rows of a list with a table for each task, and of a list with their targets.

    Args:
        X, y: the lists.
        room: number of columns that will be added to dense rows in place.

    Raises:
        DataError: if lengths or columns differ, or a table or a target is invalid.
    """
    arrays.check_list(X, "X", 2)
    arrays.check_list(y, "y", 1)
    if not len(X) or len(X) != len(y):
        raise DataError(f"X has {len(X)} tasks and y has {len(y)}. Give the same number, at least one.")
    columns = arrays.column_names(X[0])
    for k, x in enumerate(X):
        if columns and (names := arrays.column_names(x)) and set(names) != set(columns):
            raise DataError(f"X[{k}] has columns {', '.join(names)}, X[0] {', '.join(columns)}. Give all the same.")
    rows = [arrays.features(x, f"X[{k}]", columns, copy=False) for k, x in enumerate(X)]
    targets = [arrays.targets(each, f"y[{k}]") for k, each in enumerate(y)]
    if empty := [k for k, x in enumerate(rows) if not (x.shape[0] and len(targets[k]))]:
        raise DataError(f"Task {empty[0]} has no rows in X, or none in y. Leave it out of both lists.")
    if not any(map(issparse, rows)) and len({x.shape[1:] for x in rows}) == 1:  # others are refused later
        rows = _joined([(x, np.arange(len(x))) for x in rows], room)
    return TaskRows(np.arange(len(X)), rows, targets, None, columns)


def _joined(parts: Sequence[tuple[NDArray[Any], NDArray[np.int64]]], room: int) -> list[Tensor]:
    """Return copies of some rows of arrays [n, d], views of one float64 tensor that has `room` further columns."""
    counts, d = [len(at) for _, at in parts], parts[0][0].shape[1]
    rows = list(torch.split(torch.empty(sum(counts), d + room, dtype=torch.float64)[:, :d], counts))
    for own, (x, at) in zip(rows, parts, strict=True):
        for first in range(0, len(at), COPY_CHUNK_ROWS):
            own[first : first + COPY_CHUNK_ROWS] = torch.from_numpy(x[at[first : first + COPY_CHUNK_ROWS]])
    return rows


def from_table(
    X: Any, y: ArrayLike, weights: ArrayLike | None, task: str | int | None, groups: ArrayLike | None, room: int
) -> TaskRows:
    """Return the rows of one table, sorted by task; see `read`.

    Args:
        X, task, groups: see `read`, which also says what is raised.
        y: targets [n].
        weights: weights [n]; rows of weight 0 are left out, and with a warning also tasks that have no others.
        room: see `from_list`.
    """
    x, index, columns = read(X, task, groups)
    n = x.shape[0]
    if index is None:
        warnings.warn(
            "X names no tasks, so all rows are one task. Set task to the column of X that names each row's task, or "
            "pass groups.",
            stacklevel=3,
        )
        index = pd.Index(np.zeros(n, dtype=np.int64))
    targets = arrays.targets(column_or_1d(y, warn=True), "y")
    if len(targets) != n:
        raise DataError(f"X has {n} rows, but y has {len(targets)}. Give one y for each row.")
    given, kept = None, np.arange(n)
    if weights is not None:
        given = check_array(
            weights, ensure_2d=False, dtype=np.float64, ensure_non_negative=True, input_name="sample_weight"
        )
        if given.shape != (n,) or not given.any():
            raise DataError(
                f"sample_weight has shape {list(given.shape)}, and not all may be zero. Give one weight for each row."
            )
        kept = np.flatnonzero(given)
        if len(lost := index[~index.isin(index[kept])]):
            warnings.warn(f"Task {lost[0]!r} is left out, since all its rows have weight 0.", stacklevel=3)
    codes, names = pd.factorize(index[kept], sort=True)
    parts = [kept[at] for at in pd.Series(codes).groupby(codes).indices.values()]
    return TaskRows(
        names=np.asarray(names),
        x=[x[at] for at in parts] if issparse(x) else _joined([(x, at) for at in parts], room),
        y=[targets[at] for at in parts],
        weights=None if given is None else [given[at] for at in parts],
        columns=columns,
    )


def read(
    X: Any, task: str | int | None, groups: ArrayLike | None, columns: Sequence[str] | None = None
) -> tuple[Any, pd.Index | None, tuple[str, ...]]:
    """Return a table's features [n, d], the name of each row's task, or None if nothing names them, and the columns.

    Args:
        X: an array, a sparse array, or a table such as a DataFrame, [n, d] with the column of tasks.
        task: name or position of the column that names each row's task.
        groups: names [n] of the rows' tasks, any hashable values, if there is no such column.
        columns: columns to select, in this order, if X has column names; None: all.

    Raises:
        ConfigError: if both `task` and `groups` are given.
        DataError: if a column is missing, a row is not finite, or names are missing.
        ValueError, TypeError: of scikit-learn, if X is not a table of numbers.
    """
    X, named = split_off(X, task)
    if named is not None and groups is not None:
        raise ConfigError(f"groups is given, but task={task!r} names the tasks. Leave one of them out.")
    columns = arrays.column_names(X) if columns is None else tuple(columns)
    X = arrays.selected(X, "X", columns)
    kinds = {getattr(each, "kind", "") for each in (getattr(X, "dtype", None), *getattr(X, "dtypes", ()))}
    try:
        if kinds & {"m", "M"}:  # check_array would take them for numbers
            raise DataError("X holds dates. Give numbers, such as days since the first one.")
        x = check_array(X, accept_sparse="csr", dtype=[np.float64, np.float32], ensure_all_finite=False, input_name="X")
    except (TypeError, ValueError) as error:
        if text := [name for name in arrays.column_names(X) if not _is_numeric(X[name])]:
            remedy = "Encode it as numbers, such as days, or name it as task if it has the task of each row."
            raise DataError(f"X has text or dates in column {few(text)}. {remedy}") from error
        raise
    x = csr_array(x, dtype=np.float64) if issparse(x) else np.ascontiguousarray(x)
    good = finite(x).numpy() if issparse(x) else np.isfinite(x).all(axis=1)
    if not good.all():
        raise DataError(f"X is NaN or infinity in row {int(good.argmin())} (from 0). Fix or drop such rows.")
    groups = groups if named is None else named
    if groups is None:
        return x, None, columns
    index = pd.Index(groups, tupleize_cols=False)
    if len(index) != x.shape[0]:
        raise DataError(f"X has {x.shape[0]} rows, but groups has {len(index)}. Give the task of each row.")
    if (missing := index.isna()).any():
        raise DataError(f"Row {int(missing.argmax())} (from 0) has no task. Name the task of each row.")
    return x, index, columns


def _is_numeric(column: ArrayLike) -> bool:
    try:
        np.asarray(np.asarray(column), dtype=float)  # dates with a time zone have numbers, too
    except (TypeError, ValueError):
        return False
    return np.asarray(column).dtype.kind not in "mM"


def split_off(X: Any, task: str | int | None) -> tuple[Any, Any]:
    """Return a table without the column that names the tasks, and this column; X and None if `task` is None.

    Raises:
        DataError: if X has no such column.
    """
    if task is None:
        return X, None
    if issparse(X):
        X = csr_array(X)
    elif not arrays.all_columns(X):
        X = np.asarray(X) if hasattr(X, "shape") else np.array(X, dtype=object)
    names: list[Any] = [*(arrays.all_columns(X) or range(X.shape[1] if len(X.shape) > 1 else 0))]
    at: Any = names.index(task) if isinstance(task, str) and task in names else task
    if not isinstance(at, int | np.integer) or not -len(names) <= at < len(names):
        remedy = did_you_mean(str(task), map(str, names), f"Set task to one of {few([*map(repr, names)])}.", repr)
        if isinstance(task, str) and not arrays.all_columns(X):
            remedy += " In a Pipeline, steps keep the names of columns with set_output(transform='pandas')."
        raise DataError(f"X has no column {task!r} of tasks. {remedy}")
    name = names[at]
    rest = [other for other in names if other != name]
    if arrays.all_columns(X):
        return arrays.select(X, rest), X[name]
    return X[:, rest], X[:, [name]].toarray().ravel() if issparse(X) else X[:, name]
