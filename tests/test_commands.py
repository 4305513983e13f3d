"""`hmtl COMMAND` is `python -m hmtl.COMMAND`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import commands
import pytest

import hmtl
from hmtl.__main__ import COMMANDS
from hmtl.config.command_line import exit_status
from hmtl.errors import ConfigError


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
    assert "Did you mean train?" in done.stderr
    done = commands.here("hmtl", "train", "K=0", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert "error: K=0" in done.stderr


STOP = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["STOP_AT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""
"""A `sitecustomize` by which Ctrl-C comes while a module is imported."""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("hmtl train rounds=1", "numpy.exceptions"),
        ("hmtl.certificates deployment=none.yaml", "cryptography"),
        pytest.param("hmtl.train rounds=1", "omegaconf", marks=pytest.mark.slow),
        pytest.param("hmtl.train rounds=1", "numpy", marks=pytest.mark.slow),
        pytest.param("hmtl.launch processes=4 H=2 r=1 K=4", "hydra", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_while_modules_are_imported_is_quiet(tmp_path: Path, command: str, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(STOP)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "STOP_AT": module}
    words = [sys.executable, "-m", *command.split()]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "")


def test_ctrl_c_is_ignored_where_a_shell_has_it_ignored(tmp_path: Path) -> None:
    """As those of background jobs."""
    (tmp_path / "sitecustomize.py").write_text(STOP)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ignore = (
        "import signal, os, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    words = [sys.executable, "-S", "-c", ignore, sys.executable, "-m", "hmtl.new", "project"]
    environment = os.environ | {"PYTHONPATH": path, "STOP_AT": "shutil"}
    assert subprocess.run(words, cwd=tmp_path, env=environment, timeout=60).returncode == 0
    assert (tmp_path / "project" / "data.py").exists()


@pytest.mark.parametrize("words", ["theirs", "theirs.part hmtl.train"])
def test_other_programs_handle_ctrl_c_as_usual(tmp_path: Path, words: str) -> None:
    """Their packages import hmtl while Python still looks for the module to run."""
    (tmp_path / "theirs").mkdir()
    is_usual = "signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)"
    (tmp_path / "theirs" / "__init__.py").write_text(f"import signal, hmtl\nprint({is_usual})\n")
    for name in ("__main__", "part"):
        (tmp_path / "theirs" / f"{name}.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", *words.split()], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True\n", done.stderr


def test_an_error_that_ctrl_c_left_behind_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """As where a package sets something back on its way out, and cannot."""

    def action() -> None:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                [].pop()
        except IndexError as error:
            raise ConfigError("wrong") from error

    assert exit_status(action, "config") == 128 + signal.SIGINT
    assert capsys.readouterr().err == ""
