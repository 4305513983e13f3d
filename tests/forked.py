"""Short commands, each in a child forked from the process that has imported what they need; see `commands`."""

import contextlib
import io
import os
import resource
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from commands import FORKS

LONGEST = 120  # seconds that a command may take


@dataclass(frozen=True)
class Done:
    """Exit status, output and errors of a command."""

    status: int
    out: str
    err: str


def run(
    command: str,
    words: Sequence[str],
    cwd: Path,
    encoding: str = "utf-8",
    env: Mapping[str, str] | None = None,
    gone: bool = False,
    room: int = resource.RLIM_INFINITY,
) -> Done:
    """`python -m hmtl.COMMAND WORDS`, in the folder `cwd`.

    Args:
        gone: whether the reader of its output has gone.
        room: number of bytes that a file may have at most.
    """
    with TemporaryDirectory() as folder:
        written = Path(folder, "out"), Path(folder, "err")
        for path in written:
            path.touch()
        process = FORKS.Process(target=_child, args=(command, words, cwd, encoding, env or {}, written, gone, room))
        process.start()
        process.join()
        status = process.exitcode
        assert status is not None
        return Done(status, *(path.read_bytes().decode(encoding) for path in written))


def _child(
    command: str,
    words: Sequence[str],
    cwd: Path,
    encoding: str,
    env: Mapping[str, str],
    written: Sequence[Path],
    gone: bool,
    room: int,
) -> None:
    import torch
    from hydra._internal.hydra import Hydra

    from hmtl.config.command_line import main

    status = 1
    try:
        signal.alarm(LONGEST)
        os.environ.update(env)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(written, 1):
            os.dup2(os.open(path, os.O_WRONLY), number)
        if gone:
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
        sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding)  # noqa: SIM115
        sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False), encoding, "backslashreplace")  # noqa: SIM115
        os.chdir(cwd)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        sys.argv = [f"hmtl.{command}", *words]
        Hydra.get_mode = lambda *args, **others: None  # type: ignore[method-assign]  # it composes all, for one word
        torch.set_num_threads(1)
        module = import_module(f"hmtl.{command}")
        main(getattr(module, command), "plan" if command == "plan" else "config")
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)
