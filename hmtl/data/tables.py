"""Tables in CSV, NPZ and Parquet files."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from hmtl.errors import DataError
from hmtl.io.npz import load_arrays, open_file

SUFFIXES = (".csv", ".npz", ".parquet")


def read_table(file: Path, arrays: Collection[str] = ()) -> pd.DataFrame:
    """Return the table in a file.

    Args:
        file: a CSV whose first line names the columns, a Parquet file, or an NPZ with x [n, d], whose columns are
            called x0, x1, ...
        arrays: names of further arrays [n] of an NPZ that become columns, if it has them.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        if file.suffix.lower() == ".npz":
            return _read_npz(file, arrays)
        open_file(file).close()  # raises for a pipe or a folder
        return pd.read_parquet(file) if file.suffix.lower() == ".parquet" else _read_csv(file)
    except ImportError as error:
        raise DataError(
            f"{file}: Parquet needs pyarrow. Run pip install 'hmtl[parquet]', or give CSV or NPZ."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}. Fix it or write it again.") from error


def read_as_text(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return a CSV's `table` with its cells as written, so that 007 and 1.50 keep their form; return others as is."""
    if file.suffix.lower() in (".npz", ".parquet"):
        return table
    return pd.read_csv(file, dtype=str, keep_default_na=False)


def fault(column: pd.Series, is_number: bool = True) -> str:
    """Describe the first cell of a column that is empty, or not a finite number, for a message; "" if there is none."""
    wanted = "a finite number" if is_number else "a value"
    if not is_number:
        bad = column.isna().to_numpy()
    elif pd.api.types.is_numeric_dtype(column):
        bad = ~np.isfinite(column.to_numpy(np.float64, na_value=np.nan))
    else:
        bad = pd.to_numeric(column.astype(str), errors="coerce").isna().to_numpy(bool)
        bad = bad if bad.any() else ~bad  # numbers that are stored as text are faults, too
    if not bad.any():
        return ""
    row = int(bad.argmax())
    place = f"column {column.name}, row {row} (from 0, below the header; {bad.sum() - 1} more)"
    return f"has {column.iloc[row]} in {place}, where {wanted} is needed. Fix or drop such rows"


def _read_npz(file: Path, names: Collection[str]) -> pd.DataFrame:
    arrays = load_arrays(file, lambda present: [name for name in dict.fromkeys(("x", *names)) if name in present])
    if "x" not in arrays:
        raise ValueError("it has no array x")
    return pd.DataFrame(arrays.pop("x")).rename(columns="x{}".format).assign(**arrays)


def _read_csv(file: Path) -> pd.DataFrame:
    header = pd.read_csv(file, header=None, nrows=1).iloc[0]
    if len(repeated := header[header.duplicated()]):  # pandas would rename it: a second target would leak the first
        raise ValueError(f"the first line names column {repeated.iloc[0]} twice")
    table = pd.read_csv(file, low_memory=False)
    if not isinstance(table.index, pd.RangeIndex):  # pandas then takes a row's first field for its name
        raise ValueError("rows have more fields than the first line")
    return table
