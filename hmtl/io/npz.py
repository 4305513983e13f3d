"""Untrusted npz and text files: their headers are checked before memory is allocated.

An npz file is a zip of arrays, each with a header that gives its dtype and shape.
"""

import math
import os
import stat
import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from numpy.lib import format as npy
from numpy.typing import NDArray

MAX_ARRAY_BYTES = 2**33  # bytes of an array or a text file


def open_file(path: str | Path, most: int = MAX_ARRAY_BYTES) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: if the file does not exist, cannot be read, or is a folder, pipe or device.
        ValueError: if it has more than `most` bytes.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # does not block on a pipe
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        file.close()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is a folder, pipe or device, not a file", str(path))
        raise ValueError(f"it has {status.st_size:,} bytes, more than {most:,}")
    return file


def load_arrays(
    path: str | Path, choose: Callable[[Sequence[str]], Collection[str]] = list, most: int = MAX_ARRAY_BYTES
) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz file by name: numbers, booleans or strings, and no Python objects.

    Args:
        choose: returns the names to read from those in the file; all by default.
        most: largest allowed size of an array, in bytes.

    Raises:
        OSError: see `open_file`.
        ValueError: if it is not an npz file, is damaged, or an array is too large or of another dtype.
    """
    with open_file(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                return {name: _array(archive, members[name], most) for name in choose(list(members))}
        except (ValueError, MemoryError):
            raise
        except Exception as error:  # zipfile, and numpy, which evaluates headers, raise whatever damage leads to
            raise ValueError(f"not an npz file, or damaged ({' '.join(str(error).split())})") from None


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> NDArray[Any]:
    with archive.open(info) as member:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(member))
        if read is None:
            raise ValueError(f"{info.filename} has an unknown version")
        shape, _, dtype = read(member)
    nbytes = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "biufUS":
        raise ValueError(
            f"{info.filename} has dtype {dtype}, but only numbers and strings are read, not Python objects"
        )
    if nbytes > most:
        raise ValueError(f"{info.filename} of shape {shape} has {nbytes:,} bytes, more than {most:,}")
    if nbytes > info.file_size:
        raise ValueError(f"{info.filename} is truncated")
    with archive.open(info) as member:
        array: NDArray[Any] = npy.read_array(member, allow_pickle=False)
        member.read()  # reaching the end verifies the checksum
        return array
