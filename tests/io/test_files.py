"""Files that are replaced as a whole or not at all."""

import json
import resource
from pathlib import Path

import pytest

from hmtl.io.files import as_csv, replacing, write_json


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"σ": 1})
    assert json.loads(path.read_text()) == {"σ": 1}
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert json.loads(path.read_text()) == {"σ": 1}
    assert path.read_text() == "new"
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    path = tmp_path / "file"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error, replacing(path) as file:
            file.write(bytes(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_csv_has_a_header_and_leaves_missing_values_empty() -> None:
    assert as_csv([{"a": 1, "b": "x,y"}, {"a": 2}]) == 'a,b\n1,"x,y"\n2,\n'
