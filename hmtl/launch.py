"""Start all processes of a run on this machine: `python -m hmtl.launch processes=8 topology=symmetric r=3`.

All words but `processes=N` go to `hmtl.train`, with `engine=torch_distributed` where they choose no engine; its --help
lists them. The N processes, a server, the relays, and hosts of users, are forked from one that has imported what they
need, so that many of them take little time and memory.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from types import FrameType

from hmtl.errors import complain

GRACE = 10.0  # seconds for the others to end, once the first process has, or for it, once they gave it up
LOADED = (
    "hmtl.train",
    "hmtl.training.trainer",
    "hmtl.distributed.engine",
    "hmtl.mtl",
    "hmtl.reporting.figures",
    "cvxpy",
    "scipy.optimize",
    "sklearn.model_selection",
)
"""What most runs import, hmtl's own late imports among it, which together take each process two seconds."""


def launch(arguments: Sequence[str]) -> int:
    """The exit status of the first process, which keeps the results."""
    if {"--help", "-h"} & set(arguments):
        print(__doc__, end="")
        return 0
    counts = [word.removeprefix("processes=") for word in arguments if word.startswith("processes=")]
    if len(counts) != 1 or not counts[0].isdecimal() or int(counts[0]) < 1:
        complain("processes=N is missing, or no whole number above 0: a server, the relays, and hosts of users.")
        return 2
    if "engine=in_process" in arguments:
        complain("engine=in_process has one process: start it by python -m hmtl.train.")
        return 2
    words = [word for word in arguments if not word.startswith("processes=")]
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # we say ourselves who has gone
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))  # glibc gives back at once what was large and is free
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    errors = context.SimpleQueue()
    place = {"WORLD_SIZE": counts[0], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        context.Process(target=_member, args=({**place, "RANK": str(rank)}, words, errors), name=f"process {rank}")
        for rank in range(int(counts[0]))
    ]

    def end() -> None:
        for process in processes:
            if process.pid:
                process.kill()
                process.join()

    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # also in the process that they are forked from
        ensure_running()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for process in processes:
            process.start()
        return _status(processes, errors)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        end()


def _member(place: Mapping[str, str], words: Sequence[str], errors: "SimpleQueue[str]") -> None:
    """One process: `hmtl.train` as if it had been called with these words."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        from hmtl.config.command_line import main
        from hmtl.train import train
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    os.environ.update(place)
    if place["RANK"] == "0":
        threading.Thread(target=_stop_without_launcher, daemon=True).start()
    chosen = [] if any(word.startswith("engine=") for word in words) else ["engine=torch_distributed"]
    sys.argv = ["hmtl.train", *words, *chosen]
    main(train, "config", errors.put)


def _stop_without_launcher() -> None:
    """The first process is asked to stop, and the others end with it: nobody trains on unseen."""
    launcher = multiprocessing.parent_process()
    if launcher is not None:
        launcher.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _status(processes: Sequence[BaseProcess], errors: "SimpleQueue[str]") -> int:
    """Wait for the first process, pass on to it that we are asked to stop, and give the others time to end.

    An error that many have is told once.
    """
    first, told = processes[0], set[str]()

    def tell() -> None:
        while not errors.empty():
            if (error := errors.get()) not in told:
                complain(error)
                told.add(error)

    def pass_on(signum: int, frame: FrameType | None) -> None:
        if first.is_alive() and first.pid:
            os.kill(first.pid, signum)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all processes of a terminal anyway
    while first.is_alive() and any(process.is_alive() for process in processes[1:]):
        wait([process.sentinel for process in processes if process.is_alive()])
        tell()
    gave_up = any(process.exitcode for process in processes[1:])  # on the first; else it still writes down the results
    first.join(GRACE if gave_up else None)
    if first.is_alive():
        complain("all processes but the first have ended, and it does not answer: stopped it.")
        first.kill()
        first.join()
    wait([process.sentinel for process in processes[1:]], timeout=GRACE)
    for process in processes[1:]:
        process.join(GRACE / len(processes))
    tell()
    status = first.exitcode or 0
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
