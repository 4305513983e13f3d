"""Parsed data sets, cached as npz files so that text is parsed once."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.io.npz import load_arrays


def cache_folder() -> Path:
    """Return the user's cache folder for hmtl: ${XDG_CACHE_HOME:-~/.cache}/hmtl."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmtl"


def cached(path: Path, build: Callable[[], list[NDArray[Any]]]) -> list[NDArray[Any]]:
    """Return the arrays cached in `path`, or call `build` and cache its result.

    A damaged file is built again. If the folder cannot be written, nothing is cached.
    """
    with contextlib.suppress(OSError, ValueError):
        return list(load_arrays(path).values())
    arrays = build()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            np.savez(Path(scratch, "new.npz"), *arrays)
            Path(scratch, "new.npz").replace(path)  # atomic: another process never reads half a file
    return arrays
