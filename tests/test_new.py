"""A new project: its commands run as written, and no folder is overwritten."""

import re
import shlex
from pathlib import Path

import commands
import pytest


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    project = tmp_path / "mine" / "project"
    assert commands.here("hmtl.new", project).returncode == 0
    assert {path.name for path in project.iterdir()} == {"README.md", "conf", "data.py", "model.py", "test_project.py"}
    for words in ((project,), (project / "data.py",), (), ("a", "b")):
        done = commands.here("hmtl.new", *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_a_new_project_runs_as_written(tmp_path: Path) -> None:
    assert commands.here("hmtl", "new", tmp_path).returncode == 0
    (block,) = re.findall(r"```\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    lines = [shlex.split(line) for line in block.splitlines()]
    assert len(lines) == 3
    for python, m, module, *words in lines:
        done = commands.run(module, *words, cwd=tmp_path)
        assert (python, m, done.returncode) == ("python", "-m", 0), done.stdout + done.stderr
    assert (tmp_path / "outputs" / "first" / "report.md").exists()
