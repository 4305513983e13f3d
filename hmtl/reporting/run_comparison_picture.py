"""The picture that `report` writes: a measure against rounds, bits and seconds, and its final values at users."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from hmtl.errors import ConfigError, did_you_mean
from hmtl.reporting.run_comparison import SPREADS, Line, common_rates, falls, over_users
from hmtl.reporting.style import COLUMN, PAGE, PRINT, Picture, curve_styles

USERS = "users"
AXES = {
    "rounds": "round",
    "bits": "Mbit between relays\nand server",
    "seconds": "seconds of compute\nand communication",
    "communication": "seconds of\ncommunication",
}
"""Panels with curves: the cost that is the horizontal axis, and its label."""
USUAL_PANELS = ("rounds", "bits", "seconds", USERS)
HEIGHT = 2.2  # inches, of each panel
LABEL_WIDTH, LETTERS = 28, 11  # letters of a vertical label, and of a legend per inch
FEW = 3  # more lines have no curves with plain forwarding, which would hide them
WIDE = 5  # an axis is logarithmic if costs differ, or curves fall, by more than this factor


@matplotlib.rc_context(PRINT)
def comparison_picture(lines: Sequence[Line], panels: Sequence[str] = (), spread: str = "sd") -> Picture:
    """Draw a panel for each of `panels`, by default `USUAL_PANELS`.

    One panel is a column wide, several are together as wide as a page. Bands show a `spread` over seeds, one of
    `SPREADS`, which the legend names. With up to three lines, thin curves show the same rounds with plain forwarding,
    unless one of the runs forwards plainly.

    Raises:
        ConfigError: a panel is unknown, or is that of users, and the measure has no values at users.
    """
    possible = [*AXES, *[USERS] * any(len(run.users) for line in lines for run in line.runs)]
    if unknown := [panel for panel in panels if panel not in possible]:
        remedy = did_you_mean(unknown[0], possible, f"Choose from {', '.join(possible)}.")
        raise ConfigError(f"panels={','.join(panels)}: {unknown[0]!r} is not a panel of this measure. {remedy}")
    panels = panels or [panel for panel in USUAL_PANELS if panel in possible]
    columns = len(panels) if len(panels) < 4 else -(-len(panels) // 2)
    rows = -(-len(panels) // columns)
    figure = Picture(figsize=(COLUMN if columns == 1 else PAGE, HEIGHT * rows), layout="constrained")
    styles = curve_styles(len(lines))
    with_uncoded = len(lines) <= FEW and all(line.runs[0].summary.communicator != "uncoded" for line in lines)
    first: Axes | None = None  # of the panels with curves
    for n, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, n + 1, sharey=None if panel == USERS else first)
        axes.grid()
        if panel == USERS:
            _draw_users(axes, lines, styles)
            continue
        for line, style in zip(lines, styles, strict=True):
            _draw_curve(axes, line, panel, style, with_uncoded, spread)
        _scale(axes, panel, lines)
        axes.tick_params(labelleft=n % columns == 0 or not first)
        if n % columns == 0 or not first:
            axes.set_ylabel(_label(lines))
        first = first or axes
    means = pd.concat([line.curve["mean"] for line in lines])
    if first and falls(lines[0].runs[0].measure) and 0 < WIDE * means.min() < means.max():
        first.set_yscale("log")
        first.set_ylim(bottom=0.8 * means.min())  # bands may reach 0
        _label_powers(first.yaxis, (1, 2, 5))
    width = int(LETTERS * figure.get_figwidth())
    names = [textwrap.fill(line.name, width) for line in lines]
    handles = [figure.axes[0].plot([], [], label=name, **style)[0] for name, style in zip(names, styles, strict=True)]
    if with_uncoded and {*panels} - {"rounds", USERS} and any(line.curve["bits"].any() for line in lines):
        handles += figure.axes[0].plot([], [], "k", linewidth=0.7, label="the same with plain forwarding")
    varies = {*panels} - {USERS} and any(line.curve["sd"].notna().any() for line in lines)
    bands = [Patch(color="k", alpha=0.15, linewidth=0, label=f"± {SPREADS[spread]} over seeds")] if varies else []
    figure.fit_legend([*handles, *bands])
    return figure


def _label(lines: Sequence[Line]) -> str:
    """Return the label of the vertical axis of curves."""
    runs = [run for line in lines for run in line.runs]
    base, how = over_users(runs[0].measure)
    how = f", {how}" if f"{base}_weighted" in runs[0].summary.figures else ""
    return textwrap.fill(" or ".join(dict.fromkeys(run.described(how) for run in runs)), LABEL_WIDTH)


def _draw_curve(axes: Axes, line: Line, panel: str, style: dict[str, Any], with_uncoded: bool, spread: str) -> None:
    curve, color = line.curve, style["color"]
    cost, mean, around = curve[panel], curve["mean"], curve["sd"] / (len(line.runs) ** 0.5 if spread == "se" else 1)
    if not cost.any():  # nothing is sent: a level
        axes.axhline(mean.iloc[-1], **{key: value for key, value in style.items() if key != "marker"})
        return
    axes.plot(cost, mean, **style)
    if around.notna().any():
        axes.fill_between(cost, mean - around, mean + around, color=color, alpha=0.15, linewidth=0, zorder=2)
    if with_uncoded and panel != "rounds" and curve["bits"].any():
        axes.plot(curve[f"{panel} uncoded"], mean, color=color, linewidth=0.7, zorder=2.5)


def _draw_users(axes: Axes, lines: Sequence[Line], styles: Sequence[dict[str, Any]]) -> None:
    """Draw the final values at the users of all seeds: a point each, a box of their quartiles, and their mean."""
    for n, (line, style) in enumerate(zip(lines, styles, strict=True)):
        values, color = np.concatenate([run.users.to_numpy() for run in line.runs]), style["color"]
        spread = 0.5 * (np.arange(len(values)) * 0.618 % 1 - 0.5)  # the golden ratio keeps neighbors apart
        axes.scatter(values, n + spread, s=4, color=color, alpha=0.5, linewidths=0, zorder=2)
        low, high = np.quantile(values, (0.25, 0.75)) if len(values) else (np.nan, np.nan)
        axes.broken_barh([(low, high - low)], (n - 0.35, 0.7), facecolor="none", edgecolor=color, zorder=3)
        axes.plot(values.mean(), n, marker=style["marker"], markersize=6, color=color, zorder=4)
    axes.set_yticks([])
    axes.invert_yaxis()  # in the order of the legend
    axes.set_xlabel(lines[0].runs[0].described(" of each user"))


def _scale(axes: Axes, panel: str, lines: Sequence[Line]) -> None:
    """Set the label of a horizontal axis, which is logarithmic if the costs of runs differ by far."""
    rates = textwrap.fill(common_rates(lines), LABEL_WIDTH) if panel.startswith(("seconds", "comm")) else ""
    axes.set_xlabel(f"{AXES[panel]}\n{rates.strip()}".strip())
    ends = [cost for line in lines for cost in line.curve.filter(regex=f"^{panel}").iloc[-1] if cost > 0]
    if ends and max(ends) > WIDE * min(ends):
        axes.set_xscale("log")
        _label_powers(axes.xaxis, (1, 3))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=panel == "rounds"))
        axes.set_xlim(left=0)


def _label_powers(axis: Axis, subs: tuple[int, ...]) -> None:
    """Label the powers of ten of a logarithmic axis; if these are few, also their multiples `subs`."""
    low, high = axis.get_view_interval()
    if high < 300 * low:
        axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
