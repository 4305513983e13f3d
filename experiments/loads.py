"""Loads in the settings of the paper's Figs. 3 and 4, and what they save: its scheme, and two optima beyond it.

"all relays" is the optimum where all relays learn all IVs, as the paper asks; Theorem 2 bounds it from below. "best
aggregators" is the optimum over who learns them, as `hmtl.coding.best_aggregators` proves it for a broadcast downlink.
Saved: of all time to send of a round by the paper's (13), links alike, K = 10..100 being the users of Fig. 3.

`python experiments/loads.py [folder] [--draws 50]` writes `loads.csv` and `loads.png` there and prints the tables.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from hmtl.coding import Loads, best_aggregators, bounds, loads
from hmtl.topology import Topology, any_r, heterogeneous

PAPER, ALL, BEST, BOUND = "paper", "all relays", "best aggregators", "Theorem 2"
CURVES: dict[str, Callable[[Topology], Loads]] = {
    "uncoded": lambda t: loads(t, "uncoded"),
    PAPER: lambda t: loads(t, "paper"),
    ALL: lambda t: loads(t, "optimal"),
    BEST: lambda t: proven_best(t),
    BOUND: bounds,
}
SAVING = (PAPER, ALL, BEST)
DIRECTIONS = {"uplink": "relays to server", "downlink": "server to relays"}
STYLES = {
    "uncoded": ("grey", ":", "uncoded"),
    PAPER: ("tab:orange", "s-", "all relays, the paper's scheme"),
    ALL: ("tab:blue", "o-", "all relays, optimal"),
    BEST: ("tab:green", "^-", "best aggregators"),
    BOUND: ("k", "--", "all relays, Theorem 2"),
}
Row = dict[str, float | str]


def proven_best(t: Topology) -> Loads:
    choice = best_aggregators(t)
    assert choice.proven
    return loads(t, aggregators=choice.relays or "server")


def any_3_of(H: int) -> Callable[[float, int], Topology]:
    return lambda K, seed: any_r(int(K), H, 3, seed)


PANELS = {  # name: (what varies, its values, the network for a value and a seed)
    "Fig. 3, H = 5": ("K", range(10, 101, 10), any_3_of(5)),
    "Fig. 3, H = 10": ("K", range(10, 101, 10), any_3_of(10)),
    "Fig. 4, K = 50, H = 4": ("d", np.arange(10) / 20, lambda d, seed: heterogeneous(50, 4, 2, d, seed)),
}


def measure(draws: int) -> list[Row]:
    """A row for each point of each panel: the mean over the draws of each load [IVs], and of the saving [%]."""
    rows: list[Row] = []
    for panel, (name, values, network) in PANELS.items():
        for value in values:
            topologies = [network(value, seed) for seed in range(draws)]
            found: dict[str, list[Loads]] = {curve: [f(t) for t in topologies] for curve, f in CURVES.items()}
            means = {
                f"{curve} {direction}": float(np.mean([getattr(load, direction) for load in found[curve]]))
                for direction in DIRECTIONS
                for curve in CURVES
            }
            saved = {
                f"{curve} saved %": float(
                    np.mean([saving(t, load) for t, load in zip(topologies, found[curve], strict=True)])
                )
                for curve in SAVING
            }
            rows.append({"panel": panel, "variable": name, "value": round(float(value), 2), **means, **saved})
    return rows


def saving(t: Topology, load: Loads) -> float:
    """Of the time to send, users and relays included, in % of the uncoded."""
    return 100 * (1 - (2 * t.K + load.uplink + load.downlink) / (4 * t.K))


def draw(rows: list[Row], draws: int) -> Figure:
    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots(3, len(PANELS), sharex="col", squeeze=False)
    for column, (panel, (name, *_)) in enumerate(PANELS.items()):
        here = [row for row in rows if row["panel"] == panel]
        for line, (direction, what) in enumerate(DIRECTIONS.items()):
            at = axes[line, column]
            for curve, (color, style, label) in STYLES.items():
                values = [row[f"{curve} {direction}"] for row in here]
                at.plot([row["value"] for row in here], values, style, color=color, label=label, markersize=4)
            at.set_ylabel(f"load, {what} [IVs]")
            at.set_ylim(0, 1.05 * max(float(row["uncoded uplink"]) for row in here))
        at = axes[2, column]
        for curve in SAVING:
            color, style, _ = STYLES[curve]
            at.plot([row["value"] for row in here], [row[f"{curve} saved %"] for row in here], style, color=color)
            at.lines[-1].set_markersize(4)
        at.set_ylabel("time to send saved [%]")
        at.set_ylim(0, 50)
        for at in axes[:, column]:
            at.grid(alpha=0.3)
        axes[0, column].set_title(panel)
        at.set_xlabel("users K" if name == "K" else "heterogeneity d")
    figure.suptitle(f"Loads of one round over a broadcast downlink, mean of {draws} random networks")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(STYLES))
    return figure


def table(panel: str, rows: list[Row]) -> Table:
    shown = Table(title=f"{panel}: loads [IVs], up / down", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("at", *list(CURVES)[1:]):
        shown.add_column(column, justify="right")
    for row in rows:
        pairs = (f"{row[f'{curve} uplink']:.2f} / {row[f'{curve} downlink']:.2f}" for curve in list(CURVES)[1:])
        shown.add_row(f"{row['variable']}={row['value']:g}", *pairs)
    return shown


def savings(rows: list[Row]) -> Table:
    shown = Table(title="Saved of all time to send [%]", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("panel", "at", *SAVING):
        shown.add_column(column, justify="left" if column == "panel" else "right")
    for row in rows:
        shares = (f"{row[f'{curve} saved %']:.1f}" for curve in SAVING)
        shown.add_row(str(row["panel"]), f"{row['variable']}={row['value']:g}", *shares)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/loads"))
    parser.add_argument("--draws", type=int, default=50)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = measure(arguments.draws)
    with (arguments.folder / "loads.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, arguments.draws).savefig(arguments.folder / "loads.png", dpi=150)
    for panel in PANELS:
        Console().print(table(panel, [row for row in rows if row["panel"] == panel]))
    Console().print(savings(rows))


if __name__ == "__main__":
    main()
