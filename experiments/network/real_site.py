"""A site of `hmtl.node` in namespaces with narrow and long links: planned and played.

`python experiments/network/real_site.py FOLDER`, as root, starts a server, three relays and two hosts, each in a
namespace behind a link of its own (`switch.py`). `hmtl.plan` computes the seconds of a round for each choice of
aggregators, with the links in `field_links.yaml`. Then the site trains MOCHA with each of them, and the seconds from
round to round are compared with the plan. Prints a table, and writes FOLDER/site.csv.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from switch import LINKS, PREFIX, address, clear, switched

K, NUMBERS, ROUNDS = 20, 8192, 6
FILE = Path(__file__).absolute().with_name("field_links.yaml")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def data(folder: Path) -> None:
    """Write a task for each user, of few rows and many features, so that messages are long and work is short."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    w = rng.normal(size=NUMBERS - 1)
    for k in range(K):
        x = rng.normal(size=(8, NUMBERS - 1))
        np.savez(folder / f"{k:02}.npz", x=x, y=np.where(x @ w > 0, 1, -1))


def command(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"hmtl.{module}", *words]


def write_site(folder: Path, *training: str) -> Path:
    names = list(LINKS)
    nodes = [{"name": name, "address": f"{address(n)}:4700"} for n, name in enumerate(names[:4])]
    shared = [f"K={K}", "H=3", "r=2", "topology=any_r", "dataset=files", f"dataset.path={folder}/data"]
    shared += ["dataset.test_fraction=0.25", "evaluate_every=1000", "checkpoint_every=1000", f"rounds={ROUNDS}"]
    hosts = [{"name": "host-0", "users": "0-9"}, {"name": "host-1", "users": "10-19"}]
    site = {"server": nodes[0], "relays": nodes[1:], "hosts": hosts, "training": [*shared, *training]}
    (folder / "site.yaml").write_text(yaml.safe_dump(site))
    return folder / "site.yaml"


def play(folder: Path, run: str) -> list[float]:
    """Run the site, and return the seconds from each round to the next."""
    processes = []
    metrics = folder / run / "metrics.csv"
    for name in LINKS:
        own = (f"hydra.run.dir={folder}/{run}",) if name == "server" else ()
        line = ["nice", "-n", "-15", "ip", "netns", "exec", PREFIX + name]
        log = (folder / f"{name}.log").open("a")
        node = command("node", f"name={name}", f"deployment={folder}/site.yaml", *own)
        processes.append(subprocess.Popen([*line, *node], env=ENVIRONMENT, cwd=folder, stdout=log, stderr=log))
    times, rows = [], 0
    while any(process.poll() is None for process in processes):
        lines = metrics.read_text().count("\n") if metrics.exists() else 0
        if lines > rows + 1:
            rows = lines - 1
            times.append(time.monotonic())
        time.sleep(0.005)
    if any(process.returncode for process in processes):
        raise SystemExit(f"a node failed: see {folder}/*.log")
    return np.diff(times).tolist()


def plan(*words: str) -> Any:
    done = subprocess.run(command("plan", *words, "format=json"), env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def compare(folder: Path) -> list[dict[str, Any]]:
    data(folder / "data")
    network = ("network=links", f"network.links={FILE}")
    write_site(folder, *network)
    subprocess.run(command("certificates", f"deployment={folder}/site.yaml"), check=True, env=ENVIRONMENT)
    place = f"hydra.run.dir={folder}/plan"
    planned = plan(f"K={K}", "H=3", "r=2", "topology=any_r", *network, f"V_bits={64 * NUMBERS}", place)
    seconds = {json.dumps(setting): predicted for setting, predicted in planned["choices"]}
    rows = []
    for number, setting in enumerate(seconds):
        write_site(folder, *network, f"aggregators={setting.replace(' ', '')}")
        taken = median(play(folder, f"run{number}"))
        rows.append({"aggregators": setting, "predicted_s": seconds[setting], "measured_s": taken})
        print(f"{setting:30} predicted {seconds[setting]:.3f} s, measured {taken:.3f} s", flush=True)
        with (folder / "site.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return rows


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with switched(folder):
            compare(folder)
    finally:
        clear()


if __name__ == "__main__":
    main(sys.argv[1:])
