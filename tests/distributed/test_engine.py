"""Runs over processes: the results of one process, and what happens when one of them goes."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import commands
import numpy as np
import pytest

from hmtl import launch as launch_module
from hmtl.distributed import rendezvous
from hmtl.distributed.rendezvous import Rendezvous
from hmtl.errors import EngineError
from hmtl.training.checkpoint import load_checkpoint

SMALL = ("K=10", "H=3", "r=2", "rounds=6", "dataset.rows_per_user=20", "logger=none")
PROCESSES = 6  # a server, three relays, two hosts


def train(folder: Path, *words: str) -> commands.Command:
    return commands.run("hmtl.train", *SMALL, f"hydra.run.dir={folder}", *words)


def launcher(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "hmtl.launch", *SMALL, f"hydra.run.dir={folder}", *words]


def launch(folder: Path, *words: str, processes: object = PROCESSES) -> "subprocess.CompletedProcess[str]":
    line = launcher(folder, f"processes={processes}", *words)
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


def results(folder: Path) -> tuple[bytes, dict[str, object], list[dict[str, float]]]:
    """Models, summary, and measurements of each round, without clocks and what headers add to the bits."""
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("time", "bits_total"):
        summary.pop(name)
    history = [
        {name: value for name, value in row.items() if not name.endswith("_s") and not name.startswith("bits")}
        for row in commands.saved_rows(folder)
    ]
    return np.load(folder / "models.npz")["W"].tobytes(), summary, history


@pytest.mark.parametrize(
    "words",
    [
        ("participation.dropout=0.2", "participation.relays=0.2", "aggregators=all", "algorithm.omega_every=2"),
        ("regularizer=mean", "communicator=sums"),
        ("algorithm=fedu", "regularizer.neighbors=2", "dataset.standardize=all", "evaluate_every=4"),
    ],
    ids=" ".join,
)
def test_the_results_are_those_of_one_process(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = launch(tmp_path / "many", *words)
    assert done.returncode == 0, done.stderr
    assert "6 processes; nothing is encrypted or signed: for trusted networks only" in done.stderr
    assert train(tmp_path / "one", *words).returncode == 0
    assert results(tmp_path / "many") == results(tmp_path / "one")


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    words = ("participation.dropout=0.3", "algorithm.omega_every=2")
    assert launch(tmp_path / "half", "checkpoint_every=1", "algorithm.rounds=6", "rounds=3", *words).returncode == 0
    assert launch(tmp_path / "rest", f"resume={tmp_path / 'half'}", *words).returncode == 0
    assert train(tmp_path / "whole", *words).returncode == 0
    assert results(tmp_path / "rest") == results(tmp_path / "whole")
    other = launch(tmp_path / "other", f"resume={tmp_path / 'half'}", *words, processes=5)
    assert other.returncode == 2
    assert "a run of 6 processes, here are 5: start as many" in other.stderr


@pytest.mark.parametrize(
    ("processes", "words", "says"),
    [
        (4, (), "there are 5 to 14"),
        ("x", (), "whole"),
        (5, ("engine=in_process",), "start it by python -m hmtl.train"),
        (5, ("engine=multicast", "engine.multicast.port=99999"), "error: engine.multicast.port=99999 is no port"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path, processes: object, words: tuple[str, ...], says: str
) -> None:
    done = launch(tmp_path, *words, processes=processes)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_launcher_it_says_which(tmp_path: Path) -> None:
    done = train(tmp_path, "engine=torch_distributed")
    assert done.returncode == 2
    assert "start all processes by python -m hmtl.launch" in done.stderr


def test_processes_meet_at_the_address_that_was_given_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    met = Rendezvous(60)
    met.store.set("here", "yes")
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


@pytest.mark.parametrize("missing", ["before", "after"])
def test_a_process_that_never_comes_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str) -> None:
    """Before all were ready, and after, when connections are made."""
    said = tmp_path / "said"
    status = commands.status_of(commands.forked(lambda: sys.exit(_wait_for_another(missing)), said))
    assert status == 0, said.read_text()
    assert ("process 0 still waits for process 1 of 2" in said.read_text()) == (missing == "before")


def _wait_for_another(missing: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logging.getLogger("hmtl").addHandler(logging.StreamHandler())
    rendezvous.SOON, rendezvous.START = 0.2, timedelta(seconds=0.5)
    met = Rendezvous(60)
    met._wait = timedelta(seconds=1)
    with pytest.raises(EngineError, match=r"before all were (ready|connected)"), ExitStack() as stack:
        met.connect() if missing == "after" else stack.enter_context(met.together())


@pytest.mark.parametrize(("others", "status"), [(0, 0), (2, 128 + signal.SIGKILL)])
def test_results_are_waited_for_unless_the_others_gave_up(
    monkeypatch: pytest.MonkeyPatch, others: int, status: int
) -> None:
    """The first process is still busy when the others have long ended: well, or since they lost it."""
    monkeypatch.setattr(launch_module, "GRACE", 0.1)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    work = [commands.FORKS.Process(target=time.sleep, args=(2,))]
    work += [commands.FORKS.Process(target=sys.exit, args=(others,)) for _ in range(2)]
    for process in work:
        process.start()
    try:
        assert launch_module._status(work, commands.FORKS.SimpleQueue()) == status
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def members(launcher: int) -> list[int]:
    """Processes that were forked for this launcher, in order of their ranks."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, parent = stat.parent.name, stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        parents.setdefault(int(parent), []).append(int(pid))
    return sorted(grandchild for child in parents.get(launcher, []) for grandchild in parents.get(child, []))


def runs(process: int) -> bool:
    """Whether there is such a process, other than one that has ended and that nobody has asked for its status."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("who", "sign", "status", "says"),
    [
        ("server", signal.SIGKILL, 128 + signal.SIGKILL, "the server is lost (it does not live any more): go on from"),
        ("launcher", signal.SIGKILL, -signal.SIGKILL, ""),
        pytest.param(
            *("server", signal.SIGSTOP, 128 + signal.SIGKILL, "ended, and it does not answer: stopped it"),
            marks=pytest.mark.long,
        ),
        ("relay 0", signal.SIGKILL, 2, "all aggregators are lost (relay 0), and with them what later rounds build on"),
        ("relay 1", signal.SIGKILL, 0, "relay 1 is lost: it does not live any more"),
        pytest.param("host 1", signal.SIGSTOP, 0, "host 1: no IVs came in time", marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_process_goes(tmp_path: Path, who: str, sign: signal.Signals, status: int, says: str) -> None:
    """Without a host its users are absent, without a helper those whom nobody else hears.

    Without the launcher, the server, or the only aggregator, the run ends, with a checkpoint to go on from; and nobody
    stays behind.
    """
    seconds = 3 if sign == signal.SIGSTOP else 30  # who died is missed at once
    words = ("rounds=60", "checkpoint_every=1", f"engine.seconds={seconds}", "aggregators=[0]")
    words = (f"processes={PROCESSES}", *words)
    with subprocess.Popen(launcher(tmp_path, *words), stderr=subprocess.PIPE, text=True) as launched:
        deadline = time.monotonic() + 300
        while not (tmp_path / "checkpoint.pt").exists() or not load_checkpoint(tmp_path)["history"]["rounds"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        everybody = members(launched.pid)
        assert len(everybody) == PROCESSES
        names = ["launcher", "server", "relay 0", "relay 1", "relay 2", "host 0", "host 1"]
        os.kill([launched.pid, *everybody][names.index(who)], sign)
        _, errors = launched.communicate(timeout=300)
    deadline = time.monotonic() + 5
    assert launched.returncode == status
    assert says in " ".join(errors.split())
    while alive := [pid for pid in everybody if runs(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)
    counted = [row["users"] for row in commands.saved_rows(tmp_path)]
    assert counted[0] == 10
    if status:
        assert len(counted) < 60
    else:
        assert len(counted) == 60
        assert counted[-1] == (5 if who == "host 1" else 10), "each user of relay 1 is heard by another, too"
