"""Measure the seconds and bytes of rounds over real links, next to the formula.

`python experiments/network/run.py [folder]`, as root, builds a network of namespaces (`lab.py`), starts a process for
each node in it (`node.py`), and plays rounds of each scheme over each transport. Prints tables, and writes
`results.csv` and `results.png` to the folder (by default, that of this file); `--redraw` reads an existing
`results.csv` instead.
"""

import argparse
import csv
import json
import os
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from lab import BPS, Lab, LabError
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from hmtl.coding import best_aggregators, loads, sum_loads
from hmtl.communication import TIERS, Network, tier_loads
from hmtl.reporting.style import OKABE_ITO
from hmtl.topology import Topology, any_r

HERE = Path(__file__).parent
SCHEMES = ("uncoded", "all relays", "best aggregators", "sums")
TRANSPORTS = {  # medium, and the probability that a relay loses a packet
    "TCP": ("unicast", 0.0),
    "multicast": ("broadcast", 0.0),
    "0.1 % lost": ("broadcast", 0.001),
    "1 % lost": ("broadcast", 0.01),
}
FIRST_UP, UP, DOWN, LAST_DOWN = TIERS
TCP_HEADERS = 14 + 20 + 20 + 12  # bytes of Ethernet, IP and TCP, including Linux's time stamps
UDP_HEADERS = 14 + 20 + 8
COLORS = {FIRST_UP: "0.6", UP: OKABE_ITO["blue"], DOWN: OKABE_ITO["orange"], LAST_DOWN: OKABE_ITO["green"]}
Row = dict[str, Any]
Measurement = dict[str, Any]  # of one node in one round, see node.py
Round = list[Measurement]  # of all nodes


def formula(t: Topology, scheme: str, medium: str, V_bits: int, workers: int, most_pieces: int = 1) -> dict[str, float]:
    """Return the seconds on each tier by the paper's eq. (13), as `hmtl.plan` does.

    There is one difference: the sum for all users of a relay is sent to each worker, whereas `hmtl.plan` counts one
    broadcast. By default, relays send whole rows of sums, as in this experiment.
    """
    if scheme == "sums":
        load = sum_loads(t, most_pieces=most_pieces)
    elif scheme == "uncoded":
        load = loads(t, "uncoded")
    else:
        best = best_aggregators(t, "optimal", None, medium).nodes.setting
        load = loads(t, "optimal", aggregators=best if scheme == "best aggregators" else "all")
    ivs = tier_loads(load, len(t.present), medium)
    if scheme == "sums":
        ivs[LAST_DOWN] = np.array(load.unicast * workers)
    network = Network(BPS, BPS, medium)
    return {tier: network.seconds({other: V_bits * ivs[other] * (other == tier) for other in TIERS}) for tier in TIERS}


def play(settings: argparse.Namespace, transport: str) -> list[Measurement]:
    """Play the rounds of all schemes over one transport.

    Raises:
        LabError: the network cannot be built, or a node failed.
    """
    size, (medium, loss) = 1 + settings.H + settings.workers, TRANSPORTS[transport]
    with tempfile.TemporaryDirectory() as folder, Lab(settings.H, settings.workers, settings.r, loss) as lab:
        reports = [Path(folder) / f"{rank}.json" for rank in range(size)]
        numbers = [f"--{name}={getattr(settings, name)}" for name in ("K", "H", "r", "seed", "bytes", "rounds")]
        words = [f"--medium={medium}", f"--schemes={','.join(schemes(medium))}"]
        processes = [
            lab.start(
                rank,
                [sys.executable, str(HERE / "node.py"), str(report), *numbers, *words],
                {
                    **os.environ,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(size),
                    "MASTER_ADDR": lab.server,
                    "MASTER_PORT": "29500",
                    "TORCH_CPP_LOG_LEVEL": "ERROR",  # addresses have no names here, of which torch would warn
                },
            )
            for rank, report in enumerate(reports)
        ]
        for process in processes:
            if process.wait():
                raise LabError(f"a node ended with status {process.returncode}: see its output above")
        return [each for report in reports for each in json.loads(report.read_text())]


def schemes(medium: str) -> Sequence[str]:
    """Return the schemes that use the medium; plain forwarding sends nothing by multicast."""
    return SCHEMES if medium == "unicast" else SCHEMES[1:]


def by_round(measured: Iterable[Measurement], scheme: str) -> list[Round]:
    """Return the rounds of a scheme without the first, which compiles and plans."""
    grouped: dict[int, Round] = defaultdict(list)
    for node in measured:
        if node["scheme"] == scheme and node["repetition"]:
            grouped[node["repetition"]].append(node)
    return list(grouped.values())


def tier_of(sender: str, receiver: str) -> str:
    tiers = {("host", "relay"): FIRST_UP, ("relay", "server"): UP, ("server", "relay"): DOWN}
    return tiers.get((sender.split()[0], receiver.split()[0]), LAST_DOWN)


def seconds(nodes: Round) -> dict[str, float]:
    """Return how long each tier was busy: at least one frame was handed over and had not arrived yet."""
    arrivals = {(f["sender"], node["node"], f["sequence"]): f["at"] for node in nodes for f in node["received"]}
    spans: dict[str, list[tuple[float, float]]] = {tier: [] for tier in TIERS}
    for node in nodes:
        for f in node["sent"]:
            arrival = arrivals[node["node"], f["receiver"], f["sequence"]]
            spans[tier_of(node["node"], f["receiver"])].append((f["at"], arrival))
    return {tier: union_length(intervals) for tier, intervals in spans.items()}


def union_length(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of a union of intervals."""
    total, until = 0.0, -np.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def link_bytes(nodes: Round, medium: str) -> dict[tuple[str, int], tuple[int, int]]:
    """Return the bytes on each link between a relay and the server, by the ledger and by the kernel.

    The kernel's are without the headers of TCP, UDP and below. A broadcast downlink is one link, number H.
    """
    server = next(node for node in nodes if node["node"] == "server")
    links = {}
    for node in nodes:
        kind, _, i = node["node"].partition(" ")
        if kind == "relay":
            links[UP, int(i)] = node["ledger"][UP][int(i)], carried_bytes(node["kernel"], "tx")
            links[DOWN, int(i)] = server["ledger"][DOWN][int(i)], carried_bytes(node["kernel"], "rx")
    if medium == "broadcast":
        H = len(links) // 2
        links = {link: pair for link, pair in links.items() if link[0] == UP}
        links[DOWN, H] = server_bytes(nodes)[DOWN]
    return links


def server_bytes(nodes: Round) -> dict[str, tuple[int, int]]:
    """Return the bytes that the server received and sent in all, by the ledger and by the kernel."""
    server = next(node for node in nodes if node["node"] == "server")
    return {
        tier: (sum(sum(node["ledger"][tier]) for node in nodes), carried_bytes(server["kernel"], direction))
        for tier, direction in ((UP, "rx"), (DOWN, "tx"))
    }


def carried_bytes(kernel: dict[str, dict[str, int]], direction: str) -> int:
    """Return the bytes that the packets of the second hop carried; each packet is TCP or multicast UDP."""
    packets, multicasts = kernel["hop2"][f"{direction}_packets"], kernel["multicast"][f"{direction}_packets"]
    return kernel["hop2"][f"{direction}_bytes"] - TCP_HEADERS * (packets - multicasts) - UDP_HEADERS * multicasts


def summary(settings: argparse.Namespace, transport: str, measured: Sequence[Measurement]) -> list[Row]:
    """Return a row per scheme: the medians of its rounds' seconds, and the means of their bytes."""
    t = any_r(settings.K, settings.H, settings.r, settings.seed)
    medium, rows = TRANSPORTS[transport][0], []
    for scheme in schemes(medium):
        rounds = by_round(measured, scheme)
        expected = formula(t, scheme, medium, 8 * settings.bytes, settings.workers)
        taken = [seconds(nodes) for nodes in rounds]
        clocks = [max(node["end"] for node in nodes) - min(node["start"] for node in nodes) for nodes in rounds]
        links = [pair for nodes in rounds for pair in link_bytes(nodes, medium).values()]
        differences = [abs(kernel / counted - 1) for counted, kernel in links if counted >= settings.bytes]
        sent = [server_bytes(nodes) for nodes in rounds]
        row = {
            "transport": transport,
            "scheme": scheme,
            "rounds": len(rounds),
            "lossless": sum(sum(node["correct"] for node in nodes) == settings.K for nodes in rounds),
            "formula_s": sum(expected.values()),
            "measured_s": median(sum(tiers.values()) for tiers in taken),
            "clock_s": median(clocks),
        }
        row |= {f"formula_s/{tier}": expected[tier] for tier in TIERS}
        row |= {f"measured_s/{tier}": median(tiers[tier] for tiers in taken) for tier in TIERS}
        for n, source in enumerate(("counted", "kernel")):
            row |= {f"{source}_bytes/{tier}": mean(tiers[tier][n] for tiers in sent) for tier in (UP, DOWN)}
        rows.append(row | {"worst_link": max(differences, default=0.0)})
    return rows


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return a table of seconds, and one of the bytes between relays and server."""
    tables = []
    for title, columns, cells in (
        ("Communication of a round, s", ("formula", "measured", "more", "saved:\nformula", "measured"), _seconds),
        (
            "Between relays and server in a round, MB",
            ("up:\nledger", "kernel", "down:\nledger", "kernel", "worst\nlink", "correct\nrounds"),
            _volumes,
        ),
    ):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("", "who aggregates"):
            table.add_column(column, no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right", vertical="bottom")
        for n, row in enumerate(rows):
            repeated = n and row["transport"] == rows[n - 1]["transport"]
            table.add_row("" if repeated else row["transport"], row["scheme"], *cells(row, rows[0]))
        tables.append(table)
    return tables


def _seconds(row: Row, plain: Row) -> list[str]:
    saved = (f"{1 - row[s] / plain[s]:.1%}" if row is not plain else "" for s in ("formula_s", "measured_s"))
    more = f"{row['measured_s'] / row['formula_s'] - 1:.1%}"
    return [f"{row['formula_s']:.2f}", f"{row['measured_s']:.2f}", more, *saved]


def _volumes(row: Row, plain: Row) -> list[str]:
    volumes = (f"{row[f'{source}_bytes/{tier}'] / 1e6:.2f}" for tier in (UP, DOWN) for source in ("counted", "kernel"))
    return [*volumes, f"{row['worst_link']:.2%}", f"{row['lossless']}/{row['rounds']}"]


def draw(rows: Sequence[Row]) -> Figure:
    """Draw bars of seconds by tier: the formula's, and the measured ones below."""
    figure = Figure(figsize=(9, 1 + 0.55 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for n, row in enumerate(rows):
        for offset, source, style in ((-0.19, "formula", {"alpha": 0.45}), (0.19, "measured", {})):
            left = 0.0
            for tier in TIERS:
                width = row[f"{source}_s/{tier}"]
                label = tier.replace("_", " ") if n == 0 and source == "measured" else None
                axes.barh(n + offset, width, 0.36, left, color=COLORS[tier], label=label, **style)
                left += width
            axes.text(left, n + offset, f" {row[f'{source}_s']:.2f} s, {source}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row['transport']}\n{row['scheme']}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * max(row["measured_s"] for row in rows))
    axes.set_xlabel("communication of a round [s]")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def save(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(x, 6) if isinstance(x, float) else x for name, x in row.items()} for row in rows)


def load(path: Path) -> list[Row]:
    with path.open() as file:
        return [{name: _value(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def _value(cell: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE)
    sizes = {"K": 40, "H": 5, "r": 3, "seed": 0, "bytes": 2**20, "rounds": 5, "workers": 2}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--redraw", action="store_true")
    settings = parser.parse_args()
    path = settings.folder / "results.csv"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an exit removes the network
    if not settings.redraw:
        try:
            rows = [row for transport in TRANSPORTS for row in summary(settings, transport, play(settings, transport))]
        except LabError as error:
            print(f"error: {error}.", file=sys.stderr)
            return 2
        settings.folder.mkdir(parents=True, exist_ok=True)
        save(path, rows)
    rows = load(path)
    draw(rows).savefig(path.with_suffix(".png"), dpi=150)
    for table in tables(rows):
        Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
