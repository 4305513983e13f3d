"""What the models of a run say of new rows: `python -m hmtl.predict run=FOLDER data=FILE user=NAME`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from hmtl.config.command_line import main
from hmtl.errors import ConfigError, DataError, few
from hmtl.inference.models import Models, load_run
from hmtl.io.files import write_whole

if TYPE_CHECKING:
    import pandas as pd


def predict(cfg: DictConfig) -> None:
    """Write the rows of `cfg.data` with a column `predicted` to `cfg.output`."""
    from hmtl.data.sources.tables import as_it_came, read_table

    if cfg.output is not None and not Path(cfg.output).name:
        raise ConfigError(f"output={cfg.output} names no file: give one, such as predicted.csv, or leave it out.")
    models, file = load_run(cfg.run), Path(cfg.data)
    if len(models.shape) > 1:
        raise DataError(
            f"{cfg.run} was trained on rows of shape {list(models.shape)}, which no table holds: use hmtl.load_run."
        )
    table = read_table(file, (cfg.task,) if cfg.task else ())
    if "predicted" in table:
        raise DataError(f"{file} has a column predicted, the name of the one to be added. Drop or rename it.")
    whose, x = _users(models, table, file, cfg.user, cfg.task), _features(models, table, file, cfg.task)
    predicted: list[Any] = [None] * len(table)
    for user in dict.fromkeys(whose):
        rows = [row for row, owner in enumerate(whose) if owner == user]
        for row, value in zip(rows, models.predict(user, x[rows]).tolist(), strict=True):
            predicted[row] = value
    text = as_it_came(file, table).assign(predicted=predicted).to_csv(index=False)
    if cfg.output is None:
        sys.stdout.write(text)
    else:
        write_whole(Path(cfg.output), text)
        print(f"Predictions: {cfg.output}")


def _users(models: Models, table: "pd.DataFrame", file: Path, user: str | None, task: str | None) -> list[str]:
    """Whose each row is."""
    if user is not None and task is not None:
        raise ConfigError(f"user={user} and task={task}: rows are of one user, or a column says whose. Leave one out.")
    if task is None:
        if user is None and file.stem not in models.names:
            raise ConfigError(
                f"Whose rows has {file}? Set user, or task to the column that says so; users: {few(models.names)}."
            )
        return [user or file.stem] * len(table)
    if task not in table:
        raise DataError(f"{file} has no column {task}. Set task to one that it has, or user to whose rows they are.")
    return [str(name) for name in table[task]]


def _features(models: Models, table: "pd.DataFrame", file: Path, task: str | None) -> NDArray[np.float64]:
    """Rows [n, d] with the columns that the models were trained on; by their order, where one side has no names."""
    from hmtl.data.sources.tables import not_numbers

    named = models.columns if file.suffix.lower() != ".npz" else ()
    columns = list(named) or [name for name in table.columns if name != task]
    if lacking := [name for name in columns if name not in table]:
        more = f" ({len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise DataError(f"{file} has no column {lacking[0]}{more}, which the models were trained on. Add it.")
    for name in columns:
        if (bad := not_numbers(table[name])).any():
            row = int(bad.argmax())
            raise DataError(
                f"{file} has {table[name].iloc[row]} in column {name}, row {row} (from 0, below the header), where a "
                "finite number belongs. Fix or drop such rows."
            )
    features: NDArray[np.float64] = table[columns].to_numpy(np.float64, copy=True)
    return features


if __name__ == "__main__":
    main(predict, "predict")
