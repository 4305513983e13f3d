"""The cache of parsed data: read when whole, built again when damaged, left out if the folder cannot be written."""

import numpy as np
import pytest

from hmtl.data.cache import cache_folder, cached

ARRAYS = [np.arange(12, dtype=np.uint8).reshape(3, 4), np.array([7, 8, 9])]


class Source:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS


def check(arrays):
    for expected, array in zip(ARRAYS, arrays, strict=True):
        assert expected.dtype == array.dtype
        assert np.array_equal(expected, array)


def flip_a_byte(content):
    middle = content.index(bytes(range(12)))
    return content[:middle] + b"\xff" + content[middle + 1 :]


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"text", flip_a_byte])
def test_parses_once_and_again_after_damage(tmp_path, damage):
    source, path = Source(), tmp_path / "deep" / "set.npz"
    check(cached(path, source))
    check(cached(path, source))
    assert source.calls == 1
    path.write_bytes(damage(path.read_bytes()))
    check(cached(path, source))
    check(cached(path, source))
    assert source.calls == 2
    assert [file.name for file in path.parent.iterdir()] == ["set.npz"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    source = Source()
    check(cached(tmp_path / "file" / "set.npz", source))

    def full(file, *arrays):
        file.write_bytes(b"half of i")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    check(cached(tmp_path / "set.npz", source))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hmtl"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "hmtl"
