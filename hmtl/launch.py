"""Start all processes of a run on this machine: `python -m hmtl.launch processes=8 topology=symmetric r=3`.

Everything but `processes` goes to `hmtl.train`, with `engine=torch_distributed`. The processes are forked from one that
has imported torch, so that many of them take little time and memory to start.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

GRACE = 10.0  # seconds for the others to end by themselves, after one has ended badly


def main(arguments: Sequence[str]) -> int:
    """Exit status of the first process, or of one that ended badly."""
    chosen = [word for word in arguments if word.startswith("processes=")]
    rest = [word for word in arguments if not word.startswith("processes=")]
    try:
        (count,) = (int(word.removeprefix("processes=")) for word in chosen)
    except ValueError:
        print("error: processes=N is needed once, a whole number: a server, the relays, and hosts.", file=sys.stderr)
        return 2
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "hmtl.train", "hmtl.trainer", "hmtl.engine"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [{"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in range(count)]
    processes = [context.Process(target=_member, args=(place, rest), name=f"process {n}") for n, place in enumerate(places)]
    for process in processes:
        process.start()
    try:
        return _wait(processes)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
