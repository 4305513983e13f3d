"""The clock of what nodes compute: CPU time, which does not grow with what else a machine does."""

import time

import torch


def cpu_seconds() -> float:
    """Of this thread; where torch computes by several, of all threads of the process."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.process_time()
