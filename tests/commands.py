"""Commands as `python -m` runs them: in this process, or forked from one that has already imported what they need."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from warnings import catch_warnings, simplefilter

from hydra.core.hydra_config import HydraConfig

from hmtl.distributed.launching import PRELOAD
from hmtl.launch import launch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *PRELOAD,
        *("pytest", "hmtl.tuning.cross_validation", "torch.utils.tensorboard"),
        *("commands", "hmtl.plan", "hmtl.tune", "pandas", "sklearn.neighbors"),
        "warm",
    ]
)


class Command:
    """`python -m module *words` as a process; used as a context, it is killed at the end if it still runs.

    It has the parts of `subprocess.Popen` that tests need, without the seconds that an interpreter and its imports
    take to start. It has one thread, as the tests. A module that ends with `.py` is a script.

    Args:
        prepare: called in the process before the command.
    """

    def __init__(
        self, module: str, *words: object, cwd: Path | None = None, prepare: Callable[[], object] = bool
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._written = [Path(self._folder.name, name) for name in ("out", "err")]
        for path in self._written:
            path.touch()
        where = str(cwd or Path.cwd()), dict(os.environ)
        self._process = FORKS.Process(target=_play, args=(module, [*map(str, words)], *where, self._written, prepare))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def done(self, seconds: float = 300) -> "Command":
        """Return this command once it has ended."""
        assert wait([self._process.sentinel], seconds), f"it still runs after {seconds} s"
        self._process.join()
        return self

    @property
    def returncode(self) -> int | None:
        return self.poll()

    @property
    def stdout(self) -> str:
        return self._written[0].read_text(errors="replace")  # tests may choose another encoding

    @property
    def stderr(self) -> str:
        return self._written[1].read_text()

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
        self.done()


def run(module: str, *words: object, cwd: Path | None = None, prepare: Callable[[], object] = bool) -> Command:
    """Run a command, and return it once it has ended."""
    with Command(module, *words, cwd=cwd, prepare=prepare) as command:
        return command.done()


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def here(module: str, *words: object) -> Done:
    """Run a command in this process, for tests of what it says and leaves."""
    said, complained, argv, status = StringIO(), StringIO(), sys.argv, 0
    sys.argv = [module, *map(str, words)]
    try:
        with redirect_stdout(said), redirect_stderr(complained), catch_warnings():
            simplefilter("ignore", RuntimeWarning)  # the tests may have imported it
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = argv
        HydraConfig.instance().cfg = None  # otherwise later tests seem to be in a command of Hydra
    return Done(status, said.getvalue(), complained.getvalue())


def launched(words: Sequence[str]) -> int:
    """Call `launch` in this process, and return its status."""
    forkserver.ensure_running()  # before signals are blocked, which it would pass on to every command
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        launch(words)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def encode(encoding: str) -> None:
    """Write output in this encoding."""
    sys.stdout = os.fdopen(1, "w", encoding=encoding)


def forked(work: Callable[[], object], said: Path) -> int:
    """Do some work in a forked process, and return its number; its output goes to the file `said`."""
    if child := os.fork():
        return child
    status = 70
    try:
        fd = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        work()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def saved_rows(folder: Path) -> list[dict[str, float]]:
    """The history in the checkpoint of a run, a row per round."""
    from hmtl.training.checkpoint import load_checkpoint

    columns = load_checkpoint(folder)["history"]["columns"]
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*(column.tolist() for column in columns.values()), strict=True)
    ]


class Killer:
    """A logger that kills its process once so many rounds are logged: `_target_: commands.Killer`."""

    def __init__(self, rounds: int) -> None:
        self._left = rounds

    def log(self, row: object) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)

    def finish(self, summary: object, draw: object) -> None:
        pass

    def close(self) -> None:
        pass


def _play(
    module: str, words: list[str], cwd: str, env: dict[str, str], written: list[Path], prepare: Callable[[], object]
) -> None:
    import torch

    torch.set_num_threads(1)
    for number, path in enumerate(written, 1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    prepare()
    sys.argv = [module, *words]
    if module.endswith(".py"):
        sys.path.insert(0, str(Path(module).parent.absolute()))
        runpy.run_path(module, run_name="__main__")
    else:
        sys.path.insert(0, cwd)
        sys.modules.pop(module, None)  # so that it is loaded as __main__
        runpy.run_module(module, run_name="__main__", alter_sys=True)
