"""Networks read from files: a matrix G [H, K] as text or npz, or a list of links."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.errors import TopologyError
from hmtl.io.npz import load_arrays, open_file
from hmtl.topology.topology import MOST_LINKS, Topology, check_size, name_users

Line = tuple[int, list[str]]  # line number, counted from 1, and entries

MOST_TEXT = 100_000_000  # bytes
HEADERS = (["relay", "user"], ["user", "relay"])


def from_file(path: str | PathLike[str]) -> Topology:
    """Read a network.

    - `.npz`: the array named G [H, K], or the only array.
    - Text of H lines with K entries of 0 and 1 each, separated by commas, semicolons or white space.
    - Text with one link per line: relay, user, or the order of a first line `user,relay`. Lines of two entries are
      links if the first line is `relay,user` or `user,relay`, if the file's name ends in `.edges` or `.edgelist`, or if
      a number exceeds 1. Both numbers count from 0, or both from 1 if there is no 0.

    Raises:
        TopologyError: the file cannot be read or is not a network; the message names file, line and entry.
    """
    path = Path(path)
    with naming(path):
        return Topology(_read_npz(path) if path.suffix.lower() == ".npz" else _read_text(path))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to the errors of reading a file."""
    try:
        yield
    except OSError as error:
        raise TopologyError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from None
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None


def read_lines(path: Path) -> list[Line]:
    """Return a text's non-empty lines, split at commas, semicolons and white space."""
    try:
        with open_file(path, MOST_TEXT) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TopologyError("The file is not UTF-8 text. Save it as UTF-8 or as npz.") from None
    except ValueError as error:
        raise TopologyError(f"{error}. Save it as npz.") from None
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, re.split(r"\s*[,;]\s*|\s+", line)) for number, line in stripped if line]


def _read_npz(path: Path) -> NDArray[Any]:
    remedy = "Save it with np.savez(path, G=G), with G of 0 and 1."
    try:
        arrays = load_arrays(path, lambda names: ["G"] if "G" in names else names[:2], most=8 * MOST_LINKS)
    except ValueError as error:
        raise TopologyError(f"{error}. {remedy}") from None
    if len(arrays) != 1:
        raise TopologyError(f"It holds no array named G, and not exactly one array. {remedy}")
    return next(iter(arrays.values()))


def _read_text(path: Path) -> NDArray[np.uint8]:
    lines = read_lines(path)
    header = [entry.lower() for entry in lines[0][1]] if lines else []
    if header in HEADERS:
        lines = lines[1:]
    if not lines:
        raise TopologyError(
            "The file is empty. Write H lines of K entries, each 0 or 1, or one link relay,user per line."
        )
    pairs = len(lines[0][1]) == 2 and any(_number(entry) > 1 for _, entries in lines for entry in entries)
    if header in HEADERS or path.suffix.lower() in (".edges", ".edgelist") or pairs:
        columns = header if header in HEADERS else HEADERS[0]
        numbers = whole_numbers(lines, columns)
        relays, users = (numbers[:, columns.index(name)] for name in HEADERS[0])
        return link_tables(np.zeros_like(users), relays, users)[1][0]
    return _from_matrix(lines)


def _from_matrix(lines: list[Line]) -> NDArray[np.uint8]:
    first, width = lines[0][0], len(lines[0][1])
    for number, entries in lines:
        if len(entries) != width:
            raise TopologyError(
                f"Line {number} differs in length from line {first}: {len(entries)} entries, not {width}. "
                "Give all lines the same number of entries."
            )
    G = np.array([[_number(entry) for entry in entries] for _, entries in lines])
    bad = np.argwhere((G != 0) & (G != 1))
    if len(bad):
        row, column = bad[0]
        number, entries = lines[row]
        raise TopologyError(
            f"Line {number}, entry {column + 1} is {entries[column]!r}, but a matrix has entries 0 and 1. "
            "Write 0 or 1; for a list of links, add a first line relay,user."
        )
    return G.astype(np.uint8)


def _number(entry: str) -> float:
    try:
        return float(entry)
    except ValueError:
        return np.nan


def whole_numbers(lines: list[Line], columns: Sequence[str]) -> NDArray[np.int64]:
    """Return the entries of lines that hold one whole number for each column."""
    for number, entries in lines:
        if len(entries) != len(columns) or not all(re.fullmatch(r"[0-9]{1,7}", entry) for entry in entries):
            raise TopologyError(
                f"Line {number} is {' '.join(entries)!r}, but each line has {len(columns)} whole numbers of at most "
                f"7 digits, {', '.join(columns)}. Write one link per line."
            )
    return np.array([entries for _, entries in lines]).astype(np.int64)


def link_tables(
    rounds: NDArray[np.int64], relays: NDArray[np.int64], users: NDArray[np.int64]
) -> tuple[list[int], list[NDArray[np.uint8]]]:
    """Return the rounds that have links, and the table [H, K] of each.

    Relays and users are numbered from 0, or both from 1 if neither has a 0. Every user needs a relay in round 0.
    """
    start = int(min(relays.min(), users.min()) > 0)
    unheard = np.setdiff1d(np.arange(start, users.max() + 1), users[rounds == 0])
    if len(unheard):
        when = " in round 0, when all users take part" if rounds.any() else ""
        raise TopologyError(
            f"No relay hears {name_users(unheard)}, counted from {start} as in the file{when}. "
            "Give every user a link, or number the users without gaps."
        )
    starts, at = np.unique(rounds, return_inverse=True)
    H, K = int(relays.max()) + 1 - start, int(users.max()) + 1 - start
    check_size(K, H, len(starts))
    tables = np.zeros((len(starts), H, K), dtype=np.uint8)
    tables[at, relays - start, users - start] = 1
    return starts.tolist(), list(tables)
