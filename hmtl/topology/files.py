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
from hmtl.topology.names import Names
from hmtl.topology.topology import MAX_LINKS, Topology, check_size

Matrix = tuple[NDArray[Any], Names]
CsvLine = tuple[int, list[str]]  # line number, counted from 1, and entries

MAX_TEXT_BYTES = 100_000_000  # bytes
HEADERS = (["relay", "user"], ["user", "relay"])


def from_file(path: str | PathLike[str]) -> Topology:
    """Read a network.

    - `.npz`: the array named G [H, K], or the only array; beside G, `relays` and `users` may hold names.
    - Text of H lines with K entries of 0 and 1 each, separated by commas or semicolons, or else by white space. Names
      of users may stand in a first line, names of relays before each line. If both do, the first entry may say whose
      the lines are: `relay`, or `user` for a file of K lines with H entries each.
    - Text with one link per line: relay, user, or the order of a first line `user,relay`. Lines of two entries are
      links if the first line is `relay,user` or `user,relay`, if the file's name ends in `.edges` or `.edgelist`, or if
      a number exceeds 1. Both numbers count from 0, or both from 1 if there is no 0. Names may stand in place of
      numbers; nodes are then numbered in the order in which they occur.

    Args:
        path: the file.

    Raises:
        TopologyError: the file cannot be read or is not a network; the message names file, line and entry.
    """
    path = Path(path)
    with naming(path):
        G, names = _read_npz(path) if path.suffix.lower() == ".npz" else _read_text(path)
        return Topology(G, names=names)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to the errors of reading a file."""
    try:
        yield
    except OSError as error:
        raise TopologyError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from None
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None


def read_lines(path: Path) -> list[CsvLine]:
    """Return a text's non-empty lines, split at commas and semicolons, or at white space where there are none."""
    try:
        with open_file(path, MAX_TEXT_BYTES) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TopologyError("The file is not UTF-8 text. Save it as UTF-8 or as npz.") from None
    except ValueError as error:
        raise TopologyError(f"{error}. Save it as npz.") from None
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(n, re.split(r"\s*[,;]\s*" if re.search("[,;]", line) else r"\s+", line)) for n, line in stripped if line]


def _read_npz(path: Path) -> Matrix:
    remedy = "Save it with np.savez(path, G=G), with G of 0 and 1."
    wanted = ("G", "relays", "users")

    def choose(found: Sequence[str]) -> Sequence[str]:
        return [name for name in wanted if name in found] if "G" in found else found[:2]

    try:
        arrays = load_arrays(path, choose, most=8 * MAX_LINKS)
    except ValueError as error:
        raise TopologyError(f"{error}. {remedy}") from None
    if len(arrays) != 1 and "G" not in arrays:
        raise TopologyError(f"It holds no array named G, and not exactly one array. {remedy}")
    names = Names(*(tuple(arrays[name].ravel().tolist()) if name in arrays else () for name in wanted[1:]))
    return next(iter(arrays.values())), names


def _read_text(path: Path) -> Matrix:
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
        _, tables, names = link_tables(lines, header if header in HEADERS else HEADERS[0])
        return tables[0], names
    return _from_matrix(lines)


def _from_matrix(lines: list[CsvLine]) -> Matrix:
    head = lines[0][1]
    corner = head[0].lower().rstrip("s")
    both = corner in ("", "relay", "user")
    header = both or all(np.isnan(_number(entry)) for entry in head)
    body = lines[header:]
    named = bool(body) and (both or all(np.isnan(_number(entries[0])) for _, entries in body))
    if header and body:  # with an entry above the names of rows, or without
        head = head[len(head) - len(body[0][1]) + named :]
    rows = [(number, entries[named:]) for number, entries in body]
    for number, entries in rows:
        if len(entries) != len(rows[0][1]) or (header and len(entries) != len(head)):
            raise TopologyError(
                f"Line {number} differs in length from line {lines[0][0]}: {len(entries)} entries, not "
                f"{len(head if header else rows[0][1])}. Give all lines the same number of entries."
            )
    G = np.array([[_number(entry) for entry in entries] for _, entries in rows])
    bad = np.argwhere((G != 0) & (G != 1))
    if len(bad) or not G.size:
        row, column = bad[0] if len(bad) else (0, 0)
        number, entries = rows[row] if len(bad) else lines[0]
        raise TopologyError(
            f"Line {number}, entry {column + named + 1} is {entries[column]!r}, but a matrix has entries 0 and 1. "
            "Write 0 or 1; for a list of links, add a first line relay,user."
        )
    names = Names(tuple(entries[0] for _, entries in body) if named else (), tuple(head) if header else ())
    G = G.astype(np.uint8)
    return (G.T, Names(names.users, names.relays)) if corner == "user" else (G, names)


def _number(entry: str) -> float:
    try:
        return float(entry)
    except ValueError:
        return np.nan


def link_tables(lines: list[CsvLine], columns: Sequence[str]) -> tuple[list[int], list[NDArray[np.uint8]], Names]:
    """Return the rounds that have links, the table [H, K] of each, and the names of relays and users.

    Relays and users have names, or are numbered from 0, or both from 1 if neither has a 0. Every user needs a relay in
    round 0.

    Args:
        lines: an entry for each column: a whole number, or a name.
        columns: relay, user and maybe round, in any order.
    """
    named = {
        name
        for at, name in enumerate(columns)
        if name != "round" and not any(len(each) > at and re.fullmatch("[0-9]+", each[at]) for _, each in lines)
    }
    for number, entries in lines:
        numbers = [entry for entry, name in zip(entries, columns, strict=False) if name not in named]
        if len(entries) != len(columns) or not all(re.fullmatch(r"[0-9]{1,7}", entry) for entry in numbers):
            raise TopologyError(
                f"Line {number} is {' '.join(entries)!r}, but each line has {len(columns)} whole numbers of at most "
                f"7 digits, {', '.join(columns)}; relays and users may all have names instead. Write one link per line."
            )
    column = {name: [entries[at] for _, entries in lines] for at, name in enumerate(columns)}
    given = {name: {each: n for n, each in enumerate(dict.fromkeys(column[name]))} for name in named}
    at = {
        name: np.array([given[name][each] for each in entries] if name in named else entries).astype(np.int64)
        for name, entries in column.items()
    }
    rounds, relays, users = at.get("round", np.zeros(len(lines), np.int64)), at["relay"], at["user"]
    names = Names(*(tuple(given.get(name, ())) for name in ("relay", "user")))
    if rounds.min() > 0:
        raise TopologyError(
            f"The first contacts are of round {rounds.min()}, but rounds are numbered from 0. Add the contacts of "
            "round 0."
        )
    start = int(min((at[name].min() for name in ("relay", "user") if name not in named), default=0) > 0)
    relays, users = relays - start * ("relay" not in named), users - start * ("user" not in named)
    unheard = np.setdiff1d(np.arange(users.max() + 1), users[rounds == 0])
    if len(unheard):
        when = " in round 0, when all users take part" if rounds.any() else ""
        who = names.of_users(unheard) if names.users else f"{names.of_users(unheard + start)}, counted from {start}"
        raise TopologyError(
            f"No relay hears {who} as in the file{when}. Give every user a link, or number the users without gaps."
        )
    starts, which = np.unique(rounds, return_inverse=True)
    H, K = int(relays.max()) + 1, int(users.max()) + 1
    check_size(K, H, len(starts))
    tables = np.zeros((len(starts), H, K), dtype=np.uint8)
    tables[which, relays, users] = 1
    return starts.tolist(), list(tables), names
