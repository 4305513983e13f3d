"""Data sets that are downloaded once, to the user's cache folder by default."""

import os
import tarfile
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path

FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    HTTPException,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What downloads and unpacking raise: no network, another size or checksum, half a file, no space."""


def cache_folder() -> Path:
    """Return the user's cache folder for hmtl: ${XDG_CACHE_HOME:-~/.cache}/hmtl."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmtl"
