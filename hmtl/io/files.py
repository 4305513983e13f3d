"""Files that are replaced as a whole: after a crash, a path holds either the old content or the new."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` at the end of the block; after an exception `path` is unchanged.

    Raises:
        OSError: the file cannot be written; its `filename` is `path`.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # if the disk is full, Python does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


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
