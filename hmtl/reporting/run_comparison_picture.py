"""The picture that `report` writes: error against bits and against time, one curve per finished run."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from hmtl.reporting.run_comparison import FinishedRun, run_names
from hmtl.reporting.style import OKABE_ITO, Picture

MOST_COLORED = 7  # runs in colour, those with the smallest errors; the others are grey
MARKERS = "os^DvPX"  # distinguish the curves in grey print
LONGEST_NAME = 59
GREY = {"color": "0.8", "zorder": 1}


def comparison_picture(runs: Sequence[FinishedRun]) -> Picture:
    """Draw error against bits (left) and against time (right); dashed: the same run with plain forwarding."""
    figure = Picture(figsize=(11, 5), layout="constrained")
    bits, seconds = figure.subplots(1, 2, sharey=True)
    by_error = sorted(range(len(runs)), key=lambda n: runs[n].summary.figures.get(runs[n].error_name, math.inf))
    ranks = {n: rank for rank, n in enumerate(by_error[:MOST_COLORED])}
    for n, (name, run) in enumerate(zip(run_names(runs), runs, strict=True)):
        style = _style(ranks[n], name) if n in ranks else GREY
        _draw_run(bits, seconds, run, style, with_uncoded=n in ranks and run.summary.communicator != "uncoded")

    measures = sorted({run.error_measure.replace(",", " error:", 1) for run in runs})
    ylabel = ",\nor ".join(measures) + (",\n" if len(measures) > 1 else ", ") + "mean over users"
    bits.set(xlabel="sent between relays and server [Mbit]", ylabel=ylabel)
    seconds.set(xlabel="time, compute and communication [s]")
    for axes in (bits, seconds):
        _scale(axes)
    seconds.plot([], [], "k--", linewidth=1, label="dashed: the same run uncoded")
    if len(runs) > MOST_COLORED:
        seconds.plot([], [], color="0.8", label=f"the other {len(runs) - MOST_COLORED}, with larger errors")
    handles: dict[str, Artist] = {}
    for axes in (bits, seconds):
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _draw_run(bits: Axes, seconds: Axes, run: FinishedRun, style: dict[str, Any], with_uncoded: bool) -> None:
    errors = run.rounds[run.error_name].dropna()  # not every round is evaluated
    dashed = {"color": style["color"], "linestyle": "--", "linewidth": 1, "zorder": 2}

    def curve(axes: Axes, costs: pd.Series, style: dict[str, Any]) -> None:
        axes.plot(costs.cumsum()[errors.index], errors, **style)

    sends = run.mbit.any()
    if sends:
        curve(bits, run.mbit, style)
    else:  # nothing is sent: a level, and an entry of the legend
        bits.plot([], [], **style)
        bits.axhline(errors.iloc[-1], color=style["color"], linestyle=":")
    if sends and with_uncoded:
        curve(bits, run.uncoded_mbit, dashed)
    curve(seconds, run.rounds["compute_s"] + run.rounds["communication_s"], style)
    if with_uncoded:
        curve(seconds, run.rounds["uncoded_s"], dashed)


def _scale(axes: Axes) -> None:
    """Set a logarithmic horizontal axis with a grid and with numbers that do not overlap."""
    if axes.dataLim.minposx == math.inf:  # no run sends anything
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 100 * low:  # too few powers of ten, and the labels of all their multiples would overlap
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(4))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")


def _style(rank: int, name: str) -> dict[str, Any]:
    """Return color, marker and label of the curve of a run."""
    short = name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
    label = short.replace("$", r"\$")  # matplotlib would read a formula
    if label.startswith("_"):  # matplotlib hides such labels
        label = f"\u200b{label}"
    color = list(OKABE_ITO.values())[rank]
    return {"color": color, "label": label, "zorder": 3, "marker": MARKERS[rank], "markevery": 0.15, "markersize": 5}
