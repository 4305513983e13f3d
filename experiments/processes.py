"""Measure the memory and time of a run: `python experiments/processes.py FOLDER processes=10 K=1000 ...`.

The run writes to FOLDER; all further arguments are those of `hmtl.launch`. Memory is the proportional set size (a page
shared by n processes counts 1/n for each), read from Linux's /proc twice a second. The time of a round is that between
its end and the end of the round before.
"""

import json
import subprocess
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return the processes below this one in the order in which they were started."""
    try:
        tasks = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
    children = [int(child) for text in tasks for child in text.split()]
    return sorted(below for child in children for below in (child, *descendants(child)))


def memory(pid: int) -> int:
    """Return the proportional set size [KiB]; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def main() -> None:
    folder, *settings = sys.argv[1:]
    (count,) = [int(word.removeprefix("processes=")) for word in settings if word.startswith("processes=")]
    run = subprocess.Popen(
        [sys.executable, "-m", "hmtl.launch", *settings, f"hydra.run.dir={folder}", "~logger.tensorboard"]
    )
    peaks: dict[int, int] = defaultdict(int)
    peak, lines = 0, 1
    ends: list[float] = []
    metrics = Path(folder, "metrics.csv")
    while run.poll() is None:
        sizes = {pid: memory(pid) for pid in (run.pid, *descendants(run.pid))}
        peak = max(peak, sum(sizes.values()))
        for pid, kib in sizes.items():
            peaks[pid] = max(peaks[pid], kib)
        written = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        if written > lines:
            lines, ends = written, [*ends, time.monotonic()]
        time.sleep(0.5)
    if run.returncode:
        sys.exit(run.returncode)
    H = json.loads(Path(folder, "summary.json").read_text())["H"]
    by_rank = [peaks[pid] / 1024 for pid in sorted(peaks)[-count:]]
    roles = {"server": by_rank[:1], "relays": by_rank[1 : 1 + H], "hosts": by_rank[1 + H :]}
    print(f"peak of all processes together: {peak / 1024:,.0f} MiB")
    for role, of_role in roles.items():
        print(f"peak of {role}: {', '.join(f'{size:,.0f}' for size in of_role)} MiB")
    print(f"rounds: {', '.join(f'{end - start:.0f}' for start, end in pairwise(ends))} s")


if __name__ == "__main__":
    main()
