"""Parsed data sets, kept as .npz so that text is parsed once. A convenience: nothing fails for its sake."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def cache_folder() -> Path:
    """The user's cache folder for hmtl: ${XDG_CACHE_HOME:-~/.cache}/hmtl."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmtl"


def cached(path: Path, build: Callable[[], list[NDArray[Any]]]) -> list[NDArray[Any]]:
    """The arrays kept in `path`, or, where it is missing or damaged, `build()`, kept there if the folder allows it."""
    # Whatever is wrong with the file, what it was made from is at hand. (The zip format brings checksums.)
    with contextlib.suppress(Exception), np.load(path) as file:
        return list(file.values())
    arrays = build()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            np.savez(Path(scratch, "new.npz"), *arrays)
            Path(scratch, "new.npz").replace(path)  # at once: another run sees the old file or the whole new one
    return arrays
