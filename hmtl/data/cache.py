"""Parsed data sets, kept as .npz so that text is parsed once. A convenience: nothing fails for its sake."""

import contextlib
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.io.npz import load_arrays


def cache_folder() -> Path:
    """The user's cache folder for hmtl: ${XDG_CACHE_HOME:-~/.cache}/hmtl."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmtl"


def cached(path: Path, build: Callable[[], list[NDArray[Any]]]) -> list[NDArray[Any]]:
    """The arrays kept in `path`, or, where it is missing, damaged or of other content, `build()`, kept there if
    the folder allows it.
    """
    with contextlib.suppress(Exception):  # whatever is wrong with the file, what it was made from is at hand
        arrays = list(load_arrays(path).values())
        with zipfile.ZipFile(path) as file:
            if file.comment == _mark(path.name, arrays):
                return arrays
    arrays = build()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            np.savez(Path(scratch, "new.npz"), *arrays)
            with zipfile.ZipFile(Path(scratch, "new.npz"), "a") as file:
                file.comment = _mark(path.name, arrays)
            Path(scratch, "new.npz").replace(path)  # at once: another run sees the old file or the whole new one
    return arrays


def _mark(name: str, arrays: list[NDArray[Any]]) -> bytes:
    """A digest of the arrays, and of what they are kept as."""
    digest = hashlib.blake2b(name.encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest().encode()
