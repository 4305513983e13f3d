"""Predictions for the rows of a table."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hmtl.data.sparse import widened
from hmtl.data.tables import SVMLIGHT, fault, read_as_text, read_rows
from hmtl.errors import ConfigError, DataError, few
from hmtl.inference.models import Models


def predict_table(models: Models, file: Path, user: str | None = None, task: str | None = None) -> pd.DataFrame:
    """Return the table in a file of raw rows with a new column `predicted`; cells of a CSV keep their text.

    The features of sparse rows are left out.

    Args:
        user: name of the user of all rows; None: the name of the file.
        task: column that names the user of each row.

    Raises:
        DataError: if the file cannot be read, columns are missing, or a value is not a finite number.
        ConfigError: if the users of the rows are not known.
    """
    if len(models.shape) > 1:
        raise DataError(
            f"The models expect rows of shape {list(models.shape)}, which a table cannot hold. Use hmtl.load_run."
        )
    table, sparse = read_rows(file, (task,) if task else (), task=task)
    if "predicted" in table:
        raise DataError(f"{file} already has a column predicted. Drop or rename it.")
    users = _users(models, table, file, user, task)
    if sparse is None:
        x = _features(models, table, file, task)
    else:
        x = widened(sparse, models.shape[0]) if file.suffix.lower() in SVMLIGHT else sparse
    predicted = np.empty(len(table), dtype=object)
    for name, rows in pd.Series(users).groupby(users, sort=False).indices.items():
        predicted[rows] = models.predict(name, x.iloc[rows] if isinstance(x, pd.DataFrame) else x[rows])
    return read_as_text(file, table).assign(predicted=predicted.tolist())


def _users(models: Models, table: pd.DataFrame, file: Path, user: str | None, task: str | None) -> list[str]:
    """Return the user of each row."""
    if user is not None and task is not None:
        raise ConfigError(f"user={user} and task={task} both name the users of the rows. Leave one out.")
    if task is not None:
        if task not in table:
            raise DataError(
                f"{file} has no column {task} (it has {few(list(table))}). Set task to one of them, or user."
            )
        if wrong := fault(table[task], is_number=False):
            raise DataError(f"{file} {wrong}.")
        names = [str(name) for name in table[task]]
        if unknown := set(names) - set(models.names):
            reason = f"{min(unknown)} in column {task}, but the run's users are {few(models.names)}"
            raise DataError(f"{file} has {reason}. Set task to the column of users, or drop such rows.")
        return names
    if user is None and file.stem not in models.names:
        raise ConfigError(
            f"The user of the rows in {file} is not known. Set user, or set task to the column that names the users; "
            f"the run's users are {few(models.names)}."
        )
    return [user or file.stem] * len(table)


def _features(models: Models, table: pd.DataFrame, file: Path, task: str | None) -> Any:
    """Return the columns that the models were trained on, by name, or by position if one side has no names."""
    named = models.columns if file.suffix.lower() != ".npz" else ()
    columns = list(named) or [name for name in table.columns if name != task]
    if missing := [name for name in columns if name not in table]:
        raise DataError(f"{file} has no column {few(missing)}, which the models were trained on. Add it.")
    made, features = models.table, table[columns]
    if made and not named and len(columns) == len(made.columns):
        features = features.set_axis(list(made.columns), axis=1)
    for name in features:
        if made and name in made.categories:
            continue
        if wrong := fault(features[name], missing=bool(made and made.means)):
            raise DataError(f"{file} {wrong}.")
    return features if made else features.to_numpy(np.float64)
