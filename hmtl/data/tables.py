"""Tables in CSV, NPZ and Parquet files, and sparse rows in NPZ and svmlight files."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from hmtl.data.sparse import checked
from hmtl.errors import DataError
from hmtl.io.npz import load_arrays, open_file

SVMLIGHT = (".svm", ".libsvm", ".svmlight")
SUFFIXES = (".csv", ".npz", ".parquet", *SVMLIGHT)
QUERY = "qid"
"""The column of a svmlight file that may hold the task of a row."""


def read_rows(
    file: Path, arrays: Collection[str] = (), label: str = "y", task: str | None = None
) -> tuple[pd.DataFrame, csr_array | None]:
    """Return the table in a file and None or, if its rows are sparse, a table without features and the features [n, d].

    Args:
        file: a CSV whose first line names the columns, a Parquet file, an NPZ, or a svmlight file, whose features are
            numbered from 1. An NPZ has x [n, d], whose columns are called x0, x1, ..., or the arrays of a sparse one:
            data, indices, indptr and shape, as `scipy.sparse.save_npz` writes them for CSR.
        arrays: names of further arrays [n] of an NPZ that become columns, if it has them.
        label: name of the column with the labels of a svmlight file.
        task: column of a CSV whose cells stay text as written, so that 007, 12.0 and NA are names.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        if file.suffix.lower() == ".npz":
            return _read_npz(file, arrays)
        if file.suffix.lower() in SVMLIGHT:
            return _read_svmlight(file, label)
        open_file(file).close()  # raises for a pipe or a folder
        return pd.read_parquet(file) if file.suffix.lower() == ".parquet" else _read_csv(file, task), None
    except ImportError as error:
        raise DataError(
            f"{file}: Parquet needs pyarrow. Run pip install 'hmtl[parquet]', or give CSV or NPZ."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{file} cannot be read: {reason}. Check the path, or write the file again.") from error


def read_as_text(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return a CSV's `table` with its cells as written, so that 007 and 1.50 keep their form; return others as is."""
    if file.suffix.lower() != ".csv":
        return table
    return pd.read_csv(file, dtype=str, keep_default_na=False)


def fault(column: pd.Series, is_number: bool = True, missing: bool = False) -> str:
    """Describe the first cell of a column that is empty, or not a finite number, for a message; "" if there is none.

    `missing` says whether numbers may be missing.
    """
    wanted = "a finite number" if is_number else "a value"
    bad = misfits(column, missing) if is_number else column.isna().to_numpy()
    if not bad.any():
        return ""
    row, n = int(bad.argmax()), bad.sum()
    place = f"column {column.name}, row {row} (from 0, below the header{f'; {n - 1} more' if n > 1 else ''})"
    return f"has {column.iloc[row]} in {place}, where {wanted} is needed. Fix or drop such rows"


def misfits(column: pd.Series, missing: bool = False) -> NDArray[np.bool_]:
    """Return which cells are not finite numbers [n]; `missing` says whether numbers may be missing."""
    bad: NDArray[np.bool_]
    if pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(np.float64, na_value=np.nan)
        bad = np.isinf(values) if missing else ~np.isfinite(values)
        return bad
    bad = pd.to_numeric(column.astype(str), errors="coerce").isna().to_numpy(bool)
    return bad if bad.any() else ~bad  # numbers that are stored as text do not fit, either


def _read_npz(file: Path, names: Collection[str]) -> tuple[pd.DataFrame, csr_array | None]:
    sparse = ("data", "indices", "indptr", "shape")
    wanted = dict.fromkeys(("x", "format", *sparse, *names))
    arrays = load_arrays(file, lambda present: [name for name in wanted if name in present])
    layout = arrays.pop("format", np.array("csr"))
    if "x" in arrays:
        x = pd.DataFrame(arrays.pop("x")).rename(columns="x{}".format)
        return x.assign(**{name: values for name, values in arrays.items() if name in names}), None
    if not arrays.keys() >= {*sparse}:
        raise ValueError("it has no array x")
    if layout.astype(str) != "csr":
        raise ValueError(f"its format is {layout.astype(str)}, not csr")
    data, indices, indptr, shape = (arrays.pop(name) for name in sparse)
    if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        raise ValueError("indices and indptr are not whole numbers")
    x = checked(csr_array((data, indices, indptr), shape=tuple(shape.tolist())))
    return pd.DataFrame(arrays, index=range(x.shape[0])), x


def _read_svmlight(file: Path, label: str) -> tuple[pd.DataFrame, csr_array]:
    from sklearn.datasets import load_svmlight_file  # imported late: few runs need it

    with open_file(file) as opened:
        x, y, query = load_svmlight_file(opened, zero_based=False, query_id=True)
    labels = y.astype(np.int64) if (abs(y) < 2**53).all() and not (y % 1).any() else y
    return pd.DataFrame({label: labels} | ({QUERY: query} if query.any() else {})), checked(x)


def _read_csv(file: Path, task: str | None) -> pd.DataFrame:
    header = pd.read_csv(file, header=None, nrows=1).iloc[0]
    if len(repeated := header[header.duplicated()]):  # pandas would rename it: a second target would leak the first
        raise ValueError(f"the first line names column {repeated.iloc[0]} twice")
    table = pd.read_csv(file, low_memory=False)
    if not isinstance(table.index, pd.RangeIndex):  # pandas then takes a row's first field for its name
        raise ValueError("rows have more fields than the first line")
    if task in table:
        names = pd.read_csv(file, usecols=[task], dtype=str, keep_default_na=False)[task]
        table[task] = names.mask(names == "")
    return table
