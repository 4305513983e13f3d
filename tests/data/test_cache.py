"""The cache: read when whole, rebuilt when damaged, done without when the folder does not allow it."""

import numpy as np
import pytest

from hmtl.data.cache import cache_folder, cached


class Source:
    def __init__(self):
        self.calls = 0
        self.arrays = [np.arange(12, dtype=np.uint8).reshape(3, 4), np.array([7, 8, 9])]

    def __call__(self):
        self.calls += 1
        return self.arrays

    def check(self, arrays):
        assert len(arrays) == 2
        for mine, theirs in zip(self.arrays, arrays, strict=True):
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs)


def test_parses_once(tmp_path):
    source, path = Source(), tmp_path / "deep" / "folder" / "set.npz"
    for _ in range(3):
        source.check(cached(path, source))
    assert source.calls == 1
    assert [p.name for p in path.parent.iterdir()] == ["set.npz"], "nothing else stays behind"


def flip_a_byte(whole):
    middle = whole.index(bytes(range(12)))
    return whole[:middle] + b"\xff" + whole[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"not an archive", flip_a_byte],
    ids=["empty", "half", "last byte", "other content", "one byte"],
)
def test_damaged_is_rebuilt(tmp_path, damage):
    source, path = Source(), tmp_path / "set.npz"
    cached(path, source)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    source.check(cached(path, source))
    assert source.calls == 2
    source.check(cached(path, source))
    assert source.calls == 2, "the damaged file was replaced"


def test_other_content_heals(tmp_path):
    """A file that is whole, but not of these arrays under this name."""
    source, path, other = Source(), tmp_path / "set.npz", tmp_path / "other.npz"
    cached(other, lambda: [np.arange(5)])
    for calls, make in enumerate((lambda: other.replace(path), lambda: np.savez(path, np.arange(5))), 1):
        make()
        source.check(cached(path, source))
        assert source.calls == calls
        source.check(cached(path, source))
        assert source.calls == calls


def test_no_folder_no_cache(tmp_path):
    (tmp_path / "file").write_text("in the way")
    source = Source()
    for calls in (1, 2):
        source.check(cached(tmp_path / "file" / "set.npz", source))
        assert source.calls == calls


def test_a_writer_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    path.write_bytes(b"damaged")

    def full(file, *arrays):
        file.write_bytes(b"half of i")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    source = Source()
    source.check(cached(path, source))
    assert path.read_bytes() == b"damaged"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hmtl"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_folder() == tmp_path / "me" / ".cache" / "hmtl"
