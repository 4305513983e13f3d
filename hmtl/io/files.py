"""Files that are replaced as a whole: after a crash, a path holds either the old content or the new.

The digest of a zip file, such as an npz file or what torch saves, is its comment, which other readers ignore.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

DIGEST = 32  # bytes
CHUNK = 2**20  # bytes that are read at a time


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` at the end of the block; after an exception `path` is unchanged.

    Raises:
        OSError: the file cannot be written; its `filename` is `path`.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # if the disk is full, Python does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def add_digest(file: BinaryIO) -> None:
    """Make the SHA-256 of a zip file's content the comment of this file, which was just written without one."""
    end = file.seek(-2, os.SEEK_END) + 2
    file.write(DIGEST.to_bytes(2, "little"))  # the length of the comment
    file.write(_sha256(file, end))


def check_digest(file: BinaryIO) -> None:
    """Raise ValueError unless a file is as `add_digest` left it, or is a zip file without a comment."""
    end = max(0, file.seek(0, os.SEEK_END) - DIGEST)
    file.seek(end)
    record = file.read()[-22:]  # the last one of a zip file without a comment
    if record[:4] + record[-2:] != b"PK\5\6\0\0" and _sha256(file, end) != file.read():
        raise ValueError("its content does not match its digest")
    file.seek(0)


def _sha256(file: BinaryIO, end: int) -> bytes:
    """Return the SHA-256 of the first `end` bytes of a file, which stands there afterwards."""
    digest = hashlib.sha256()
    file.seek(0)
    for start in range(0, end, CHUNK):
        digest.update(file.read(min(CHUNK, end - start)))
    return digest.digest()


def write_whole(path: Path, text: str) -> None:
    """Replace the content of a file by `text`."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the content of a file by a JSON object."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table as CSV. The first row names the columns; one that a later row lacks is left empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
