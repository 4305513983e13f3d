"""A user's own data: a file for each task, or one table with a task column.

Shapes: K tasks, n rows and d features each: all columns except target and task.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hmtl.data.arrays import MANY_CLASSES
from hmtl.data.partitions import Partition
from hmtl.data.preprocessing import Preprocessing, Scope
from hmtl.data.splitting import Ints, Splitting
from hmtl.data.tables import SUFFIXES, fault, read_table
from hmtl.data.tasks import ClassWeight, Task, class_targets, prepare
from hmtl.errors import ConfigError, DataError, few

Kind = Literal["auto", "classification", "regression"]


def files(
    path: str | Path,
    K: int | None = None,
    target: str = "y",
    task: str | None = None,
    kind: Kind = "auto",
    test_fraction: float = 0.25,
    test_path: str | Path | None = None,
    intercept: bool = True,
    standardize: Scope = "all",
    center: Scope = "task",
    seed: int = 0,
    partition: Partition | None = None,
    class_weight: ClassWeight = None,
) -> tuple[Task, ...]:
    """Return a task for each file, or for each value of a table's task column, by name (user 2 before user 10).

    A CSV's first line names the columns. An NPZ holds x [n, d] and `target` [n]. Parquet needs pyarrow.

    Labels are collected over all tasks and sorted. The first of two becomes −1 and the second 1; more become the
    classes 0, 1, 2, ...

    Args:
        path: a folder or a pattern such as `data/*.csv` with a file for each task; with `task`, one table.
        K: number of tasks, which is checked; with a partition, the number of tasks to deal to.
        target: column to predict.
        task: column that names the task of each row.
        kind: "regression" predicts a numeric target as a number, "classification" takes its values as labels; "auto"
            classifies, but raises an error if the target has more than 20 whole numbers, which is ambiguous.
        test_fraction: share of each task's rows that is kept for testing; 0: no test.
        test_path: rows to test on, laid out like `path`; then all rows of `path` are training rows.
        intercept, standardize, center: see `Preprocessing`; classes are never centred.
        seed: seed of the partition and the splits.
        partition: deals all rows to K tasks by their class, whatever task they belonged to.
        class_weight: see `Task`.

    Raises:
        DataError: if nothing is found; a file cannot be read; columns are missing or differ between tasks; a value is
            missing or not a number; all rows have one label; a task is empty or has too few rows to split; or the test
            rows have other tasks, columns or labels.
        ConfigError: if K is not the number of tasks, `kind` is unknown or ambiguous, or `task`, `path`, `partition`,
            `kind` and `test_path` contradict each other; or if the partition raises it.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"kind={kind} is not one of auto, classification and regression. Choose one of them.")
    if partition is not None and kind == "regression":
        raise ConfigError("kind=regression: a partition deals rows by class. Leave one of them out.")
    if partition is not None and test_path is not None:
        raise ConfigError(f"test_path={test_path}: with a partition, each task's rows are split. Leave one out.")
    preprocessing = Preprocessing(intercept, standardize, center if kind == "regression" else "none")
    splitting = Splitting(test_fraction, seed, preprocessing, class_weight=class_weight)
    table, owners = _read(Path(path), target, task, kind, partition is None)
    names = sorted(set(owners), key=_natural)
    if partition is None and K not in (None, len(names)):
        raise ConfigError(f"K={K}, but {path} holds {len(names)} tasks. Leave K out (null), or set it to that.")
    n = len(table)
    if test_path is not None:
        tests, owners_of_tests = _read(Path(test_path), target, task, kind)
        for what, ours, theirs in (("tasks", owners, owners_of_tests), ("columns", table, tests)):
            if difference := sorted(set(ours) ^ set(theirs), key=_natural):
                raise DataError(f"{test_path} or {path} lacks {few(difference)}. Give both the same {what}.")
        table, owners = pd.concat([table, tests], ignore_index=True), owners + owners_of_tests

    features = table.drop(columns=target)
    has_names = _find(Path(path))[0].suffix.lower() != ".npz"
    about: dict[str, Any] = {"class_weight": class_weight, "columns": tuple(map(str, features)) if has_names else None}

    def x(rows: Ints) -> NDArray[np.float64]:
        values: NDArray[np.float64] = features.iloc[rows].to_numpy(np.float64, copy=True)
        return values

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
            return splitting.deal(x, number, K, partition, labels=labels, **about)
        y, about["classes"] = class_targets(number, len(labels))
        about["labels"] = labels
    rows_of = pd.Series(owners).groupby(owners).indices
    if test_path is None:
        return splitting.tasks(x, y, {name: rows_of[name] for name in names}, **about)
    tasks = []
    for name in names:
        rows = rows_of[name]
        train, test = rows[rows < n], rows[rows >= n]
        tasks.append(Task(name, x(train), y[train], x(test), y[test], **about))  # type: ignore[arg-type]  # Task converts
    return prepare(tasks, preprocessing)


def _read(
    path: Path, target: str, task: str | None, kind: Kind, needs_tasks: bool = True
) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of all files without the task column, task after task, and the name of each row's task.

    `needs_tasks` says whether a single table needs a task column.
    """
    places = _find(path)
    if path.is_file() != (task is not None) and (needs_tasks or task is not None):
        raise ConfigError(
            f"dataset.task={task or 'null'}, but {path} is {'' if path.is_file() else 'not '}one table. Set "
            "dataset.task to the column that names each row's task if all rows are in one table, and only then."
        )
    tables: dict[str, pd.DataFrame] = {}
    for file in places:
        table = read_table(file, (target,))
        if wrong := next(_faults(table, target, task, kind), None):
            raise DataError(f"{file} {wrong}")
        if file.stem in tables:
            raise DataError(f"{file}: another file is also called {file.stem}. Rename or remove one.")
        first = next(iter(tables.values()), table)
        if difference := sorted(set(first) ^ set(table)):
            raise DataError(f"{file} or {places[0]} lacks {few(difference)}. Give all tasks the same columns.")
        tables[file.stem] = table
    every = pd.concat(tables.values(), ignore_index=True)
    if task is None:
        return every, [name for name, table in tables.items() for _ in range(len(table))]
    owners = every.pop(task).map(str)
    rank = {name: i for i, name in enumerate(sorted(set(owners), key=_natural))}
    order = owners.map(rank).to_numpy().argsort(kind="stable")
    return every.iloc[order], owners.iloc[order].tolist()


def _coded(column: pd.Series, kind: Kind, path: str | Path) -> tuple[NDArray[np.int64], tuple[Any, ...]]:
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


def _faults(table: pd.DataFrame, target: str, task: str | None, kind: Kind) -> Iterator[str]:
    """Yield what is wrong and how to fix it; each check relies on the ones before it."""
    names = ", ".join(map(str, table.columns[:8])) + (", ..." if table.shape[1] > 8 else "")
    for role, name in (("target", target), ("task", task)):
        if name not in (None, *table):
            yield f"has no column {name} (it has {names}). Set dataset.{role} to one of its columns."
    if table.empty:
        yield "has no rows. Add rows, or remove it."
    if set(table) <= {target, task}:
        yield f"has no features, only {names}. Add columns to learn from."
    for name, column in table.items():
        is_number = name != task and (name != target or kind == "regression")
        if wrong := fault(column, is_number):
            remedy = ", or drop the column" if is_number else ""
            if is_number and name == target:
                remedy = ", or set dataset.kind=classification loss=hinge for labels"
            yield f"{wrong}{remedy}."


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
