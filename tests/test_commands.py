"""`hmtl COMMAND` is `python -m hmtl.COMMAND`, and completes its words."""

import subprocess
import sys
from pathlib import Path

import commands
import pytest

import hmtl
from hmtl.__main__ import COMMANDS


def test_the_same_command_by_another_name(tmp_path: Path) -> None:
    words = ("topology=any_r", "K=8", "H=3", "r=2", "format=json", f"hydra.run.dir={tmp_path}")
    short, long = commands.run("hmtl", "plan", *words), commands.run("hmtl.plan", *words)
    assert (short.returncode, long.returncode) == (0, 0)
    assert short.stdout == long.stdout


def test_help_names_all_commands_and_a_mistake_does_too() -> None:
    for words in ((), ("--help",)):
        done = commands.run("hmtl", *words)
        assert done.returncode == 0
        assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == list(COMMANDS)
    assert commands.run("hmtl", "--version").stdout == f"{hmtl.__version__}\n"
    assert {*hmtl.__all__} <= {*dir(hmtl)}
    done = commands.run("hmtl", "trian")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no command 'trian': choose one of train, plan" in done.stderr
    done = commands.run("hmtl", "train", "K=0")
    assert done.returncode == 2
    assert "error: K=0" in done.stderr


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("hmtl t", ["train", "tune"]),
        ("hmtl train loss=h", ["loss=hinge"]),
        ("hmtl launch processes=8 topology=any_r solver.pa", ["solver.passes="]),
    ],
)
def test_completion(tmp_path: Path, line: str, completed: list[str]) -> None:
    script = tmp_path / "hmtl"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m hmtl "$@"\n')
    script.chmod(0o755)
    told = f"""
        PATH={tmp_path}:$PATH
        eval "$(hmtl --completion)"
        COMP_LINE="{line}" COMP_WORDS=({line}) COMP_CWORD={len(line.split()) - 1}
        _hmtl
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", told], capture_output=True, text=True)
    assert done.stdout.split() == completed, done.stderr
