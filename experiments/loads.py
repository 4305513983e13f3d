"""Loads in the settings of the paper's Figs. 3 and 4: its scheme, the optimum, and Theorem 2's bounds.

`python experiments/loads.py [folder] [--draws 50]` writes `loads.csv` and `loads.png` there and prints the table.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from hmtl.coding import Loads, bounds, loads
from hmtl.topology import Topology, any_r, heterogeneous

CURVES = {
    "uncoded": lambda t: loads(t, "uncoded"),
    "paper": lambda t: loads(t, "paper"),
    "optimal": lambda t: loads(t, "optimal"),
    "Theorem 2": bounds,
}
DIRECTIONS = {"uplink": "relays to server", "downlink": "server to relays"}
STYLES = {
    "uncoded": ("grey", ":"),
    "paper": ("tab:orange", "s-"),
    "optimal": ("tab:blue", "o-"),
    "Theorem 2": ("k", "--"),
}
Row = dict[str, float | str]


def any_3_of(H: int) -> Callable[[float, int], Topology]:
    return lambda K, seed: any_r(int(K), H, 3, seed)


PANELS = {  # name: (what varies, its values, the network for a value and a seed)
    "Fig. 3, H = 5": ("K", range(10, 101, 10), any_3_of(5)),
    "Fig. 3, H = 10": ("K", range(10, 101, 10), any_3_of(10)),
    "Fig. 4, K = 50, H = 4": ("d", np.arange(10) / 20, lambda d, seed: heterogeneous(50, 4, 2, d, seed)),
}


def measure(draws: int) -> list[Row]:
    """A row for each point of each panel: the mean over the draws of each load [IVs]."""
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
            rows.append({"panel": panel, "variable": name, "value": round(float(value), 2), **means})
    return rows


def draw(rows: list[Row], draws: int) -> Figure:
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, len(PANELS), sharex="col", sharey="col", squeeze=False)
    for column, (panel, (name, *_)) in enumerate(PANELS.items()):
        here = [row for row in rows if row["panel"] == panel]
        for line, (direction, what) in enumerate(DIRECTIONS.items()):
            at = axes[line, column]
            for curve, (color, style) in STYLES.items():
                values = [row[f"{curve} {direction}"] for row in here]
                at.plot([row["value"] for row in here], values, style, color=color, label=curve, markersize=4)
            at.set_ylabel(f"load, {what} [IVs]")
            at.set_ylim(bottom=0)
            at.grid(alpha=0.3)
        axes[0, column].set_title(panel)
        axes[1, column].set_xlabel("users K" if name == "K" else "heterogeneity d")
    figure.suptitle(f"Loads of one round, mean of {draws} random networks")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(STYLES))
    return figure


def table(rows: list[Row]) -> Table:
    shown = Table(title="Loads [IVs]: up / down", title_justify="left")
    for column in ("panel", "at", *list(CURVES)[1:]):
        shown.add_column(column, justify="left" if column == "panel" else "right")
    for row in rows:
        pairs = (f"{row[f'{curve} uplink']:.2f} / {row[f'{curve} downlink']:.2f}" for curve in list(CURVES)[1:])
        shown.add_row(str(row["panel"]), f"{row['variable']}={row['value']:g}", *pairs)
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
    Console().print(table(rows))


if __name__ == "__main__":
    main()
