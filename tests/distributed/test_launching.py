"""Processes that are started together, and what happens when one of them is killed or suspended."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import commands
import pytest

from hmtl.distributed import launching
from hmtl.distributed.dialing import Party
from hmtl.distributed.launching import LocalNodes
from hmtl.errors import EngineError
from hmtl.training.checkpoint import load_checkpoint

SMALL = ("K=10", "H=3", "r=2", "rounds=20", "dataset.rows_per_user=20", "logger=none", "checkpoint_every=1")
NODES = ("server", "relay 0", "relay 1", "relay 2", "host 0", "host 1")
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ([], "processes"),
        (["processes=x"], "processes"),
        (["processes=0"], "processes"),
        (["processes=5", "processes=6"], "processes"),
        (["processes=5", "engine=in_process"], "engine"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_refused_in_one_line(arguments: list[str], setting: str) -> None:
    done = commands.here("hmtl.launch", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {setting}")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_error_is_reported_once_and_no_process_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (("processes=4",), "processes"), (("processes=6", "algorithm.sigma=2"), "algorithm"):
        assert commands.launched([*SMALL, *words, f"hydra.run.dir={tmp_path}"]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def fails(party: Party, how: str, said: Path) -> None:
    """Play a node, of which one fails at the start; its errors go to a file."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    if party.name == "host 0":
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"port": EngineError, "module": ModuleNotFoundError, "file": FileNotFoundError}[how](f"no {how}")
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["port", "module", "file", "kill"])
def test_a_node_that_dies_at_the_start_is_noticed(how: str, tmp_path: Path) -> None:
    nodes = LocalNodes(3)
    begin = time.monotonic()
    try:
        nodes.start(["server", "relay 0", "host 0"], partial(fails, how=how, said=tmp_path / "said"))
        with pytest.raises(EngineError if how == "kill" else SystemExit) as ended:  # noqa: PT012
            while time.monotonic() < begin + 60:
                nodes.check()
                time.sleep(0.1)
    finally:
        for process in nodes.processes:
            process.kill()
    said = (tmp_path / "said").read_text()
    if isinstance(ended.value, SystemExit):
        assert (ended.value.code, said) == (2, f"error: host 0: no {how}\n")
    else:
        assert "host 0" in str(ended.value)
        assert not said


@pytest.mark.slow
def test_a_launch_ends_if_a_node_cannot_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = iter([launching.free_port(), *[0] * 9])
    with socket.create_server(("127.0.0.1", 0)) as used:
        monkeypatch.setattr(launching, "free_port", lambda: next(ports) or used.getsockname()[1])
        begin = time.monotonic()
        assert commands.launched([*SMALL, "processes=5", f"hydra.run.dir={tmp_path}"]) == 2
    assert time.monotonic() - begin < 60


def started_by(launcher: int) -> list[int]:
    """The processes of a run, the server first: the launcher itself, and children of its fork server."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    nodes = sorted(grandchild for child in children.get(launcher, []) for grandchild in children.get(child, []))
    return [launcher, *nodes]


def runs(process: int) -> bool:
    """Whether a process exists and is not a zombie."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "status", "messages"),
    [
        ({"server": signal.SIGKILL}, -signal.SIGKILL, []),
        ({"server": signal.SIGTERM}, 128 + signal.SIGTERM, []),
        ({"relay 1": signal.SIGKILL}, 0, ["relay 1 is lost"]),
        ({"host 1": signal.SIGSTOP}, 2, ["host 1: no answer in time", "host 1 did not come back"]),
    ],
    ids=str,
)
def test_a_run_ends_without_a_relay_but_not_without_a_host_or_the_server(
    tmp_path: Path, signals: dict[str, signal.Signals], status: int, messages: list[str]
) -> None:
    """Whatever happens, there is a checkpoint to resume from, and no process stays behind."""
    seconds = 3 if signal.SIGSTOP in signals.values() else 30  # a killed process is missed at once
    times = (f"engine.seconds={seconds}", "engine.patience=20")
    arguments = (*SMALL, "processes=6", *times, "aggregators=[0]", f"hydra.run.dir={tmp_path}")
    command = [sys.executable, "-m", "hmtl.launch", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launched:
        deadline = time.monotonic() + 300
        while not (tmp_path / "checkpoint.pt").exists() or not load_checkpoint(tmp_path)["history"]["rounds"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        processes = started_by(launched.pid)
        assert len(processes) == len(NODES)
        for who, sign in signals.items():
            os.kill(processes[NODES.index(who)], sign)
        _, errors = launched.communicate(timeout=300)
    assert launched.returncode == status
    assert all(message in " ".join(errors.split()) for message in messages)
    deadline = time.monotonic() + 60  # the machine may be busy
    while alive := [process for process in processes if runs(process)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)
    users = [row["users"] for row in commands.saved_rows(tmp_path)]
    assert max(users) == 10
    if status:
        assert len(users) < 20
    else:
        assert len(users) == 20
        assert users[-1] == 10, "each user that relay 1 heard is heard by another relay, too"


@linux
@pytest.mark.slow
def test_ctrl_c_while_processes_start_ends_them_without_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hmtl.launch", *SMALL, "processes=6", f"hydra.run.dir={tmp_path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as launched:
        while len(started_by(launched.pid)) == 1:  # itself
            time.sleep(0.01)
        os.killpg(launched.pid, signal.SIGINT)
        _, errors = launched.communicate(timeout=300)
    assert (launched.returncode, errors) == (128 + signal.SIGINT, "")
