"""The command line: exit status, and errors in one line, whatever they come from."""

import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig
from omegaconf.errors import InterpolationKeyError

from hmtl.config.command_line import main
from hmtl.errors import DataError, Interrupted

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`run(task, "K=4", ...)`: exit status of the command, and what it wrote to stderr."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it; so it is put back afterwards

    def run(task: Callable[[DictConfig], None], *arguments: str, config: str = "config") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["hmtl", f"hydra.run.dir={tmp_path}", *arguments])
        with pytest.raises(SystemExit) as left:
            main(task, config)
        return left.value.code, capsys.readouterr().err

    return run


def test_done(run: Run) -> None:
    seen: list[DictConfig] = []
    assert run(seen.append, "K=7", "topology=any_r") == (0, "")
    assert (seen[0].K, seen[0].topology.K, seen[0].H) == (7, 7, 5)
    assert run(seen.append, "format=json", config="plan") == (0, "")
    assert seen[1].format == "json"


def raises(error: BaseException) -> Callable[[DictConfig], None]:
    def task(cfg: DictConfig) -> None:
        raise error

    return task


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DataError("no data.\nFetch some."), 2, "error: no data. Fetch some.\n"),
        (InterpolationKeyError("no key 'lamda'"), 2, "error: no key 'lamda'\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: /x: Permission denied. If results go there, "),
        (Interrupted(signal.SIGTERM), 128 + signal.SIGTERM, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_task_raises(run: Run, error: BaseException, status: int, message: str) -> None:
    code, told = run(raises(error))
    assert code == status
    assert told.startswith(message)
    assert told.count("\n") == bool(message)


def test_a_defect_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["hmtl", f"hydra.run.dir={tmp_path}"])
    for defect in (ValueError("shape"), ZeroDivisionError("oh")):
        with pytest.raises(type(defect), match=str(defect)):
            main(raises(defect), "config")


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    code = "from hmtl.config.command_line import main; main(lambda cfg: print('x' * 10**6), 'config')"
    pipe, command = subprocess.PIPE, [sys.executable, "-c", code, f"hydra.run.dir={tmp_path}"]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as writer:
        assert writer.stdout is not None
        writer.stdout.close()
        _, told = writer.communicate()
    assert (writer.returncode, told) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss=null", "a group cannot be null"),
        ("rouns=3", "there is no setting 'rouns': did you mean 'rounds'?"),
        ("+lamda=1", "there is no setting 'lamda': did you mean 'lam'?"),
        ("topology.q=1", "there is no setting 'topology.q': see --help"),
        (
            "topology=ring",
            "topology=ring is unknown: choose one of any_r, file, geometric, heterogeneous, moving, symmetric.",
        ),
        ("topology=[any_r,ring]", "Could not load 'topology/ring'"),
        ("K=abc", "Error merging override K=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        ("K==3", "Error parsing override 'K==3'"),
        ("lam=null", "field 'lam' is not Optional"),
    ],
)
def test_what_hydra_refuses(run: Run, override: str, message: str) -> None:
    code, told = run(raises(AssertionError("the task was run")), override)
    assert code == 2
    assert told.startswith("error: ")
    assert message in told
    assert "search path" not in told
    assert told.count("\n") == 1


def test_a_setting_of_another_command(run: Run) -> None:
    code, told = run(raises(AssertionError("the task was run")), "V_bit=3", config="plan")
    assert (code, told) == (2, "error: there is no setting 'V_bit': did you mean 'V_bits'?\n")


def test_what_libraries_say_of_themselves_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logging.getLogger("matplotlib").setLevel(logging.NOTSET)

    def task(cfg: DictConfig) -> None:
        log = logging.getLogger("matplotlib.font_manager")
        log.info("generated new fontManager")
        log.warning("there are none")

    monkeypatch.setattr(sys, "argv", ["hmtl", f"hydra.run.dir={tmp_path}"])
    with pytest.raises(SystemExit):
        main(task, "config")
    shown = "".join(capsys.readouterr())
    assert "fontManager" not in shown
    assert "there are none" in shown
