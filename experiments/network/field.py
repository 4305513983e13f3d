"""Predicted and measured seconds of rounds over narrow and long links, for each choice of aggregators.

`python experiments/network/field.py FOLDER`, as root, starts a server, three relays and two hosts, each in a namespace
behind a link of its own (`switch.py`). They play rounds of random rows for all choices (`field_node.py`), without
learning. The links are those in `field_links.yaml`. Prints a table, and writes FOLDER/field.csv.
"""

import csv
import json
import os
import subprocess
import sys
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import torch
from switch import LINKS, PREFIX, address, clear, switched

from hmtl.communication import CodedHierarchical, Network, Sums
from hmtl.communication.prediction import predict
from hmtl.topology import any_r

HERE = Path(__file__).absolute().parent
FILE = str(HERE / "field_links.yaml")
SIZES = {"K": 20, "H": 3, "r": 2, "rounds": 5}
BYTES = 1 << 16  # of a row


def choices() -> list[tuple[str, Any, int]]:
    sets = [list(A) for n in range(1, 4) for A in combinations(range(3), n)]
    coded = ["server", *sets, *(["server", *A] for A in sets)]
    return [*(("coded", nodes, BYTES) for nodes in coded), *(("sums", nodes, BYTES) for nodes in ("server", [0, 1]))]


def play(folder: Path) -> list[list[Any]]:
    """Return scheme, aggregators, bytes and seconds of each round."""
    settings = {**SIZES, "choices": choices(), "links": FILE, "report": f"{folder}/rounds.json"}
    (folder / "settings.json").write_text(json.dumps(settings))
    shared = {"WORLD_SIZE": str(len(LINKS)), "MASTER_ADDR": address(0), "MASTER_PORT": "29500", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank, name in enumerate(LINKS):
        line = ["nice", "-n", "-15", "ip", "netns", "exec", PREFIX + name, sys.executable, str(HERE / "field_node.py")]
        environment = {**os.environ, **shared, "RANK": str(rank), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        processes.append(subprocess.Popen([*line, str(folder / "settings.json")], env=environment))
    if sum(process.wait() != 0 for process in processes):
        raise SystemExit("a node failed: see its output above")
    rounds: list[list[Any]] = json.loads((folder / "rounds.json").read_text())
    return rounds


def compare(folder: Path, rounds: list[list[Any]]) -> None:
    t, network = any_r(SIZES["K"], SIZES["H"], SIZES["r"], 0), Network(medium="unicast", links=FILE)
    rows = []
    for scheme, nodes, nbytes in choices():
        make = partial(Sums if scheme == "sums" else CodedHierarchical, aggregators=nodes)
        dtype = torch.int64 if scheme == "sums" else torch.float64
        predicted = predict(make, t, network, 8 * nbytes, dtype)
        taken = [seconds for *choice, seconds in rounds if choice == [scheme, nodes, nbytes]]
        row = {
            "scheme": scheme,
            "aggregators": json.dumps(nodes),
            "predicted_s": predicted,
            "measured_s": median(taken),
        }
        rows.append(row | {"least_s": min(taken)})
        print(
            f"{scheme:5} {nodes!s:22} predicted {predicted:.3f} s, measured {median(taken):.3f} s, {min(taken):.3f} s"
        )
    with (folder / "field.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()} for row in rows)


if __name__ == "__main__":
    place = Path(sys.argv[1]).absolute()
    place.mkdir(parents=True, exist_ok=True)
    try:
        with switched(place):
            compare(place, play(place))
    finally:
        clear()
