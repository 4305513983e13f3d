"""Notebooks run from the first cell to the last, and are committed with their outputs."""

import ast
import json
import os
from pathlib import Path
from typing import Any

import commands
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def play(path: Path, folder: Path) -> None:
    """Run each cell, and draw the value of its last line as a notebook does."""
    os.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(path, "code"):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(path), "exec"), names)
        if last is not None:
            shown = eval(compile(ast.Expression(last.value), str(path), "eval"), names)
            if hasattr(shown, "_repr_png_"):
                assert shown._repr_png_()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path) -> None:
    child = commands.FORKS.Process(target=play, args=(path, tmp_path))
    child.start()
    child.join(120)
    assert child.exitcode == 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_as_it_was_run(path: Path) -> None:
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == [n + 1 for n in range(len(code))]
    for cell in code:
        outputs = cell["outputs"]
        assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
        if any("image/png" in output.get("data", ()) for output in outputs):
            assert len(cell["metadata"]["mystnb"]["image"]["alt"]) > 20
    assert "Exercises" in "".join(cells(path, "markdown")[-1]["source"])
