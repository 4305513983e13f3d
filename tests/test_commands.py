"""`hmtl COMMAND` is `python -m hmtl.COMMAND`."""

from pathlib import Path

import commands

import hmtl
from hmtl.__main__ import COMMANDS


def test_the_same_command_by_another_name(tmp_path: Path) -> None:
    words = ("topology=any_r", "K=8", "H=3", "r=2", "format=json", f"hydra.run.dir={tmp_path}")
    short, long = commands.here("hmtl", "plan", *words), commands.here("hmtl.plan", *words)
    assert (short.returncode, long.returncode) == (0, 0)
    assert short.stdout == long.stdout


def test_help_names_all_commands_and_a_mistake_does_too(tmp_path: Path) -> None:
    for words in ((), ("--help",)):
        done = commands.here("hmtl", *words)
        assert done.returncode == 0
        assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == list(COMMANDS)
    assert commands.here("hmtl", "--version").stdout == f"{hmtl.__version__}\n"
    assert {*hmtl.__all__} <= {*dir(hmtl)}
    done = commands.here("hmtl", "trian")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "unknown command 'trian'. Choose one of train, plan" in done.stderr
    done = commands.here("hmtl", "train", "K=0", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert "error: K=0" in done.stderr
