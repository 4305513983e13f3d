"""A user's own data: a file for each task, or one table with a task column.

Shapes: K tasks, n rows and d features each: all columns but those of target and task.
"""

from __future__ import annotations  # pandas, which takes half a second, is imported where it is used

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hmtl.data.partitions import Partition, share_out
from hmtl.data.preprocessing import Preprocessing, Scope
from hmtl.data.tasks import Task, split
from hmtl.errors import ConfigError, DataError, few
from hmtl.io.npz import load_arrays, open_file
from hmtl.rng import generator

if TYPE_CHECKING:
    import pandas as pd

KINDS = (".csv", ".npz", ".parquet")
FEW = 20  # values: more of them, as whole numbers, may be classes or not


def files(
    path: str | Path,
    K: int | None = None,
    target: str = "y",
    task: str | None = None,
    kind: Literal["auto", "classification", "regression"] = "auto",
    test_fraction: float = 0.25,
    test_path: str | Path | None = None,
    intercept: bool = True,
    standardize: Scope = "all",
    center: Scope = "task",
    seed: int = 0,
    partition: Partition | None = None,
) -> tuple[Task, ...]:
    """One task for each file, or for each value of a table's task column, by name (user 2 before user 10).

    A CSV's first line names the columns. An NPZ holds x [n, d] and `target` [n]. Parquet needs pyarrow.

    Labels are collected over all tasks and sorted: the first of two becomes −1, the second 1; more become the classes
    0, 1, 2, ... (so labels that are these numbers stay as they are).

    Args:
        path: a folder or a pattern such as `data/*.csv`, a file for each task; with `task`, one CSV or Parquet file.
        K: number of tasks, if it is to be checked; with a partition, how many there are to be.
        target: the column to predict.
        task: the column that says to which task a row belongs.
        kind: "classification", or "regression" for a numeric target, taken as it is; "auto" is classification, unless
            whole numbers of more than 20 values leave it in doubt.
        test_fraction: share of each task's rows kept for testing; 0 tests on nothing.
        test_path: rows to test on, laid out as `path`, all of whose rows are then trained on.
        intercept, standardize, center: see `Preprocessing`; classes are never centred.
        seed: draws partition and splits.
        partition: all rows together, dealt to K tasks by their class; whose they were plays no part.

    Raises:
        DataError: nothing found; a file that cannot be read; columns that are missing or differ between tasks; a value
            that is missing or no number; one class in all tasks; an empty task, or one with too few rows to split;
            tests of other tasks or columns, or with a label that no row to train on has.
        ConfigError: K is not the number of tasks, `kind` is unknown or in doubt, `task` and `path` do not go together,
            or a partition does not go with `kind` or `test_path`; or see the partition.
    """
    if kind not in ("auto", "classification", "regression"):
        raise ConfigError(f"kind={kind} is neither auto, classification nor regression.")
    prepare = Preprocessing(intercept, standardize, center if kind == "regression" else "none")
    if partition is not None:
        if kind == "regression" or test_path is not None:
            cause = (
                f"test_path={test_path}: it splits each task's rows"
                if test_path
                else "kind=regression: it goes by class"
            )
            raise ConfigError(f"a partition does not go with {cause}. Leave one of them out.")
        return prepare(_dealt(Path(path), K, target, task, kind, test_fraction, seed, partition))
    tables = _tables(Path(path), target, task, kind)
    if K not in (None, len(tables)):
        raise ConfigError(f"K={K}, but {path} holds {len(tables)} tasks: leave K out (null), or set it to that.")
    tests = [] if test_path is None else _tests(Path(test_path), path, tables, target, task, kind)
    columns = [table[target] for table in (*tables.values(), *tests)]
    if kind == "regression":
        y, labels, classes = [column.to_numpy(np.float64, copy=True) for column in columns], None, None
    else:
        numbers, labels = _coded(columns, f"{path}: {target!r}", kind)
        if tests and (new := set(np.concatenate(numbers[len(tables) :])) - set(np.concatenate(numbers[: len(tables)]))):
            raise DataError(
                f"{test_path} has {labels[min(new)]} in column {target}, which no row of {path} has: nobody can learn "
                "it. Fix or drop such rows."
            )
        y = [number * 2.0 - 1.0 for number in numbers] if len(labels) == 2 else numbers
        classes = len(labels) if len(labels) != 2 else None
    tasks = []
    for k, (name, table) in enumerate(tables.items()):
        x = _features(table, target)
        if tests:
            x_test, y_test = _features(tests[k], target), y[len(tables) + k]
            # Task makes tensors of arrays
            tasks.append(Task(name, x, y[k], x_test, y_test, classes, labels))  # type: ignore[arg-type]
        else:
            rng = generator(seed, "data", "split", k)
            tasks.append(split(name, x, y[k], test_fraction, rng, classes, labels))
    return prepare(_named(tasks, Path(path), next(iter(tables.values())), target))


def _named(tasks: Iterable[Task], path: Path, table: pd.DataFrame, target: str) -> list[Task]:
    """The tasks, and what the columns of their features are called; those of an npz have no names of their own."""
    named = _find(path)[0].suffix.lower() != ".npz"
    columns = tuple(str(name) for name in table.columns if name != target) if named else None
    return [replace(task, columns=columns) for task in tasks]


def _dealt(
    path: Path, K: int | None, target: str, task: str | None, kind: str, fraction: float, seed: int, deal: Partition
) -> tuple[Task, ...]:
    """The rows of all files, or of the one table, dealt to K tasks."""
    one_table = task is None and path.is_file()
    tables = [_read(path, target, None, kind)] if one_table else list(_tables(path, target, task, kind).values())
    (*numbers,), labels = _coded([table[target] for table in tables], f"{path}: {target!r}", kind)
    x, y = np.concatenate([_features(table, target) for table in tables]), np.concatenate(numbers)
    tasks = share_out(lambda rows: x[rows], y, K, deal, fraction, seed, labels)
    return tuple(_named(tasks, path, tables[0], target))


def _tables(path: Path, target: str, task: str | None, kind: str) -> dict[str, pd.DataFrame]:
    """The table of each task, without a task column."""
    found = _find(path)
    if (task is None) == path.is_file():
        cause = (
            "is one table: set dataset.task to its column that says to which task a row belongs."
            if task is None
            else "is not one table, with a column that says to which task a row belongs: leave dataset.task out."
        )
        raise ConfigError(f"dataset.task={'null' if task is None else task}, but {path} {cause}")
    return _one_each(found, target, kind) if task is None else _cut(found[0], target, task, kind)


def _tests(
    test_path: Path, path: str | Path, tables: dict[str, pd.DataFrame], target: str, task: str | None, kind: str
) -> list[pd.DataFrame]:
    """A table for each of `tables`, with its columns in their order."""
    tests, columns = _tables(test_path, target, task, kind), next(iter(tables.values())).columns
    names = sorted(set(tables) ^ set(tests), key=_natural)
    for what, other in (("tasks", names), ("columns", sorted(set(columns) ^ set(next(iter(tests.values())))))):
        if other:
            raise DataError(f"{test_path} or {path} lacks {few(other)}. Give both the same {what}.")
    return [tests[name][columns] for name in tables]


def _features(table: pd.DataFrame, target: str) -> NDArray[np.float64]:
    features: NDArray[np.float64] = table.drop(columns=target).to_numpy(np.float64, copy=True)
    return features


def _find(path: Path) -> list[Path]:
    places = [path] if path.is_file() else path.iterdir() if path.is_dir() else path.parent.glob(path.name)
    found = [file for file in places if file.suffix.lower() in KINDS and file.name[0] != "." and file.is_file()]
    if not found:
        there = path.exists() or set(path.name) & set("*?[")
        what = f"has no file of {', '.join(KINDS)}" if there else "is not there"
        raise DataError(f"{path} {what}. Give a table, or a folder or pattern with a file for each task.")
    return sorted(found, key=lambda file: _natural(file.stem))


def _natural(name: str) -> list[str | int]:
    """Sorts names as people do: the numbers in them (odd positions) as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]


def _one_each(found: list[Path], target: str, kind: str) -> dict[str, pd.DataFrame]:
    tables: dict[str, pd.DataFrame] = {}
    for file in found:
        table = _read(file, target, None, kind)
        first = next(iter(tables.values()), table)
        if file.stem in tables:
            raise DataError(f"{file}: another file is called {file.stem}, too: one task twice. Rename or remove one.")
        if other := sorted(set(first) ^ set(table)):
            raise DataError(f"{file} or {found[0]} lacks {few(other)}. Give all tasks the same columns.")
        tables[file.stem] = table[first.columns]
    return tables


def _cut(file: Path, target: str, task: str, kind: str) -> dict[str, pd.DataFrame]:
    parts = {str(name): part.drop(columns=task) for name, part in _read(file, target, task, kind).groupby(task)}
    return {name: parts[name] for name in sorted(parts, key=_natural)}


def _read(file: Path, target: str, task: str | None, kind: str) -> pd.DataFrame:
    """A table that has its columns, rows, and values where they belong."""
    table = read_table(file, (target,))
    if fault := next(_faults(table, target, task, kind), None):
        raise DataError(f"{file} {fault}")
    return table


def read_table(file: Path, beside: Collection[str] = ()) -> pd.DataFrame:
    """A table as it is; of an npz, the array x as columns x0, x1, ..., and those of the arrays `beside` that there are.

    Raises:
        DataError: it cannot be read.
    """
    import pandas as pd

    try:
        if file.suffix.lower() == ".npz":
            arrays = load_arrays(file, lambda names: [name for name in dict.fromkeys(("x", *beside)) if name in names])
            if "x" not in arrays:
                raise ValueError("it has no array x")
            table = pd.DataFrame(arrays.pop("x")).rename(columns="x{}".format).assign(**arrays)
        elif file.suffix.lower() == ".parquet":
            open_file(file).close()
            table = pd.read_parquet(file)
        else:
            open_file(file).close()
            header = pd.read_csv(file, header=None, nrows=1).iloc[0]
            if len(twice := header[header.duplicated()]):  # pandas would rename it, and a second target leak the first
                raise ValueError(f"column {twice.iloc[0]} stands twice in the first line")
            table = pd.read_csv(file, low_memory=False)
            if not isinstance(table.index, pd.RangeIndex):  # pandas takes a field too many for the row's name
                raise ValueError("rows have more fields than the first line")
    except ImportError as error:
        raise DataError(f"{file}: Parquet needs pyarrow. pip install 'hmtl[parquet]', or give CSV or NPZ.") from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}. Fix it or write it again.") from error
    return table


def as_it_came(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table read from that file; of CSV each cell letter by letter, so that 007 and 1.50 stay what they are."""
    import pandas as pd

    text = file.suffix.lower() not in (".npz", ".parquet")
    return pd.read_csv(file, dtype=str, keep_default_na=False) if text else table


def _faults(table: pd.DataFrame, target: str, task: str | None, kind: str) -> Iterator[str]:
    """What is wrong and what to do; what comes later supposes that what came before is right."""
    names = ", ".join(map(str, table.columns[:8])) + (", ..." if table.shape[1] > 8 else "")
    for role, name in (("target", target), ("task", task)):
        if name not in (None, *table):
            yield f"has no column {name} (it has {names}). Set dataset.{role} to one that it has."
    if table.empty:
        yield "has no rows: an empty task. Add rows, or remove it."
    if set(table) <= {target, task}:
        yield f"has no features, only {names}. Add columns to learn from."
    for name, column in table.items():
        number = name != task and (name != target or kind == "regression")
        bad = not_numbers(column) if number else column.isna().to_numpy()
        if bad.any():
            row, wanted = int(bad.argmax()), "a finite number" if number else "a value"
            other = "drop the column" if name != target else "set dataset.kind=classification loss=hinge for labels"
            yield (
                f"has {column.iloc[row]} in column {name}, row {row} (from 0, below the header; {bad.sum() - 1} more), "
                f"where {wanted} belongs. Fix or drop such rows{f', or {other}' if name != target or number else ''}."
            )


def not_numbers(column: pd.Series[Any]) -> NDArray[np.bool_]:
    """[n], where a column has no finite number."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        return np.asarray(~np.isfinite(column.to_numpy(np.float64, na_value=np.nan)))
    unread = pd.to_numeric(column.astype(str), errors="coerce").isna().to_numpy(bool)
    return np.asarray(unread if unread.any() else ~unread)  # a column of numbers written as text is text


def _coded(columns: list[pd.Series[Any]], where: str, kind: str) -> tuple[list[NDArray[np.int64]], tuple[Any, ...]]:
    """Labels as numbers 0, 1, ... in the order of what they stand for, column by column; and what that is."""
    import pandas as pd

    found = pd.concat(columns)
    number, values = pd.factorize(found.astype(str) if found.dtype == object else found, sort=True)
    if len(values) == 1:
        raise DataError(f"{where} has one value, {values[0]}, in all rows: nothing to tell apart. Set another target.")
    if len(values) > 2 and pd.api.types.is_float_dtype(values) and (values % 1).any():
        raise DataError(
            f"{where} has {len(values)} values that are not whole: no classes. If they are numbers to predict, set "
            "dataset.kind=regression loss=squared."
        )
    if kind == "auto" and len(values) > FEW and pd.api.types.is_numeric_dtype(values):
        raise ConfigError(
            f"{where} has {len(values)} values, all whole: classes, or numbers to predict? Set "
            "dataset.kind=classification, or dataset.kind=regression loss=squared."
        )
    return np.split(number, np.cumsum([len(column) for column in columns])[:-1]), tuple(values.tolist())
