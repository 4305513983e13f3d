"""A reader who follows a page from top to bottom, in a folder with the files that the page takes for granted."""

import ast
import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import idx_files
import numpy as np
import uci_har
from commands import Command
from pages import ROOT, Piece, is_run, substituted

MEASURED = ("gap", "error", "time", "rounds;", "folder")  # lines with these words differ from run to run
LONGEST = 300  # seconds that a command may take
USERS = ("north", "east", "south", "west", "heath", "shore")
DATED = re.compile(r"(outputs|multirun)/\d{4}-\d\d-\d\d(/\d\d-\d\d-\d\d-\d+)?")
MODULES = {"hmtl": "hmtl", "tensorboard": "tensorboard.main"}


def follow(piece: Piece, folder: Path, names: dict[str, object]) -> None:
    """Run a piece, and compare the output shown with what is printed; the current folder is `folder`.

    `names` are those that the Python blocks above it have defined.
    """
    if piece.is_python or is_run(piece.text):
        output = python(piece.text, folder, names) if piece.is_python else shell(substituted(piece.text), folder)
        printed = set(map(narrow, output.splitlines()))
        shown = [line for line in piece.output.splitlines() if line != "..."]
        # with fewer rounds the learned models differ, but not the traffic of a round
        missing = {narrow(line) for line in shown if not any(word in line for word in MEASURED)} - printed
        assert not missing, piece.text


def narrow(line: str) -> str:
    """Return a line of a table without what depends on the widths of its numbers."""
    return re.sub(r"([ ━─])\1*", r"\1", line.rstrip())


def shell(line: str, folder: Path) -> str:
    """Run a command, and return its output. A dated folder in it stands for that of the last run."""

    def last(dated: re.Match[str]) -> str:
        newest = max(folder.glob(f"{dated[1]}/*/*"), key=lambda run: run.stat().st_mtime)
        return str((newest if dated[2] else newest.parent).relative_to(folder))

    line = DATED.sub(last, line)
    program, *words = shlex.split(line.removeprefix("PYTHONPATH=. "))  # which `python -m` includes
    if program == "python":
        program, *words = words[1:] if words[0] == "-m" else words
    elif program in MODULES:
        program = MODULES[program]
    else:
        return subprocess.run(["bash", "-c", line], cwd=folder, check=True, capture_output=True, text=True).stdout
    with Command(program, *words, cwd=folder) as command:
        command.done(LONGEST)
    assert command.returncode == 0, f"{line}\n{command.stdout}\n{command.stderr}"
    return command.stdout


def python(block: str, folder: Path, names: dict[str, object]) -> str:
    """Run a block, compare values with the comments that show them, and return what it prints. A block that starts with
    a file's name is written to that file.
    """
    if name := re.match(r"# (\S+\.py)\n", block):
        (folder / name[1]).write_text(block)
        return ""
    draw = np.random.default_rng(1)
    X = [draw.normal(size=(30, 3)) for _ in USERS]
    names |= {"x": X[0], "X": X, "y": [np.sign(x[:, 0]) for x in X]}
    with redirect_stdout(io.StringIO()) as printed:
        for line in ast.parse(block).body:
            if not isinstance(line, ast.Expr):
                exec(compile(ast.Module([line], []), "block", "exec"), names)
                continue
            value = eval(compile(ast.Expression(line.value), "block", "eval"), names)
            comment = block.splitlines()[line.lineno - 1].partition("  # ")[2]
            if comment.startswith(f"{type(value).__name__}("):
                assert comment.startswith(repr(value)), comment
    return printed.getvalue()


def lay(folder: Path, page: Sequence[Piece]) -> None:
    """Write what the commands of a page read: experiments, a reader's own tables and files, published data."""
    text = "\n".join(piece.text for piece in page)
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
    if "experiments/" in text:
        shutil.copytree(ROOT / "experiments", folder / "experiments")  # scripts overwrite their results
    if re.search("dataset=har|--har", text):
        n, subjects, activities = np.arange(720), 30, 6
        har = folder / "data" / "UCI HAR Dataset"
        uci_har.write(har, draw.normal(size=(720, 561)), n // subjects % activities, n % subjects + 1, n < 540)
    if re.search("dataset=mnist|dataset.name=MNIST", text):
        idx_files.write(folder / "data" / "MNIST" / "raw", idx_files.small(2000, 400))
    if "hmtl.report outputs" in text:
        shell("python -m hmtl.train rounds=2 ~logger.tensorboard", folder)
