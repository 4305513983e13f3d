"""A reader who does what a page says, from top to bottom, in a folder with what the page takes for granted."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import commands
import numpy as np
import uci_har
from pages import NOT_RUN, ROOT, Piece

from hmtl.data.sources.mnist import FILES

LONGEST = 300  # seconds that a piece may take
USERS = ("north", "east", "south", "west", "heath", "shore")
DATED = re.compile(r"(outputs|multirun)/\d{4}-\d\d-\d\d(/\d\d-\d\d-\d\d-\d+)?")


def follow(pieces: Iterable[Piece], folder: Path) -> None:
    """Each piece does what it says, but for those in `NOT_RUN`; commands as `short.sh` shortens them."""
    for piece in pieces:
        if piece.is_python:
            python(piece.text, folder)
        elif not any(words in piece.text for words in NOT_RUN):
            shell(piece.text, folder)


def shell(line: str, folder: Path) -> None:
    """A folder with a date in its name stands for the last run's; to be resumed, for one begun by the same line."""
    if re.search(rf" resume={DATED.pattern}", line):
        shell(re.sub(r" resume=\S+", "", line), folder)

    def last(dated: re.Match[str]) -> str:
        newest = max(folder.glob(f"{dated[1]}/*/*"), key=lambda run: run.stat().st_mtime)
        return str((newest if dated[2] else newest.parent).relative_to(folder))

    line = re.sub(r"(?<!\$)\b(FOLDER|PATH)\b|(?<==)\.\.\.", "data", DATED.sub(last, line)).replace("NAME", "compare")
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "BASH_ENV": str(ROOT / "tests" / "short.sh"),
            "ROOT": str(ROOT),
        },
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def python(block: str, folder: Path) -> None:
    """A block that begins with the name of a file is this file; any other one is run."""
    if name := re.match(r"# (\S+\.py)\n", block):
        (folder / name[1]).write_text(block)
        return
    child = commands.FORKS.Process(target=_play, args=(block, folder))
    child.start()
    child.join(LONGEST)
    assert child.exitcode == 0, block


def _play(block: str, folder: Path) -> None:
    """Each line, and what it gives where a comment beside tells it."""
    os.chdir(folder)
    draw = np.random.default_rng(1)
    X = [draw.normal(size=(30, 3)) for _ in USERS]
    names = {"x": X[0], "X": X, "y": [np.sign(x[:, 0]) for x in X]}
    for line in ast.parse(block).body:
        if not isinstance(line, ast.Expr):
            exec(compile(ast.Module([line], []), "block", "exec"), names)
            continue
        value = eval(compile(ast.Expression(line.value), "block", "eval"), names)
        told = block.splitlines()[line.lineno - 1].partition("  # ")[2]
        if told.startswith(f"{type(value).__name__}("):
            assert told.startswith(repr(value)), told


def lay(folder: Path, told: Sequence[Piece]) -> None:
    """What these pieces take for granted: experiments, tables and files of a reader's own, published data."""
    shutil.copytree(ROOT / "experiments", folder / "experiments")  # whose results may be written anew
    draw = np.random.default_rng(0)

    def table(path: str, head: str, rows: Iterable[Iterable[object]]) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        lines = [head, *(",".join(map(str, row)) for row in rows)]
        (folder / path).write_text("".join(f"{line}\n" for line in lines if line))

    def trees(n: int) -> list[tuple[str, float, float, float]]:
        rows = draw.normal(size=(n, 3)).round(3)
        return [("oak" if row.sum() > 0 else "elm", *row.tolist()) for row in rows]

    table("own.csv", "who,kind,height,girth,leaves", [(who, *row) for who in USERS for row in trees(40)])
    table("new.csv", "who,height,girth,leaves", [(who, *row[1:]) for who in USERS for row in trees(5)])
    table("north.csv", "height,girth,leaves", [row[1:] for row in trees(5)])
    for who in USERS:
        table(f"data/{who}.csv", "y,height,girth,leaves", trees(40))
    table("G.csv", "", np.array([[(k + i) % 5 < 3 for k in range(20)] for i in range(5)], int))
    table("contacts.csv", "round,relay,user", [(n, (k + n) % 5, k) for n in (0, 1) for k in range(20)])
    if not any("ring.yaml" in piece.text for piece in told):
        table("myconf/regularizer/ring.yaml", "_target_: mine.Ring", [["lam: ${lam}"]])

    y = np.arange(1200) % 6
    har = folder / "data" / "UCI HAR Dataset"
    uci_har.write(har, draw.normal(size=(1200, 561)), y, np.arange(1200) % 30 + 1, np.arange(1200) < 900)
    for name, shape in zip(FILES, [(2000, 28, 28), (2000,), (400, 28, 28), (400,)], strict=True):
        numbers = draw.integers(0, 256, shape) if len(shape) == 3 else np.arange(shape[0]) % 10
        head = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        (folder / "data" / name).write_bytes(head + numbers.astype(np.uint8).tobytes())
    if any("hmtl.report outputs" in piece.text for piece in told):
        shell("python -m hmtl.train", folder)
