"""Figs. 3 and 4: loads between relays and server in a round, and what they save of its time to send.

"all relays" is the optimum where all relays learn all IVs, as the paper asks; Theorem 2 bounds it from below. "best
aggregators" is the optimum over who learns them, as `hmtl.coding.best_aggregators` proves it for a broadcast downlink.
Saved: of all time to send by the paper's (13), links alike.
"""

from collections.abc import Sequence
from itertools import chain

from figures import (
    ALL,
    BEST,
    BOUND,
    CODED,
    EQUAL,
    PAPER,
    STYLES,
    UNCODED,
    Panels,
    Point,
    Row,
    finish,
    kept,
    legend,
    lines,
    mean,
    network,
    options,
    points,
    save,
    savings,
    side_by_side,
)
from matplotlib.figure import Figure

from hmtl.coding import best_aggregators, bounds, loads
from hmtl.config.build import compose
from hmtl.reporting.console import Console

AXES = {
    "up": "load, relays to server [IVs]",
    "down": "load, server to relays [IVs]",
    "saved %": "time to send saved [%]",
}


def draw(name: str, points: Sequence[tuple[str, Point]], seed: int) -> list[Row]:
    """Rows of all points and curves, of the networks with this seed."""
    cfg, rows = compose(f"experiment={name}", "output_dir=."), []
    for panel, point in points:
        t = network(cfg, point, seed)
        choice = best_aggregators(t)
        assert choice.proven
        found = {
            UNCODED: loads(t, "uncoded"),
            EQUAL: loads(t, "equal"),
            PAPER: loads(t, "paper"),
            ALL: loads(t, "optimal"),
            BEST: loads(t, aggregators=choice.relays or "server"),
            BOUND: bounds(t),
        }
        for curve, load in found.items():
            saved = 100 * (1 - (2 * t.K + load.uplink + load.downlink) / (4 * t.K))
            here = {"panel": panel, **point, "curve": curve}
            rows.append({**here, "up": load.uplink, "down": load.downlink, "saved %": saved})
    return rows


def picture(title: str, x: str, rows: Sequence[Row]) -> Figure:
    """A line of axes for each panel."""
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    figure = Figure(figsize=(12, 0.9 + 3.1 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), len(AXES), sharex=True, sharey="col", squeeze=False)
    for at, panel in zip(grid, panels, strict=True):
        here = [row for row in rows if row["panel"] == panel]
        for axes, (column, label) in zip(at, AXES.items(), strict=True):
            lines(axes, x, here, column, CODED if column == "saved %" else STYLES)
            axes.set_ylabel(label)
            axes.set_title(panel)
    finish(figure, title, legend(grid[0, 0]), 3)
    return figure


def main(name: str, about: str, x: str, panels: Panels) -> None:
    """Make the figure as the command line says."""
    ask = options(about)
    wanted = points(panels, ask.quick)
    with kept(name, ask.quick) as memory:
        drawn = side_by_side(f"{name}, draws", ask, memory, draw, [(name, wanted, seed) for seed in range(ask.draws)])
    rows = mean(chain.from_iterable(drawn), ["panel", *wanted[0][1], "curve"])
    title = f"{name.replace('fig', 'Fig. ')}: loads of a round over a broadcast downlink, mean of {ask.draws} networks"
    save(name, ask.out, rows, picture(title, x, rows))
    coded = [row for row in rows if row["curve"] in CODED]
    Console().table(savings("Saved of all time to send [%]", x, coded, ["panel"], "saved %"))
