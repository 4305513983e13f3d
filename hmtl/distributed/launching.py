"""Start all processes of a run on this machine, and watch them until the leading one has ended.

The processes are forked from one that has imported what they need, so that starting many takes little time and memory.
"""

import multiprocessing
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from types import FrameType

SECRET = "HMTL_SECRET"  # the variable with the secret that all processes of a run share
Report = Callable[[str], None]
"""Reports an error, in one line."""
GRACE = 10.0  # seconds for processes to end after the leading one, and for the leading one to end after others failed
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_processes(count: int, work: Callable[[Report], object], report: Report, preload: Sequence[str] = ()) -> int:
    """Do some work in each of several processes, which find each other by the environment of torch.distributed.

    Each process is in a process group of its own, so that Ctrl-C reaches only this process, which passes it on to each
    of them once; it passes on SIGTERM in the same way.

    Args:
        count: number of processes.
        work: what each process does; it must be possible to pickle it.
        report: called with each error of the processes; an error that several of them report is passed on only once.
        preload: modules to import before the processes are forked.

    Returns:
        The exit status of the leading process; 128 + n if signal n ended it.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # hmtl itself reports which process was lost
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))  # glibc then returns large freed blocks at once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    errors: SimpleQueue[str] = context.SimpleQueue()
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place[SECRET] = os.environ.get(SECRET) or secrets.token_hex(32)
    processes = [
        context.Process(target=_work, args=(work, {**place, "RANK": str(rank)}, errors), name=f"process {rank}")
        for rank in range(count)
    ]

    def pass_on(signum: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.pid and process.is_alive():
                os.kill(process.pid, signum)

    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until all have started; they inherit the mask, see `_work`
        for process in processes:
            process.start()
        for number in SIGNALS:
            signal.signal(number, pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return watch(processes, errors, report)
    finally:
        for process in processes:
            if process.pid:
                process.kill()
                process.join()


def watch(processes: Sequence[BaseProcess], errors: "SimpleQueue[str]", report: Report) -> int:
    """Wait for the leading process, then give the others some time to end; see `run_processes`."""
    leading, others = processes[0], processes[1:]
    reported: set[str] = set()

    def report_new() -> None:
        while not errors.empty():
            error = errors.get()
            if error not in reported:
                report(error)
                reported.add(error)

    while leading.is_alive() and any(process.is_alive() for process in others):
        wait([process.sentinel for process in processes if process.is_alive()])
        report_new()
    gave_up = any(process.exitcode for process in others)  # if not, the leading process is still writing the results
    leading.join(GRACE if gave_up else None)
    if leading.is_alive():
        report("all processes but the first have ended, and the first does not respond, so it was killed.")
        leading.kill()
        leading.join()
    for process in others:
        process.join(GRACE / len(processes))
    report_new()
    status = leading.exitcode or 0
    return 128 - status if status < 0 else status


def free_port() -> int:
    """Return a TCP port of this machine that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _work(work: Callable[[Report], object], place: Mapping[str, str], errors: "SimpleQueue[str]") -> None:
    os.setpgrp()  # so that Ctrl-C reaches the process once, from the launcher
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.environ.update(place)
        if place["RANK"] == "0":
            threading.Thread(target=_stop_without_launcher, daemon=True).start()
        work(errors.put)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _stop_without_launcher() -> None:
    """Stop the leading process, and thereby the others, once the launcher has been killed."""
    if launcher := multiprocessing.parent_process():
        launcher.join()
        os.kill(os.getpid(), signal.SIGTERM)
