"""A user's own data: a file for each task, or one table with a task column.

Shapes: K tasks, n rows and d features each: all columns except target and task.
"""

from __future__ import annotations  # pandas is imported late, as it takes half a second to load

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hmtl.data.arrays import MANY_CLASSES
from hmtl.data.dealing import deal
from hmtl.data.partitions import Partition
from hmtl.data.preprocessing import Preprocessing, Scope
from hmtl.data.splitting import Splitting, split
from hmtl.data.tables import SUFFIXES, cell, not_numbers, read_table
from hmtl.data.tasks import Task, prepare
from hmtl.errors import ConfigError, DataError, few
from hmtl.rng import generator

if TYPE_CHECKING:
    import pandas as pd

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
        kind: "regression" predicts a numeric target, "classification" its values as labels; "auto" classifies, unless
            whole numbers with more than 20 values make it ambiguous.
        test_fraction: share of each task's rows that is kept for testing; 0: no test.
        test_path: rows to test on, laid out as `path`; all rows of `path` are then trained on.
        intercept, standardize, center: see `Preprocessing`; classes are never centred.
        seed: seed of the partition and the splits.
        partition: deals all rows to K tasks by their class, whatever task they belonged to.

    Raises:
        DataError: if nothing is found; a file cannot be read; columns are missing or differ between tasks; a value is
            missing or not a number; all rows have one label; a task is empty or has too few rows to split; or the test
            rows have other tasks, columns or labels.
        ConfigError: if K is not the number of tasks, `kind` is unknown or ambiguous, or `task`, `path`, `partition`,
            `kind` and `test_path` do not go together; or see the partition.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"kind={kind} is not one of auto, classification and regression. Choose one of them.")
    preprocessing = Preprocessing(intercept, standardize, center if kind == "regression" else "none")
    reader = _Reader(target, task, kind)
    splitting = Splitting(test_fraction, seed)
    if partition is not None:
        if kind == "regression":
            raise ConfigError("kind=regression: a partition deals rows by class. Leave one of them out.")
        if test_path is not None:
            raise ConfigError(f"test_path={test_path}: with a partition, each task's rows are split. Leave one out.")
        tasks = _dealt(Path(path), K, reader, partition, splitting)
    else:
        tasks = _by_task(Path(path), K, None if test_path is None else Path(test_path), reader, splitting)
    return prepare(tasks, preprocessing)


@dataclass(frozen=True)
class _Reader:
    """Reads tables and checks that their columns, rows and values are usable.

    Args:
        target, task, kind: see `files`.
    """

    target: str
    task: str | None
    kind: Kind

    def tables(self, path: Path) -> dict[str, pd.DataFrame]:
        """Return the table of each task by its name, without the task column."""
        places = _find(path)
        if (self.task is None) == path.is_file():
            reason = (
                "is one table. Set dataset.task to the column that names each row's task."
                if self.task is None
                else "is not one table with a column that names each row's task. Leave dataset.task out."
            )
            raise ConfigError(f"dataset.task={'null' if self.task is None else self.task}, but {path} {reason}")
        if self.task is None:
            return self._table_of_each(places)
        groups = self.table(places[0]).groupby(self.task)
        tables = {str(name): table.drop(columns=self.task) for name, table in groups}
        return {name: tables[name] for name in sorted(tables, key=_natural)}

    def test_tables(self, test_path: Path, path: Path, tables: dict[str, pd.DataFrame]) -> list[pd.DataFrame]:
        """Return a test table for each of `tables`, with its columns in their order."""
        tests, columns = self.tables(test_path), next(iter(tables.values())).columns
        names = sorted(set(tables) ^ set(tests), key=_natural)
        for what, difference in (("tasks", names), ("columns", sorted(set(columns) ^ set(next(iter(tests.values())))))):
            if difference:
                raise DataError(f"{test_path} or {path} lacks {few(difference)}. Give both the same {what}.")
        return [tests[name][columns] for name in tables]

    def table(self, file: Path) -> pd.DataFrame:
        """Return the table of one file."""
        table = read_table(file, (self.target,))
        if fault := next(self._faults(table), None):
            raise DataError(f"{file} {fault}")
        return table

    def features(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """Return the features [n, d]."""
        features: NDArray[np.float64] = table.drop(columns=self.target).to_numpy(np.float64, copy=True)
        return features

    def column_names(self, file: Path, table: pd.DataFrame) -> tuple[str, ...] | None:
        """Return the names of the features; an NPZ has none."""
        return None if file.suffix.lower() == ".npz" else tuple(table.columns.drop(self.target).astype(str))

    def coded(self, columns: Sequence[pd.Series[Any]], path: Path) -> tuple[list[NDArray[np.int64]], tuple[Any, ...]]:
        """Return the labels of each column as numbers 0, 1, ..., and the label that each number stands for.

        Raises:
            DataError: if there is one label only, or the values are not labels.
            ConfigError: if they may be numbers to predict.
        """
        import pandas as pd

        where, every = f"{path}: {self.target!r}", pd.concat(columns)
        number, values = pd.factorize(every.astype(str) if every.dtype == object else every, sort=True)
        if len(values) == 1:
            raise DataError(f"{where} is {values[0]} in all rows, so there is nothing to learn. Set another target.")
        if len(values) > 2 and pd.api.types.is_float_dtype(values) and (values % 1).any():
            raise DataError(
                f"{where} has {len(values)} values that are not whole numbers, so they are not classes. To predict "
                "numbers, set dataset.kind=regression loss=squared."
            )
        if self.kind == "auto" and len(values) > MANY_CLASSES and pd.api.types.is_numeric_dtype(values):
            raise ConfigError(
                f"{where} has {len(values)} whole numbers, which may be classes or numbers to predict. Set "
                "dataset.kind=classification, or dataset.kind=regression loss=squared."
            )
        return np.split(number, np.cumsum([len(column) for column in columns])[:-1]), tuple(values.tolist())

    def _table_of_each(self, places: list[Path]) -> dict[str, pd.DataFrame]:
        tables: dict[str, pd.DataFrame] = {}
        for file in places:
            table = self.table(file)
            first = next(iter(tables.values()), table)
            if file.stem in tables:
                raise DataError(f"{file}: another file is also called {file.stem}. Rename or remove one.")
            if difference := sorted(set(first) ^ set(table)):
                raise DataError(f"{file} or {places[0]} lacks {few(difference)}. Give all tasks the same columns.")
            tables[file.stem] = table[first.columns]
        return tables

    def _faults(self, table: pd.DataFrame) -> Iterator[str]:
        """Yield what is wrong and how to fix it; each check relies on the ones before it."""
        names = ", ".join(map(str, table.columns[:8])) + (", ..." if table.shape[1] > 8 else "")
        for role, name in (("target", self.target), ("task", self.task)):
            if name not in (None, *table):
                yield f"has no column {name} (it has {names}). Set dataset.{role} to one of its columns."
        if table.empty:
            yield "has no rows. Add rows, or remove it."
        if set(table) <= {self.target, self.task}:
            yield f"has no features, only {names}. Add columns to learn from."
        for name, column in table.items():
            if name == self.task or (name == self.target and self.kind != "regression"):
                if (bad := column.isna().to_numpy()).any():
                    yield f"has {cell(column, bad)}, where a value is needed. Fix or drop such rows."
            elif (bad := not_numbers(column)).any():
                remedy = "drop the column"
                if name == self.target:
                    remedy = "set dataset.kind=classification loss=hinge for labels"
                yield f"has {cell(column, bad)}, where a finite number is needed. Fix or drop such rows, or {remedy}."


def _by_task(
    path: Path, K: int | None, test_path: Path | None, reader: _Reader, splitting: Splitting
) -> tuple[Task, ...]:
    """Return a task for each task of the files, with its own rows."""
    tables = reader.tables(path)
    if K not in (None, len(tables)):
        raise ConfigError(f"K={K}, but {path} holds {len(tables)} tasks. Leave K out (null), or set it to that.")
    tests = [] if test_path is None else reader.test_tables(test_path, path, tables)
    columns = [table[reader.target] for table in (*tables.values(), *tests)]
    labels, classes = None, None
    if reader.kind == "regression":
        y = [column.to_numpy(np.float64, copy=True) for column in columns]
    else:
        y, labels = reader.coded(columns, path)
        unknown = set(np.concatenate(y)) - set(np.concatenate(y[: len(tables)]))
        if unknown:
            raise DataError(
                f"{test_path} has {labels[min(unknown)]} in column {reader.target}, which no row of {path} has. Fix or "
                "drop such rows."
            )
        if len(labels) == 2:
            y = [number * 2.0 - 1.0 for number in y]
        else:
            classes = len(labels)
    tasks: list[Task] = []
    for k, (name, table) in enumerate(tables.items()):
        x = reader.features(table)
        if tests:
            x_test, y_test = reader.features(tests[k]), y[len(tables) + k]
            tasks.append(Task(name, x, y[k], x_test, y_test, classes, labels))  # type: ignore[arg-type]  # Task converts
        else:
            rng = generator(splitting.seed, "data", "split", k)
            tasks.append(split(name, x, y[k], splitting.test_fraction, rng, classes, labels))
    named = reader.column_names(_find(path)[0], next(iter(tables.values())))
    return tuple(replace(task, columns=named) for task in tasks)


def _dealt(path: Path, K: int | None, reader: _Reader, partition: Partition, splitting: Splitting) -> tuple[Task, ...]:
    """Return K tasks to which the rows of all files, or of the one table, are dealt."""
    is_plain = reader.task is None and path.is_file()  # one table without tasks
    tables = [reader.table(path)] if is_plain else list(reader.tables(path).values())
    numbers, labels = reader.coded([table[reader.target] for table in tables], path)
    x, y = np.concatenate([reader.features(table) for table in tables]), np.concatenate(numbers)
    named = reader.column_names(_find(path)[0], tables[0])
    tasks = deal(lambda rows: x[rows], y, K, partition, splitting, labels)
    return tuple(replace(task, columns=named) for task in tasks)


def _find(path: Path) -> list[Path]:
    """Return the files of the tasks, in natural order."""
    places = [path] if path.is_file() else path.iterdir() if path.is_dir() else path.parent.glob(path.name)
    tables = [file for file in places if file.suffix.lower() in SUFFIXES and file.name[0] != "." and file.is_file()]
    if not tables:
        exists = path.exists() or set(path.name) & set("*?[")
        what = f"has no file of {', '.join(SUFFIXES)}" if exists else "does not exist"
        raise DataError(f"{path} {what}. Give a table, or a folder or pattern with a file for each task.")
    return sorted(tables, key=lambda file: _natural(file.stem))


def _natural(name: str) -> list[str | int]:
    """Return a sort key that orders the numbers in names (odd positions) as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]
