"""Files that are replaced as a whole or not at all."""

import io
import json
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hmtl.io.files import add_digest, as_csv, check_digest, replacing, write_json


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


def zipped(*names: str) -> bytes:
    """Return a zip file with a digest."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, name * 2)
    add_digest(file)
    return file.getvalue()


def test_every_flipped_bit_of_a_zip_file_is_noticed() -> None:
    whole = zipped("a")
    check_digest(io.BytesIO(whole))
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="digest"):
            check_digest(io.BytesIO(damaged))
    for length in range(len(whole)):
        with pytest.raises(ValueError, match="digest"):
            check_digest(io.BytesIO(whole[:length]))


def test_other_readers_ignore_the_digest_and_a_file_without_one_is_refused(tmp_path: Path) -> None:
    big = np.arange(3 * 2**17)  # of more than one chunk
    for save, load in ((np.savez, lambda path: np.load(path)["a"]), (torch.save, lambda path: torch.load(path)["a"])):
        with replacing(tmp_path / "x") as file:
            save(file, a=big) if save is np.savez else save({"a": torch.from_numpy(big)}, file)
            plain = file.tell()
            with pytest.raises(ValueError, match="digest"):
                check_digest(file)
            add_digest(file)
        assert (tmp_path / "x").stat().st_size == plain + 32
        with (tmp_path / "x").open("rb") as file:
            check_digest(file)
            assert file.tell() == 0
        assert zipfile.ZipFile(tmp_path / "x").testzip() is None
        assert np.array_equal(load(tmp_path / "x"), big)


def test_csv_has_a_header_and_leaves_missing_values_empty() -> None:
    assert as_csv([{"a": 1, "b": "x,y"}, {"a": 2}]) == 'a,b\n1,"x,y"\n2,\n'
