"""The clock for computations: CPU time, which does not depend on what else a machine does."""

import time

import torch


def cpu_seconds() -> float:
    """Return the CPU time [s] of this thread; of all threads of the process if torch computes with several."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.process_time()
