"""Arrays from untrusted files: read as written, and never allocated on the claim of a header alone."""

import contextlib
import io
import os
import pickle
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hmtl.io.npz import load_arrays, open_file

KINDS = st.sampled_from(["?", "i1", "u8", "f4", "f8", "U3", "S2", ">f8"])


@given(st.dictionaries(st.sampled_from("abc"), arrays(KINDS, array_shapes(min_dims=0, min_side=0))), st.booleans())
def test_as_written(written: dict[str, np.ndarray], compressed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (np.savez_compressed if compressed else np.savez)(Path(folder, "x.npz"), **written)
        read = load_arrays(Path(folder, "x.npz"))
    assert read.keys() == written.keys()
    for name, array in written.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("exploded",)


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", G=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="Python objects"):
        load_arrays("x.npz")
    with zipfile.ZipFile("y.npz", "w") as archive:
        archive.writestr("G.npy", pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="magic"):
        load_arrays("y.npz")
    assert not Path("exploded").exists()


SHAPES = ("(1,)", "(-1, 1)", "1", "(1.0,)", "(10**9,)", "(99999999999999999999, 0)", "('a',)", "(", "[[", "{1: []}")
DTYPES = ("'<f8'", "[]", "('<f8',)", "b'<f8'", "{}", "'f8:'", "1, 2: 3")


@given(st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.binary(max_size=3))
def test_a_damaged_header_is_a_value_error(shape: str, descr: str, more: bytes) -> None:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode() + more + b"\n"
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(Path(folder, "x.npz"), "w") as archive:
            archive.writestr("G.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(8))
        with contextlib.suppress(ValueError):
            assert load_arrays(Path(folder, "x.npz"))["G"].shape == (1,)


@pytest.mark.parametrize("shape", [(10**6, 10**6), (10**5, 10**3)], ids=["beyond the cap", "beyond the file"])
def test_no_memory_on_the_claim_of_a_header(tmp_path: Path, shape: tuple[int, int]) -> None:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content.getvalue())
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"more than|truncated"):
        load_arrays(tmp_path / "x.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_an_array_of_just_the_allowed_size_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(3.0))
    assert load_arrays(tmp_path / "x.npz", most=24)["x"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="more than 23"):
        load_arrays(tmp_path / "x.npz", most=23)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_headers(tmp_path: Path, version: tuple[int, int]) -> None:
    """Version 3 is for names of fields, which only records have."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array(member, np.arange(3.0), version)
    with contextlib.nullcontext() if version < (3, 0) else pytest.raises(ValueError, match="unknown version"):
        assert load_arrays(tmp_path / "x.npz")["x"].tolist() == [0, 1, 2]


def test_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    with open_file(tmp_path / "x", most=5) as file:
        assert file.read() == b"12345"
    with pytest.raises(ValueError, match="5 bytes, more than 4"):
        open_file(tmp_path / "x", most=4)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(OSError, match=r"not a file|Is a directory"):
            open_file(other)
