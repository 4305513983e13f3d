"""Ctrl-C and kill at any moment: the status that belongs to it, not a word, and nothing lost."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hmtl.training.checkpoint import load_checkpoint

SMALL = ("K=10", "dataset.rows_per_user=20", "rounds=30", "checkpoint_every=1")
EXITING = 4  # PF_EXITING of Linux
TICKS = os.sysconf("SC_CLK_TCK")
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


def command(*words: str, module: str = "hmtl.train") -> list[str]:
    return [sys.executable, "-m", module, *words]


def started(*words: str, module: str = "hmtl.train") -> "subprocess.Popen[str]":
    pipe, env = subprocess.PIPE, {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(*words, module=module), stdout=pipe, stderr=pipe, text=True, env=env)


def fields(run: "subprocess.Popen[str]") -> list[int]:
    """What the system tells of it, from its parent on."""
    return [int(word) for word in Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[1:]]


def spent(run: "subprocess.Popen[str]") -> float:
    """CPU time so far [s], which unlike the time on the wall does not hang on what else the machine does."""
    return sum(fields(run)[10:12]) / TICKS


def runs(run: "subprocess.Popen[str]") -> bool:
    """Whether it has not ended: the system may still be clearing away what is left of it."""
    return run.poll() is None and not fields(run)[5] & EXITING


def sees_to_it(run: "subprocess.Popen[str]") -> bool:
    """Whether the first line of the program is done; before, Python itself catches SIGINT, and not SIGTERM."""
    caught = Path(f"/proc/{run.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def wait_until(run: "subprocess.Popen[str]", seconds: float) -> bool:
    """Let it spend so much CPU time; whether it still runs then."""
    while runs(run) and (spent(run) < seconds or not sees_to_it(run)):
        time.sleep(0.002)
    return runs(run)


def moments(total: float, seed: int) -> Iterator[float]:
    draw = random.Random(seed)
    while True:
        yield draw.uniform(0, total)


def interrupted(run: "subprocess.Popen[str]", asked: signal.Signals = signal.SIGINT) -> str:
    """What it printed; nothing else than the status, and no word on stderr, is right."""
    run.send_signal(asked)
    out, told = run.communicate(timeout=300)
    assert (run.returncode, told) == (128 + asked, ""), out
    return out


def whole(folder: Path) -> None:
    """Nothing is half there: what is in the folder can be read, and gone on from."""
    assert not list(folder.glob("*.tmp"))
    if (folder / "checkpoint.pt").exists():
        load_checkpoint(folder)


SWALLOWED = {
    "while a module is imported": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "by an except": "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass",
    "in __del__": "import os, signal\nclass A:\n    def __del__(self): os.kill(os.getpid(), signal.SIGINT)\nA()",
    "at the end": "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGINT); "
    "from hmtl.mtl import Ridge as Own",
    "SIGTERM": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
}


@pytest.mark.long
@pytest.mark.parametrize("how", SWALLOWED)
def test_what_others_would_swallow(tmp_path: Path, how: str) -> None:
    """It comes as Hydra, or we, look for the part that a configuration names, and catch all exceptions."""
    (tmp_path / "own_part.py").write_text(SWALLOWED[how])
    words = (*SMALL, "rounds=1", "logger=none", "regularizer=ridge", f"hydra.run.dir={tmp_path}/run")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    own = ("algorithm=fedu", "regularizer._target_=own_part.Own")
    done = subprocess.run(command(*words, *own), capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (143 if how == "SIGTERM" else 130, "")


@linux
@pytest.mark.parametrize("module", ["hmtl.train"])
def test_from_the_first_line_on(tmp_path: Path, module: str) -> None:
    run = started(f"hydra.run.dir={tmp_path}", *["processes=7"] * (module == "hmtl.launch"), module=module)
    assert wait_until(run, 0)
    assert interrupted(run) == ""


@linux
@pytest.mark.long
def test_a_second_one_ends_a_long_round_at_once(tmp_path: Path) -> None:
    run = started("rounds=9", "solver.passes=1000000", "K=5", "H=2", "r=1", f"hydra.run.dir={tmp_path}", "logger=none")
    while not (tmp_path / "topology.png").exists():
        assert run.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)
    interrupted(run)
    whole(tmp_path)


@linux
@pytest.mark.long
def test_a_hundred_at_random_moments(tmp_path: Path) -> None:
    for _ in range(2):  # of which the first one may compile
        run, total = started(*SMALL, f"hydra.run.dir={tmp_path / 'whole'}"), 0.0
        while run.poll() is None:
            total = max(total, spent(run))
            time.sleep(0.002)
    done = stopped = 0
    for number, moment in enumerate(moments(total, seed=0)):
        folder = tmp_path / str(number)
        run = started(*SMALL, f"hydra.run.dir={folder}")
        if not wait_until(run, moment):
            run.communicate()
            continue
        stopped += "stopped after" in interrupted(run)
        whole(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if (done := done + 1) == 100:
            break
    print(f"{done} times within {total:.1f} s of CPU time; {stopped} within the rounds")


@linux
@pytest.mark.long
def test_thirty_kills_at_random_moments(tmp_path: Path) -> None:
    """A run that is killed 30 times, and goes on in the same folder, ends as if nothing had been."""
    words = (*SMALL, "rounds=600", "algorithm.rounds=600", "participation.dropout=0.2", "participation.relays=0.2")
    folders = [tmp_path / name for name in ("whole", "killed")]
    assert started(*words, f"hydra.run.dir={folders[0]}").wait() == 0
    kills, rounds, going_on = 0, [0], ()
    for moment in moments(1.0, seed=1):
        run = started(*words, f"hydra.run.dir={folders[1]}", *going_on)
        before = rounds[-1]
        while run.poll() is None and before == rounds[-1]:  # so that it gets somewhere
            if (folders[1] / "checkpoint.pt").exists():
                rounds[-1] = len(load_checkpoint(folders[1])["history"])
            time.sleep(0.01)
        if not wait_until(run, spent(run) + moment) or kills == 30:
            break
        run.kill()
        run.wait()
        kills += 1
        going_on = (f"resume={folders[1]}",)
        rounds.append(len(load_checkpoint(folders[1])["history"]))
    assert run.wait() == 0
    assert kills == 30
    ours, theirs = (load_checkpoint(folder) for folder in folders)
    for side, tensors in theirs["algorithm"].items():
        assert all(torch.equal(tensor, ours["algorithm"][side][name]) for name, tensor in tensors.items())
    clocks = ("local_s", "compute_s", "uncoded_s")
    for one, other in zip(ours["history"], theirs["history"], strict=True):
        assert {k: v for k, v in one.items() if k not in clocks} == {k: v for k, v in other.items() if k not in clocks}
