"""Files of others' making, read with care: what they claim to hold is checked before any memory is given to it.

An npz file is a zip of arrays, each with a header that tells its type and shape.
"""

import math
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from numpy.lib import format as npy
from numpy.typing import NDArray

MOST = 2**33  # bytes of one array, or of a text


def open_file(path: str | Path, most: int = MOST) -> BinaryIO:
    """A file opened to be read from its beginning to its end.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: it is not there, cannot be read, or is not a regular file (a pipe or a device).
        ValueError: it is larger.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # of a pipe, do not wait
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_size > most:
        file.close()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is a folder, pipe or device, no file", str(path))
        raise ValueError(f"it has {found.st_size:,} bytes, more than {most:,}")
    return file


def load_arrays(
    path: str | Path, choose: Callable[[Sequence[str]], Collection[str]] = list, most: int = MOST
) -> dict[str, NDArray[Any]]:
    """Arrays of an npz file by name: numbers, truth values or words, and nothing that could run code.

    Args:
        choose: of the names that there are, those to read; by default all.
        most: bytes that an array may have.

    Raises:
        OSError: see `open_file`.
        ValueError: it is not such a file, it is damaged, or an array is too large or of another kind.
    """
    with open_file(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                return {name: _array(archive, members[name], most) for name in choose(list(members))}
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
            # RuntimeError: it is encrypted, or compressed in a way that Python does not know
            raise ValueError(f"no npz file, or damaged ({' '.join(str(error).split())})") from None


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> NDArray[Any]:
    with archive.open(info) as member:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(member))
        if read is None:
            raise ValueError(f"{info.filename} is of an unknown version")
        shape, _, dtype = read(member)
    nbytes = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "biufUS":
        raise ValueError(f"{info.filename} is of type {dtype}, not of plain numbers or words: no Python objects in it")
    if nbytes > most:
        raise ValueError(f"{info.filename} of shape {shape} has {nbytes:,} bytes, more than {most:,}")
    if nbytes > info.file_size:
        raise ValueError(f"{info.filename} is cut off, damaged")
    with archive.open(info) as member:
        array: NDArray[Any] = npy.read_array(member, allow_pickle=False)
        member.read()  # to its end, so that its checksum is compared
        return array
