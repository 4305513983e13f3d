"""The picture that `report` writes: a measure against rounds, bits and seconds, and its final values at users."""

import textwrap
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from hmtl.errors import ConfigError
from hmtl.io.files import replacing
from hmtl.reporting.run_comparison import Line, over_users, short_names
from hmtl.reporting.style import COLUMN, PAGE, PRINT, Picture, colors

USERS = "users"
AXES = {
    "rounds": "round",
    "bits": "Mbit between relays\nand server",
    "seconds": "seconds of compute\nand communication",
    "communication": "seconds of\ncommunication",
}
"""Panels with curves: the cost that is the horizontal axis, and its label."""
USUAL_PANELS = ("rounds", "bits", "seconds", USERS)
HEIGHT = 2.3  # inches, of each panel
MARKERS = "os^DvPX"  # distinguish the curves in grey print
LONGEST_NAME, LONGEST_LABEL, LONGEST_TICK = 59, 28, 20
LETTERS = 16  # of a legend, per inch
WIDE = 5  # an axis is logarithmic if costs differ, or curves fall, by more than this factor


def write_picture(picture: Picture, path: Path) -> None:
    """Write a picture as PNG and as PDF; the same picture gives the same bytes."""
    with matplotlib.rc_context(PRINT):
        for ending, metadata in ((".png", {}), (".pdf", {"CreationDate": None})):
            with replacing(path.with_name(path.name + ending)) as file:
                picture.savefig(file, format=ending[1:], dpi=300, metadata=metadata)


@matplotlib.rc_context(PRINT)
def comparison_picture(lines: Sequence[Line], panels: Sequence[str] = ()) -> Picture:
    """Draw a panel for each of `panels`, by default `USUAL_PANELS`.

    One panel is a column wide, several are together as wide as a page. Bands show a standard deviation over seeds, and
    dashed curves the same rounds with plain forwarding.

    Raises:
        ConfigError: a panel is unknown, or is that of users, and the measure has no values at users.
    """
    styles = _styles(lines)
    possible = [*AXES, *[USERS] * any(len(run.users) for line in lines for run in line.runs)]
    if unknown := [panel for panel in panels if panel not in possible]:
        raise ConfigError(
            f"panels={','.join(panels)}: {unknown[0]!r} is not a panel of this measure. Choose from "
            f"{', '.join(possible)}."
        )
    panels = panels or [panel for panel in USUAL_PANELS if panel in possible]
    size = (COLUMN if len(panels) == 1 else PAGE, HEIGHT)
    figure = Picture(figsize=size, layout="constrained")
    first: Axes | None = None  # of the panels with curves
    for n, panel in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), n, sharey=None if panel == USERS else first)
        axes.grid()
        axes.set_axisbelow(True)
        if panel == USERS:
            _draw_users(axes, lines, styles)
            continue
        for line, style in zip(lines, styles, strict=True):
            _draw_curve(axes, line, panel, style)
        _scale(axes, panel, lines)
        if len(panels) == 1:
            axes.set_xlabel(AXES[panel].replace("\n", " "))
        if first:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(_label(lines))
        first = first or axes
    means = pd.concat([line.curve["mean"] for line in lines])
    if first and _falls(lines[0]) and 0 < WIDE * means.min() < means.max():
        first.set_yscale("log")
        first.set_ylim(bottom=0.8 * means.min())  # bands may reach 0
        _label_powers(first.yaxis, (1, 2, 5))
    if set(panels) != {USERS} or not figure.axes[0].get_xticks().size:  # lines have no names yet
        _draw_legend(figure, lines, styles, panels)
    return figure


def _label(lines: Sequence[Line]) -> str:
    """Return the label of the vertical axis of curves; the caption of a report says what an error is."""
    runs = [run for line in lines for run in line.runs]
    base, how = over_users(runs[0].measure)
    kinds = sorted({run.described for run in runs})
    name = base.replace("_", " ") if len(kinds) == 1 else " or ".join(kinds)
    if f"{base}_weighted" not in runs[0].summary.figures:
        return name
    space = " " if len(name) < LONGEST_LABEL / 2 else "\n"
    return f"{textwrap.fill(name, LONGEST_LABEL)},{space}{how}"


def _draw_curve(axes: Axes, line: Line, panel: str, style: dict[str, Any]) -> None:
    curve, color = line.curve, style["color"]
    cost, mean, sd = curve[panel], curve["mean"], curve["sd"]
    if not cost.any():  # nothing is sent: a level
        axes.axhline(mean.iloc[-1], color=color, linestyle=":", zorder=style["zorder"])
        return
    axes.plot(cost, mean, **style)
    if sd.notna().any():
        axes.fill_between(cost, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0, zorder=style["zorder"] - 1)
    if _has_uncoded(line, panel):
        axes.plot(curve[f"{panel} uncoded"], mean, color=color, linestyle="--", linewidth=0.8, zorder=2)


def _has_uncoded(line: Line, panel: str) -> bool:
    """Return whether a panel shows the same rounds with plain forwarding beside a line."""
    sent = line.runs[0].costs["bits"].any() and line.runs[0].summary.communicator != "uncoded"
    return bool(sent and panel not in ("rounds", USERS))


def _draw_users(axes: Axes, lines: Sequence[Line], styles: Sequence[dict[str, Any]]) -> None:
    """Draw the final values of the measure at the users of all seeds: a point each, and a box of their quartiles."""
    for n, (line, style) in enumerate(zip(lines, styles, strict=True)):
        values, color = np.concatenate([run.users.to_numpy() for run in line.runs]), style["color"]
        spread = 0.5 * (np.arange(len(values)) * 0.618 % 1 - 0.5)  # the golden ratio keeps neighbours apart
        axes.scatter(n + spread, values, s=3, color=color, alpha=0.4, linewidths=0, zorder=2)
        box: Any = {f"{part}props": {"color": color} for part in ("box", "median", "whisker", "cap")}
        axes.boxplot(values, positions=[n], widths=0.7, showfliers=False, manage_ticks=False, zorder=3, **box)
    names = [_shown(name) for name in short_names(lines)[1]]
    short = max(map(len, names)) <= LONGEST_TICK
    axes.set_xticks(range(len(names)) if short else [], names if short else [], rotation=30, ha="right")
    axes.set_ylabel(f"{over_users(lines[0].runs[0].measure)[0].replace('_', ' ')}, each user")
    axes.grid(visible=False, axis="x")


def _scale(axes: Axes, panel: str, lines: Sequence[Line]) -> None:
    """Set the label of a horizontal axis, which is logarithmic if the costs of runs differ by far."""
    axes.set_xlabel(AXES[panel])
    ends = [cost for line in lines for cost in line.curve.filter(regex=f"^{panel}").iloc[-1] if cost > 0]
    if ends and max(ends) > WIDE * min(ends):
        axes.set_xscale("log")
        _label_powers(axes.xaxis, (1, 3))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=panel == "rounds"))
        axes.set_xlim(left=0)


def _label_powers(axis: Axis, subs: tuple[int, ...]) -> None:
    """Label the powers of ten of a logarithmic axis; if these are few, also their multiples `subs`."""
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _draw_legend(
    figure: Picture, lines: Sequence[Line], styles: Sequence[dict[str, Any]], panels: Sequence[str]
) -> None:
    axes = figure.axes[0]
    handles = [axes.plot([], [], **style)[0] for style in styles]
    if any(_has_uncoded(line, panel) for line in lines for panel in panels):
        handles += axes.plot([], [], "k--", linewidth=0.8, label="the same, uncoded")
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, int(LETTERS * figure.get_figwidth() / (longest + 8)))  # 8 letters stand for marker and gap
    title = short_names(lines)[0] or None
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=columns, frameon=False)


def _styles(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return colour, marker and label of the curve of each line."""
    names = map(_shown, short_names(lines)[1])
    each = zip(colors(len(lines)), names, cycle(MARKERS), strict=False)
    how = {"zorder": 3, "markevery": 0.15, "markersize": 3}
    return [{"color": color, "label": label, "marker": marker, **how} for color, label, marker in each]


def _falls(line: Line) -> bool:
    """Return whether the measure of a line is the better the smaller it is."""
    return over_users(line.runs[0].measure)[0].endswith(("error", "loss", "gap", "primal"))


def _shown(name: str) -> str:
    """Return a name as matplotlib shows it unchanged, or its end if it is long."""
    text = (name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}").replace("$", r"\$")  # no formula
    return f"\u200b{text}" if text.startswith("_") else text  # matplotlib hides such labels
