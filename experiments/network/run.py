"""Seconds and bytes of rounds over real links, beside the formula.

`python experiments/network/run.py [folder]`, as root, builds a network of namespaces (`lab.py`), starts a process for
each node in it (`node.py`), and plays rounds of each scheme over each transport. Writes `results.csv` and `results.png`
into the folder, by default that of this file, and prints tables; `--redraw` does so from the `results.csv` there.
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
TRANSPORTS = {  # medium, and the probability that a relay loses a packet of it
    "TCP": ("unicast", 0.0),
    "multicast": ("broadcast", 0.0),
    "0.1 % lost": ("broadcast", 0.001),
    "1 % lost": ("broadcast", 0.01),
}
FIRST_UP, UP, DOWN, LAST_DOWN = TIERS
TCP_HEADERS = 14 + 20 + 20 + 12  # bytes of Ethernet, IP and TCP, with the time stamps that Linux sends
UDP_HEADERS = 14 + 20 + 8
COLORS = {FIRST_UP: "0.6", UP: OKABE_ITO["blue"], DOWN: OKABE_ITO["orange"], LAST_DOWN: OKABE_ITO["green"]}
Row = dict[str, Any]
Seen = dict[str, Any]  # of one node in one round, see node.py
Round = list[Seen]  # of all nodes


def formula(t: Topology, scheme: str, medium: str, V_bits: int, workers: int) -> dict[str, float]:
    """Seconds on each tier by the paper's (13), as `hmtl.plan` has them.

    But a sum, which is for all users of a relay, goes once to each worker, where `hmtl.plan` has one broadcast.
    """
    if scheme == "sums":
        load = sum_loads(t)
    elif scheme == "uncoded":
        load = loads(t, "uncoded")
    else:
        best = best_aggregators(t, "optimal", None, medium).relays or "server"
        load = loads(t, "optimal", aggregators=best if scheme == "best aggregators" else "all")
    ivs = tier_loads(t, "optimal", medium, load)
    if scheme == "sums":
        ivs[LAST_DOWN] = np.array(load.unicast * workers)
    network = Network(BPS, BPS, medium)
    return {tier: network.seconds({other: V_bits * ivs[other] * (other == tier) for other in TIERS}) for tier in TIERS}


def play(settings: argparse.Namespace, transport: str) -> list[Seen]:
    """Rounds of all schemes over one transport.

    Raises:
        LabError: there can be no such network, or a node gave up.
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
                    "GLOO_SOCKET_IFNAME": lab.device(rank),
                    "TORCH_CPP_LOG_LEVEL": "ERROR",  # it would warn that addresses have no names here
                },
            )
            for rank, report in enumerate(reports)
        ]
        for process in processes:
            if process.wait():
                raise LabError(f"a node ended with status {process.returncode}: see what it says above")
        return [seen for report in reports for seen in json.loads(report.read_text())]


def schemes(medium: str) -> Sequence[str]:
    """Those that send anything by multicast, where that is there."""
    return SCHEMES if medium == "unicast" else SCHEMES[1:]


def by_round(seen: Iterable[Seen], scheme: str) -> list[Round]:
    """The rounds of a scheme but the first, in which codes are made."""
    grouped: dict[int, Round] = defaultdict(list)
    for node in seen:
        if node["scheme"] == scheme and node["repetition"]:
            grouped[node["repetition"]].append(node)
    return list(grouped.values())


def tier_of(sender: str, receiver: str) -> str:
    tiers = {("host", "relay"): FIRST_UP, ("relay", "server"): UP, ("server", "relay"): DOWN}
    return tiers.get((sender.split()[0], receiver.split()[0]), LAST_DOWN)


def seconds(nodes: Round) -> dict[str, float]:
    """How long there was something on its way on each tier: given away by its sender, and not yet with its receiver."""
    came = {(f["sender"], node["node"], f["sequence"]): f["at"] for node in nodes for f in node["came"]}
    spans: dict[str, list[tuple[float, float]]] = {tier: [] for tier in TIERS}
    for node in nodes:
        for f in node["said"]:
            arrival = came[node["node"], f["receiver"], f["sequence"]]
            spans[tier_of(node["node"], f["receiver"])].append((f["at"], arrival))
    return {tier: covered(of_tier) for tier, of_tier in spans.items()}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of a union of intervals."""
    total, until = 0.0, -np.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def link_bytes(nodes: Round, medium: str) -> dict[tuple[str, int], tuple[int, int]]:
    """Of each link between a relay and the server: payload and header by the ledger; by the kernel, without those of
    the protocols below. Of a broadcast downlink there is one, the server's, and it has number H.
    """
    server = next(node for node in nodes if node["node"] == "server")
    found = {}
    for node in nodes:
        kind, _, i = node["node"].partition(" ")
        if kind == "relay":
            found[UP, int(i)] = node["ledger"][UP][int(i)], stream(node["kernel"], "tx")
            found[DOWN, int(i)] = server["ledger"][DOWN][int(i)], stream(node["kernel"], "rx")
    if medium == "broadcast":
        H = len(found) // 2
        found = {link: pair for link, pair in found.items() if link[0] == UP}
        found[DOWN, H] = volumes(nodes)[DOWN]
    return found


def volumes(nodes: Round) -> dict[str, tuple[int, int]]:
    """The same of all that comes to the server, and of all that it sends."""
    server = next(node for node in nodes if node["node"] == "server")
    return {
        tier: (sum(sum(node["ledger"][tier]) for node in nodes), stream(server["kernel"], way))
        for tier, way in ((UP, "rx"), (DOWN, "tx"))
    }


def stream(kernel: dict[str, dict[str, int]], way: str) -> int:
    """What the packets of the second hop carried, in bytes; those that are no multicasts are TCP's."""
    packets, multicasts = kernel["hop2"][f"{way}_packets"], kernel["multicast"][f"{way}_packets"]
    return kernel["hop2"][f"{way}_bytes"] - TCP_HEADERS * (packets - multicasts) - UDP_HEADERS * multicasts


def summary(settings: argparse.Namespace, transport: str, seen: Sequence[Seen]) -> list[Row]:
    """A row for each scheme: medians of its rounds, and means of their bytes."""
    t = any_r(settings.K, settings.H, settings.r, settings.seed)
    medium, rows = TRANSPORTS[transport][0], []
    for scheme in schemes(medium):
        each = by_round(seen, scheme)
        expected = formula(t, scheme, medium, 8 * settings.bytes, settings.workers)
        taken = [seconds(nodes) for nodes in each]
        clocks = [max(node["end"] for node in nodes) - min(node["start"] for node in nodes) for nodes in each]
        links = [pair for nodes in each for pair in link_bytes(nodes, medium).values()]
        apart = [abs(kernel / counted - 1) for counted, kernel in links if counted >= settings.bytes]
        sent = [volumes(nodes) for nodes in each]
        row = {
            "transport": transport,
            "scheme": scheme,
            "rounds": len(each),
            "lossless": sum(sum(node["right"] for node in nodes) == settings.K for nodes in each),
            "formula_s": sum(expected.values()),
            "measured_s": median(sum(one.values()) for one in taken),
            "clock_s": median(clocks),
        }
        row |= {f"formula_s/{tier}": expected[tier] for tier in TIERS}
        row |= {f"measured_s/{tier}": median(one[tier] for one in taken) for tier in TIERS}
        for n, who in enumerate(("counted", "kernel")):
            row |= {f"{who}_bytes/{tier}": mean(one[tier][n] for one in sent) for tier in (UP, DOWN)}
        rows.append(row | {"worst_link": max(apart, default=0.0)})
    return rows


def tables(rows: Sequence[Row]) -> list[Table]:
    """Seconds, and what was sent between relays and server."""
    tables = []
    for title, columns, cells in (
        ("Communication of a round, s", ("formula", "measured", "more", "saved:\nformula", "measured"), _seconds),
        (
            "Between relays and server in a round, MB",
            ("up:\nledger", "kernel", "down:\nledger", "kernel", "worst\nlink", "rounds\nright"),
            _volumes,
        ),
    ):
        shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("", "who aggregates"):
            shown.add_column(column, no_wrap=True)
        for column in columns:
            shown.add_column(column, justify="right", vertical="bottom")
        for n, row in enumerate(rows):
            repeated = n and row["transport"] == rows[n - 1]["transport"]
            shown.add_row("" if repeated else row["transport"], row["scheme"], *cells(row, rows[0]))
        tables.append(shown)
    return tables


def _seconds(row: Row, plain: Row) -> list[str]:
    saved = (f"{1 - row[s] / plain[s]:.1%}" if row is not plain else "" for s in ("formula_s", "measured_s"))
    more = f"{row['measured_s'] / row['formula_s'] - 1:.1%}"
    return [f"{row['formula_s']:.2f}", f"{row['measured_s']:.2f}", more, *saved]


def _volumes(row: Row, plain: Row) -> list[str]:
    volumes = (f"{row[f'{who}_bytes/{tier}'] / 1e6:.2f}" for tier in (UP, DOWN) for who in ("counted", "kernel"))
    return [*volumes, f"{row['worst_link']:.2%}", f"{row['lossless']}/{row['rounds']}"]


def draw(rows: Sequence[Row]) -> Figure:
    """Bars of seconds by tier: the formula's, and below what was measured."""
    figure = Figure(figsize=(9, 1 + 0.55 * len(rows)), layout="constrained")
    at = figure.subplots()
    for n, row in enumerate(rows):
        for offset, who, look in ((-0.19, "formula", {"alpha": 0.45}), (0.19, "measured", {})):
            left = 0.0
            for tier in TIERS:
                width = row[f"{who}_s/{tier}"]
                label = tier.replace("_", " ") if n == 0 and who == "measured" else None
                at.barh(n + offset, width, 0.36, left, color=COLORS[tier], label=label, **look)
                left += width
            at.text(left, n + offset, f" {row[f'{who}_s']:.2f} s, {who}", va="center", fontsize=8)
    at.set_yticks(range(len(rows)), [f"{row['transport']}\n{row['scheme']}" for row in rows])
    at.set_ylim(len(rows) - 0.4, -0.6)
    at.set_xlim(0, 1.25 * max(row["measured_s"] for row in rows))
    at.set_xlabel("communication of a round [s]")
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the network is taken down
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
    for shown in tables(rows):
        Console().print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
