"""Data sets that are downloaded once, to the user's cache folder by default."""

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

from hmtl.errors import DataError

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
Place = TypeVar("Place")


def cache_folder() -> Path:
    """Return the user's cache folder for hmtl: ${XDG_CACHE_HOME:-~/.cache}/hmtl."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmtl"


def find_or_download(
    name: str, folder: Path, find: Callable[[Path], Place | None], download: Callable[[], None] | None, remedy: str
) -> Place:
    """Return what `find` finds in a folder, after a download if it finds nothing.

    Raises:
        DataError: if `find` still finds nothing. The message ends with `remedy`.
    """
    reason, place = "download=False", find(folder)
    if not place and download:
        try:
            download()
            place = find(folder)
        except FAILURES as error:
            reason = f"the download failed: {' '.join(str(error).split())}"
    if not place:
        raise DataError(f"{name} is not in {folder} ({reason}). {remedy}")
    return place
