"""Tables from CSV, NPZ and Parquet files, and each unreadable file by name."""

import builtins

import numpy as np
import pandas as pd
import pytest

from hmtl.data.tables import fault, read_as_text, read_rows
from hmtl.errors import DataError

TABLE = pd.DataFrame({"a": [7, 8], "b": [1.5, 2.0]})


def test_every_format_gives_the_same_table(tmp_path):
    TABLE.to_csv(tmp_path / "t.CSV", index=False)
    np.savez(tmp_path / "t.npz", x=TABLE.to_numpy(), who=["p", "q"], unread=[1])
    pd.testing.assert_frame_equal(read_rows(tmp_path / "t.CSV")[0], TABLE)
    from_npz = read_rows(tmp_path / "t.npz", ["who", "absent"])[0]
    assert from_npz.columns.tolist() == ["x0", "x1", "who"]
    assert from_npz[["x0", "x1"]].to_numpy().tolist() == TABLE.to_numpy().tolist()
    assert from_npz["who"].tolist() == ["p", "q"]
    pytest.importorskip("pyarrow")
    TABLE.to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read_rows(tmp_path / "t.parquet")[0], TABLE)


def test_cells_of_a_csv_as_text(tmp_path):
    (tmp_path / "t.csv").write_text('id,note,price\n007,NA,1.50\n008,"x, y",1e5\n')
    text = read_as_text(tmp_path / "t.csv", read_rows(tmp_path / "t.csv")[0])
    assert text.to_numpy().tolist() == [["007", "NA", "1.50"], ["008", "x, y", "1e5"]]
    assert read_as_text(tmp_path / "t.npz", TABLE) is TABLE


ONES, SIGNS = np.ones((6, 2)), np.tile([1, -1], 3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.csv", None),
        ("empty.csv", b""),
        ("longer line.csv", b"a,b,y\n1,1,no\n1,1,1,yes\n"),
        ("longer lines.csv", b"a,b,y\n1,1,1,no\n1,1,1,yes\n"),
        ("one column twice.csv", b"a,y,y\n1,0,0\n2,1,1\n"),  # pandas would make the second target a feature
        ("not text.csv", b"a,b,y\n\xff\xfe"),
        ("not.parquet", b"PAR1"),
        ("without x.npz", {"X": ONES}),
        ("unequal.npz", {"x": ONES, "y": SIGNS[:4]}),
        ("three axes.npz", {"x": np.ones((2, 2, 2))}),
        ("objects.npz", {"x": ONES.astype(object)}),
        ("array.npz", ONES),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(file, **content)
    elif content is not None:
        with file.open("wb") as opened:
            np.save(opened, content)
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        read_rows(file, ["y"])


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] in ("pyarrow", "fastparquet"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"hmtl\[parquet\]"):
        read_rows(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("values", "bad"),
    [
        ([1, 2.5, 3], []),
        ([1, np.nan, -np.inf], [1, 2]),
        (["1", "n.a.?", "3"], [1]),
        (["1", "2", "3"], [0, 1, 2]),  # numbers stored as text are text
        (pd.array([1, None, 3], "Int64"), [1]),
        ([True, False, True], []),
        ([pd.Timestamp("2020-01-01")] * 3, [0, 1, 2]),
    ],
)
def test_cells_without_a_finite_number(values, bad):
    wrong = fault(pd.Series(values, name="b"))
    assert bool(wrong) == bool(bad)
    if bad:
        more = f"; {len(bad) - 1} more" if len(bad) > 1 else ""
        assert f"in column b, row {bad[0]} (from 0, below the header{more})" in wrong
