"""Memory and seconds of a run over processes: python experiments/processes.py FOLDER processes=10 K=1000 ...

What comes after FOLDER, where the run goes, is for `hmtl.launch`. Memory is the proportional set size (a page that n
processes share counts 1/n for each) from Linux's /proc, twice a second. Seconds are those between the ends of two
rounds, from the second one on.
"""

import json
import subprocess
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Processes below this one, in the order in which they were started."""
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in words(task / "children")]
    except OSError:
        return []
    return sorted(below for child in children for below in (child, *descendants(child)))


def words(path: Path) -> list[str]:
    return path.read_text().split()


def memory(pid: int) -> int:
    """Proportional set size [KiB]; 0 of a process that has ended."""
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
    most: dict[int, int] = defaultdict(int)
    together, seen = 0, 1
    ends: list[float] = []
    metrics = Path(folder, "metrics.csv")
    while run.poll() is None:
        now = {pid: memory(pid) for pid in (run.pid, *descendants(run.pid))}
        together = max(together, sum(now.values()))
        for pid, kib in now.items():
            most[pid] = max(most[pid], kib)
        rows = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        if rows > seen:
            seen, ends = rows, [*ends, time.monotonic()]
        time.sleep(0.5)
    if run.returncode:
        sys.exit(run.returncode)
    H = json.loads(Path(folder, "summary.json").read_text())["H"]
    of_rank = [most[pid] / 1024 for pid in sorted(most)[-count:]]
    roles = {"server": of_rank[:1], "relays": of_rank[1 : 1 + H], "hosts": of_rank[1 + H :]}
    print(f"all processes at once: {together / 1024:,.0f} MiB at most")
    for role, peaks in roles.items():
        print(f"{role}: {', '.join(f'{peak:,.0f}' for peak in peaks)} MiB at most")
    print(f"rounds: {', '.join(f'{end - start:.0f}' for start, end in pairwise(ends))} s")


if __name__ == "__main__":
    main()
