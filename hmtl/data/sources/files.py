"""A user's own data: a file for each task, or one table with a task column.

Shapes: K tasks, n rows and d features each: all columns except target and task.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from hmtl.data.arrays import MANY_CLASSES
from hmtl.data.partitions import Partition
from hmtl.data.preprocessing import Preprocessing, Scope
from hmtl.data.sparse import widened
from hmtl.data.splitting import RowsOf, Splitting, tasks_of
from hmtl.data.table_features import Categories, FittedTable, Missing
from hmtl.data.table_features import fit as fit_features
from hmtl.data.tables import SUFFIXES, SVMLIGHT, fault, misfits, read_rows
from hmtl.data.tasks import ClassWeight, Task, class_targets, prepare
from hmtl.errors import ConfigError, DataError, few
from hmtl.io.arrays import Ints

TargetKind = Literal["auto", "classification", "regression"]


def files(
    path: str | Path,
    K: int | None = None,
    target: str = "y",
    task: str | None = None,
    kind: TargetKind = "auto",
    test_fraction: float = 0.25,
    test_path: str | Path | None = None,
    intercept: bool = True,
    standardize: Scope = "all",
    center: Scope = "task",
    seed: int = 0,
    partition: Partition | None = None,
    class_weight: ClassWeight = None,
    categories: Categories = None,
    missing: Missing = None,
) -> tuple[Task, ...]:
    """Return a task for each file, or for each value of a table's task column, by name (user 2 before user 10).

    A CSV's first line names the columns. An NPZ holds x [n, d] and `target` [n]. Parquet needs pyarrow.

    Rows stay sparse if they come from svmlight files (.svm, .libsvm or .svmlight), whose features are numbered from 1
    and whose label is the target, or from an NPZ with the arrays of a CSR matrix, see `hmtl.data.tables.read_rows`.

    Labels are collected over all tasks and sorted. The first of two becomes −1 and the second 1; more become the
    classes 0, 1, 2, ...

    Args:
        path: a folder or a pattern such as `data/*.csv` with a file for each task; with `task`, one table.
        K: number of tasks, which is checked; with a partition, the number of tasks to deal to.
        target: column to predict.
        task: column that names the task of each row; qid for a svmlight file.
        kind: "regression" predicts a numeric target as a number, "classification" takes its values as labels; "auto"
            classifies, but raises an error if the target has more than 20 whole numbers, which is ambiguous.
        test_fraction: share of each task's rows that is kept for testing; 0: no test.
        test_path: rows to test on, laid out like `path`; then all rows of `path` are training rows.
        intercept, standardize, center: see `Preprocessing`; classes are never centered.
        seed: seed of the partition and the splits.
        partition: deals all rows to K tasks by their class, whatever task they belonged to.
        class_weight: see `Task`.
        categories: columns of categories, of which each gets a feature; "auto": the columns that hold text. Users tell
            their categories before the first round; see `TableFeatures`.
        missing: "mean": missing numbers become the mean of their column over the training rows of all users.

    Raises:
        DataError: if nothing is found; a file cannot be read; columns are missing or differ between tasks; a value is
            missing or not a number; all rows have one label; a task is empty or has too few rows to split; or the test
            rows have other tasks, columns or labels.
        ConfigError: if K is not the number of tasks, `kind` is unknown or ambiguous, or `task`, `path`, `partition`,
            `kind` and `test_path` contradict each other; or if the partition raises it.
    """
    if kind not in get_args(TargetKind):
        raise ConfigError(f"kind={kind} is not one of auto, classification and regression. Choose one of them.")
    if partition is not None and kind == "regression":
        raise ConfigError("kind=regression: a partition deals rows by class. Leave one of them out.")
    if partition is not None and test_path is not None:
        raise ConfigError(f"test_path={test_path}: with a partition, each task's rows are split. Leave one out.")
    preprocessing = Preprocessing(intercept, standardize, center if kind == "regression" else "none")
    splitting = Splitting(test_fraction, seed, preprocessing, class_weight=class_weight)
    roles = _Roles(target, task, kind, categories, missing)
    table, sparse, owners = _read(Path(path), roles, partition is None)
    names = sorted(set(owners), key=_natural)
    if partition is None and K not in (None, len(names)):
        raise ConfigError(f"K={K}, but {path} holds {len(names)} tasks. Leave K out (null), or set it to that.")
    n = len(table)
    if test_path is not None:
        tests, sparse_tests, owners_of_tests = _read(Path(test_path), roles)
        for what, ours, theirs in (("tasks", owners, owners_of_tests), ("columns", table, tests)):
            if difference := sorted(set(ours) ^ set(theirs), key=_natural):
                raise DataError(f"{test_path} or {path} lacks {few(difference)}. Give both the same {what}.")
        table, owners = pd.concat([table, tests], ignore_index=True), owners + owners_of_tests
        sparse = _stacked([(Path(path), sparse), (Path(test_path), sparse_tests)])

    features = table.drop(columns=target)
    has_names = sparse is None and _find(Path(path))[0].suffix.lower() != ".npz"
    about: dict[str, Any] = {"class_weight": class_weight, "columns": tuple(map(str, features)) if has_names else None}

    def columns(rows: Ints) -> Any:
        return features.iloc[rows].to_numpy(np.float64, copy=True) if sparse is None else sparse[rows]

    def fit(train: Sequence[Ints]) -> tuple[RowsOf, list[FittedTable]]:
        tables = fit_features([features.iloc[rows] for rows in train], categories, missing)
        encoded = tables[0].features.features(features)
        return lambda rows: encoded[rows], tables

    x: RowsOf = columns
    needed = fit if categories or missing else None
    if needed and sparse is not None:
        raise ConfigError(f"{path} has sparse rows: set dataset.categories and dataset.missing to null.")

    if kind == "regression":
        y = table[target].to_numpy(np.float64)
    else:
        number, labels = _coded(table[target], kind, path)
        if unknown := set(number[n:]) - set(number[:n]):
            raise DataError(
                f"{test_path} has {labels[min(unknown)]} in column {target}, which no row of {path} has. Fix or drop "
                "such rows."
            )
        if partition is not None:
            return splitting.deal(x, number, K, partition, fit=needed, labels=labels, **about)
        y, about["classes"] = class_targets(number, len(labels))
        about["labels"] = labels
    rows_of = pd.Series(owners).groupby(owners).indices
    if test_path is None:
        return splitting.tasks(x, y, {name: rows_of[name] for name in names}, needed, **about)
    parts = {name: (rows_of[name][rows_of[name] < n], rows_of[name][rows_of[name] >= n]) for name in names}
    return prepare(tasks_of(x, y, parts, needed, **about), preprocessing)


@dataclass(frozen=True)
class _Roles:
    """What the columns of a table are for; see `files`."""

    target: str
    task: str | None
    kind: TargetKind
    categories: Categories
    missing: Missing


def _read(path: Path, roles: _Roles, needs_tasks: bool = True) -> tuple[pd.DataFrame, csr_array | None, list[str]]:
    """Return the rows of all files without the task column, task after task, and the name of each row's task.

    The features are apart from the table if they are sparse.

    `needs_tasks` says whether a single table needs a task column.
    """
    places, target, task = _find(path), roles.target, roles.task
    if path.is_file() != (task is not None) and (needs_tasks or task is not None):
        raise ConfigError(
            f"dataset.task={task or 'null'}, but {path} is {'' if path.is_file() else 'not '}one table. Set "
            "dataset.task to the column that names each row's task if all rows are in one table, and only then."
        )
    tables: dict[str, pd.DataFrame] = {}
    sparse = []
    for file in places:
        table, x = read_rows(file, (target,) if task is None else (target, task), target, task)
        if wrong := next(_faults(table, roles, x is not None), None):
            raise DataError(f"{file} {wrong}")
        name = file.stem.encode(errors="replace").decode()  # bytes of a name that are not UTF-8 become ?
        if name in tables:
            raise DataError(f"{file}: another file is also called {name}. Rename or remove one.")
        first = next(iter(tables.values()), table)
        if difference := sorted(set(first) ^ set(table)):
            raise DataError(f"{file} or {places[0]} lacks {few(difference)}. Give all tasks the same columns.")
        tables[name] = table
        sparse.append((file, x))
    _check_features(dict(zip(places, tables.values(), strict=True)), roles)
    every, x = pd.concat(tables.values(), ignore_index=True), _stacked(sparse)
    if task is None:
        return every, x, [name for name, table in tables.items() for _ in range(len(table))]
    owners = every.pop(task).map(str)
    rank = {name: i for i, name in enumerate(sorted(set(owners), key=_natural))}
    order = owners.map(rank).to_numpy().argsort(kind="stable")
    return every.iloc[order], x if x is None else x[order], owners.iloc[order].tolist()


def _stacked(parts: list[tuple[Path, csr_array | None]]) -> csr_array | None:
    """Return the sparse rows of all files below each other, or None if they are dense.

    A svmlight file does not say how many columns there are, so the largest number in any file counts.

    Raises:
        DataError: if some files are sparse and others are not, or have different numbers of columns.
    """
    d = max((x.shape[1] for _, x in parts if x is not None), default=0)
    rows = [widened(x, d) if file.suffix.lower() in SVMLIGHT else x for file, x in parts if x is not None]
    if not rows:
        return None
    if len(rows) < len(parts) or any(x.shape[1] < d for x in rows):
        raise DataError(
            f"{parts[0][0]} and others differ in the number of columns, or not all of them hold sparse rows. Give all "
            "tasks the same."
        )
    return vstack(rows, format="csr")


def _coded(column: pd.Series, kind: TargetKind, path: str | Path) -> tuple[NDArray[np.int64], tuple[Any, ...]]:
    """Return labels as numbers 0, 1, ..., and the label that each number stands for.

    Raises:
        DataError: if there is one label only, or the values are not labels.
        ConfigError: if they may be numbers to predict.
    """
    where = f"{path}: {column.name!r}"
    number, values = pd.factorize(column.astype(str) if column.dtype == object else column, sort=True)
    if len(values) == 1:
        raise DataError(f"{where} is {values[0]} in all rows, so there is nothing to learn. Set another target.")
    if len(values) > 2 and pd.api.types.is_float_dtype(values) and (values % 1).any():
        raise DataError(
            f"{where} has {len(values)} values that are not whole numbers, so they are not classes. To predict "
            "numbers, set dataset.kind=regression loss=squared."
        )
    if kind == "auto" and len(values) > MANY_CLASSES and pd.api.types.is_numeric_dtype(values):
        raise ConfigError(
            f"{where} has {len(values)} whole numbers, which may be classes or numbers to predict. Set "
            "dataset.kind=classification, or dataset.kind=regression loss=squared."
        )
    return number, tuple(values.tolist())


def _faults(table: pd.DataFrame, roles: _Roles, is_sparse: bool) -> Iterator[str]:
    """Yield what is wrong and how to fix it; each check relies on the ones before it."""
    names = ", ".join(map(str, table.columns[:8])) + (", ..." if table.shape[1] > 8 else "")
    for role, name in (("target", roles.target), ("task", roles.task)):
        if name not in (None, *table):
            yield f"has no column {name} (it has {names}). Set dataset.{role} to one of its columns."
    if table.empty:
        yield "has no rows. Add rows, or remove it."
    if not is_sparse and set(table) <= {roles.target, roles.task}:
        yield f"has no features, only {names}. Add columns to learn from."
    if roles.task and (wrong := fault(table[roles.task], is_number=False)):
        yield f"{wrong}."
    if wrong := fault(table[roles.target], is_regression := roles.kind == "regression"):
        yield f"{wrong}{', or set dataset.kind=classification loss=hinge for labels' if is_regression else ''}."


def _check_features(tables: Mapping[Path, pd.DataFrame], roles: _Roles) -> None:
    """Raise DataError if features are not finite numbers; name all such columns and the settings that take them."""
    places: dict[str, str] = {}
    first = ""
    remedies: dict[str, None] = {}
    given = () if roles.categories in (None, "auto") else roles.categories
    for file, table in tables.items():
        for name in table.columns.difference([roles.target, roles.task, *given, *places], sort=False):
            column, is_text = table[name], not pd.api.types.is_numeric_dtype(table[name])
            bad = misfits(column, missing=roles.missing is not None)
            if not bad.any() or (is_text and roles.categories == "auto"):
                continue
            row, first = int(bad.argmax()), first or str(file)
            elsewhere = f" of {file}" if str(file) != first else ""
            places[name] = f"{column.iloc[row]} in column {name}, row {row}{elsewhere}"
            if is_text:
                remedy = "dataset.categories=auto" if roles.categories is None else "dataset.categories to name it"
                remedies[remedy] = None
            elif pd.isna(column.iloc[row]):
                remedies["dataset.missing=mean"] = None
    if places:
        settings = f"Set {' '.join(remedies)}, or fix" if remedies else "Fix"
        raise DataError(
            f"{first} has {'; '.join(places.values())} (from 0, below the header), where a finite number "
            f"is needed. {settings} or drop such rows or columns."
        )


def _find(path: Path) -> list[Path]:
    """Return the files of the tasks, in natural order."""
    places = [path] if path.is_file() else path.iterdir() if path.is_dir() else path.parent.glob(path.name)
    tables = [file for file in places if file.suffix.lower() in SUFFIXES and file.name[0] != "." and file.is_file()]
    if not tables:
        exists = path.exists() or set(path.name) & set("*?[")
        what = f"has no file of {', '.join(SUFFIXES)}" if exists else "does not exist"
        raise DataError(f"{path} {what}. Give a table, or a folder or pattern with a file for each task.")
    return sorted(tables, key=lambda file: _natural(file.stem))


def _natural(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that orders the numbers in names (odd positions) as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name
