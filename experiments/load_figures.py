"""Figs. 3 and 4: loads between relays and server per round, and the transmission time that they save.

"all relays" is the optimum if all relays learn all IVs, as in the paper; Theorem 2 is its lower bound. "best
aggregators" is the optimum over the sets of relays that learn all IVs; `hmtl.coding.best_aggregators` proves it for a
broadcast downlink. "saved" is the share of transmission time over all hops by the paper's eq. (13) at equal link rates.
"""

from collections.abc import Sequence
from itertools import chain

import matplotlib
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
    in_parallel,
    lines,
    mean_rows,
    network,
    points_of,
    read_options,
    recorded,
    save,
    savings,
    unfinished,
)

from hmtl.coding import best_aggregators, bounds, loads
from hmtl.config.build import compose
from hmtl.reporting.console import Console
from hmtl.reporting.style import PAGE, PRINT, Picture

AXES = {"up": "load up [IVs]", "down": "load down [IVs]", "saved %": "time saved [%]"}


def draw(name: str, points: Sequence[tuple[str, Point]], seed: int) -> list[Row]:
    """Return the rows of all points and curves for the networks with this seed."""
    cfg, rows = compose(f"experiment={name}", "output_dir=."), []
    for panel, point in points:
        t = network(cfg, point, seed)
        choice = best_aggregators(t)
        assert choice.proven
        all_loads = {
            UNCODED: loads(t, "uncoded"),
            EQUAL: loads(t, "equal"),
            PAPER: loads(t, "paper"),
            ALL: loads(t, "optimal"),
            BEST: loads(t, aggregators=choice.nodes.setting),
            BOUND: bounds(t),
        }
        for curve, load in all_loads.items():
            saved = 100 * (1 - (2 * t.K + load.uplink + load.downlink) / (4 * t.K))
            row = {"panel": panel, **point, "curve": curve}
            rows.append({**row, "up": load.uplink, "down": load.downlink, "saved %": saved})
    return rows


@matplotlib.rc_context(PRINT)
def picture(x: str, rows: Sequence[Row]) -> Picture:
    """Draw a row of axes for each panel."""
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    figure = Picture(figsize=(PAGE, 2 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), len(AXES), sharex=True, sharey="col", squeeze=False)
    for axes_row, panel in zip(grid, panels, strict=True):
        panel_rows = [row for row in rows if row["panel"] == panel]
        for axes, (column, label) in zip(axes_row, AXES.items(), strict=True):
            lines(axes, x, panel_rows, column, CODED if column == "saved %" else STYLES)
            axes.set_ylabel(label)
            axes.set_title(panel)
    finish(figure, x)
    return figure


def main(name: str, description: str, x: str, panels: Panels) -> None:
    """Make the figure as the command line says."""
    options = read_options(description)
    if options.redraw:
        rows = recorded(name, options.out)
    else:
        points = points_of(panels, options.quick)
        with unfinished(name, options.quick) as memory:
            arguments = [(name, points, seed) for seed in range(options.draws)]
            draws = in_parallel(f"{name}, draws", options.jobs, memory, draw, arguments)
        rows = mean_rows(chain.from_iterable(draws), ["panel", *points[0][1], "curve"])
        save(name, options.out, rows)
    picture(x, rows).write(options.out / name, "png", "pdf")
    coded = [row for row in rows if row["curve"] in CODED]
    Console().table(savings("Saved transmission time [%]", x, coded, ["panel"], "saved %"))
