"""Files that are replaced as a whole: after a crash, a path holds either the old content or the new.

The digest of a zip file, such as an npz file or what torch saves, is its comment, which other readers ignore. Those of
the text files of a folder are in its file `SHA256SUMS`, which `sha256sum --check` reads.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

SHA256_BYTES = 32  # bytes
READ_CHUNK_BYTES = 2**20  # bytes that are read at a time
CHECKSUM_FILE = "SHA256SUMS"


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` at the end of the block; after an exception `path` is unchanged.

    Args:
        path: the file.
        mode: who may read it, as far as the process's umask allows it.

    Raises:
        OSError: the file cannot be written; its `filename` is `path`.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # it would keep its mode
        with open(temporary, "w+b", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # some file systems cannot
            os.fsync(folder)  # otherwise the old file may be back after a loss of power
        os.close(folder)
    except OSError as error:  # if the disk is full, Python does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def add_digest(file: BinaryIO) -> None:
    """Make the SHA-256 of a zip file's content the comment of this file, which was just written without one."""
    end = file.seek(-2, os.SEEK_END) + 2
    file.write(SHA256_BYTES.to_bytes(2, "little"))  # the length of the comment
    file.write(_sha256(file, end))


def check_digest(file: BinaryIO) -> None:
    """Raise ValueError unless a file is as `add_digest` left it."""
    end = max(0, file.seek(0, os.SEEK_END) - SHA256_BYTES)
    if _sha256(file, end) != file.read():
        raise ValueError("its content does not match its digest, or it has none")
    file.seek(0)


def write_sums(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the digests of these files of a folder, by name."""
    write_whole(folder / CHECKSUM_FILE, "".join(f"{_line(*each)}\n" for each in contents.items()))


def check_sums(folder: Path, *names: str) -> None:
    """Raise ValueError unless these files are as `write_sums` took them, or OSError if one cannot be read."""
    if not (folder / CHECKSUM_FILE).exists():
        raise ValueError(f"{CHECKSUM_FILE} is missing; runs of earlier versions have none")
    known = (folder / CHECKSUM_FILE).read_bytes().split(b"\n")
    for name in names:
        if _line(name, (folder / name).read_bytes()).encode() not in known:
            raise ValueError(f"{name} was changed after the run, or {CHECKSUM_FILE} was")


def _line(name: str, content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {name}"


def _sha256(file: BinaryIO, end: int) -> bytes:
    """Return the SHA-256 of the first `end` bytes of a file, which stands there afterwards."""
    digest = hashlib.sha256()
    file.seek(0)
    for start in range(0, end, READ_CHUNK_BYTES):
        digest.update(file.read(min(READ_CHUNK_BYTES, end - start)))
    return digest.digest()


def write_whole(path: Path, text: str) -> None:
    """Replace the content of a file by `text`."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the content of a file by a JSON object."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table as CSV. Its columns are in the order of their first values; one that a row lacks is left empty."""
    text = io.StringIO()
    names = dict.fromkeys(chain.from_iterable(rows))
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    table.writerows([row.get(name) for name in names] for row in rows)
    return text.getvalue()
