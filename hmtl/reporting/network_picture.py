"""The picture of a network.

Shapes: K users, H relays, n marks for users; a mark is one user or, in a large network, a group of users.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hmtl.reporting.style import Picture, colors
from hmtl.topology import Moving, Topology

LONGEST_INSIDE = 4  # characters that fit a mark
MOST_NUMBERED = 40  # with more marks in a row, their numbers would overlap
ROW = 640.0  # points, width of all marks side by side
DARK, GREY, USER = "#333333", "#8c8c8c", "#ffffff"
LUMINANCE = np.array([0.3, 0.6, 0.1])  # of red, green, blue


def draw(
    network: Topology | Moving,
    aggregators: Collection[int] | None = None,
    role: str = "computes models",
    with_server: bool = False,
) -> Picture:
    """Draw server, relays, users and links; a link has the colour of its relay.

    A layout is drawn to scale, with the server above it. Without layout, server, relays and users form three rows. With
    more than 40 users, those with the same relays share a mark, which is labelled with their number if there are at
    most 40 marks. Absent users have no links. A `Moving` network is drawn as in round 0, and the title says so.

    Args:
        network: the network to draw.
        aggregators: the relays that compute the models, drawn with a frame; empty: the server; None: no frame.
        role: what the legend says about nodes with a frame.
        with_server: whether the server has a frame beside these relays.
    """
    topology, H = network.at(0), network.H
    heard, labels, sizes, kind = _marks(topology)
    if topology.layout:
        users, relays = topology.layout
        low, top = (f(np.concatenate(topology.layout), axis=0) for f in (np.min, np.max))
        server = np.array([(low[0] + top[0]) / 2, top[1] + 0.12 * (top - low).max()])
    else:
        users, relays, server = _row(len(labels), 0.0), _row(H, 1.0), np.array([0.5, 1.7])
    hues = colors(H)

    figure = Picture(figsize=(7.5, 8.5) if topology.layout else (10, 5), layout="constrained")
    axes = figure.add_subplot(aspect="equal" if topology.layout else "auto")
    axes.set_axis_off()
    axes.set(xticks=[], yticks=[])  # invisible ticks would still take time
    axes.margins(0.03, 0.08)
    first = "; first contacts" if isinstance(network, Moving) else ""
    axes.set_title(f"K = {topology.K} users, H = {H} relays, mean r = {topology.r:.3g}{first}")
    to_server = [np.stack([relays[i], server]) for i in topology.active]
    axes.add_collection(LineCollection(to_server, colors=DARK, linestyles="dashed", linewidths=0.8, zorder=1))
    mark, i = np.nonzero(heard.T)  # ordered by mark, so that the links of one relay do not cover all others
    links, thin = list(np.stack([relays[i], users[mark]], axis=1)), min(0.9, 10 / max(1, len(i)) ** 0.5)
    axes.add_collection(LineCollection(links, colors=hues[i], alpha=thin, linewidths=min(1, 5 * thin), zorder=1))
    edge = 0.8 if len(labels) < 400 else 0.4
    axes.scatter(users[:, 0], users[:, 1], sizes, USER, marker="o", edgecolors=DARK, linewidths=edge, zorder=2)
    frame = "s" if aggregators else "^"
    if aggregators is not None:
        framed = [(relays[sorted(aggregators)], 620, "s")] if aggregators else []
        framed += [(server[None], 1300, "^")] if with_server or not aggregators else []
        for at, size, marker in framed:
            axes.scatter(at[:, 0], at[:, 1], size, "white", marker=marker, edgecolors=DARK, linewidths=1.6, zorder=2.5)
    axes.scatter(relays[:, 0], relays[:, 1], 260, hues, marker="s", edgecolors=DARK, linewidths=0.8, zorder=3)
    axes.scatter(server[:1], server[1:], 420, DARK, marker="^", zorder=3)
    relay_labels = [str(topology.names.relay(i)) for i in range(H)]
    texts = [
        (xy, label, DARK if hue[:3] @ LUMINANCE > 0.5 else "white")
        for xy, label, hue in zip(relays, relay_labels, hues, strict=True)
    ]
    if len(labels) <= MOST_NUMBERED:
        texts += [(xy, label, DARK) for xy, label in zip(users, labels, strict=True)]
    inside = [topology.layout or max(map(len, each), default=0) <= LONGEST_INSIDE for each in (relay_labels, labels)]
    for n, (xy, label, color) in enumerate(texts):
        place: dict[str, Any] = {"xytext": (0, 0), "va": "center_baseline", "color": color}
        if n < H and not inside[0]:
            above = {"xytext": (0, 14), "va": "bottom"}  # above the frame, and over the link to the server
            place = {**above, "color": DARK, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}
        elif n >= H and not inside[1]:
            place = {"xytext": (0, -10), "va": "top", "rotation": 90, "color": DARK}
        axes.annotate(label, xy, textcoords="offset points", ha="center", fontsize=7, zorder=4, **place)
    entries = [
        Line2D([], [], marker="^", color=DARK, linestyle="none", markersize=11, label="server"),
        Line2D([], [], marker="s", color=GREY, markeredgecolor=DARK, linestyle="none", markersize=9, label="relay"),
        Line2D([], [], marker="o", color=USER, markeredgecolor=DARK, linestyle="none", markersize=9, label=kind),
        Line2D([], [], color=DARK, linestyle="dashed", linewidth=0.8, label="relay to server"),
        Line2D([], [], color=GREY, linewidth=1, label="user to relay"),
    ]
    if aggregators is not None:
        computes = Line2D([], [], marker=frame, color="white", markeredgecolor=DARK, linestyle="none", markersize=12)
        computes.set(markeredgewidth=1.6, label=role)
        entries.insert(3, computes)
    figure.legend(
        handles=entries,
        loc="outside lower center",
        ncols=len(entries) if kind == "user" and not topology.layout else 3,
        frameon=False,
    )
    return figure


def _marks(topology: Topology) -> tuple[NDArray[np.uint8], list[str], NDArray[np.float64], str]:
    """Return the users' marks: which relay hears them [H, n], labels, areas [pt²], legend entry."""
    if topology.layout:
        size = 180.0 if topology.K <= MOST_NUMBERED else max(3.0, min(60.0, 6000 / topology.K))
        return (
            topology.G,
            [str(topology.names.user(k)) for k in range(topology.K)],
            np.full(topology.K, size),
            "user",
        )
    together = topology.K > MOST_NUMBERED
    groups = [*topology.types.values(), topology.I(0)] if together else [(k,) for k in range(topology.K)]
    groups = [users for users in groups if users]
    centre = np.arange(topology.H) @ topology.G / topology.degrees.clip(min=1)
    groups.sort(key=lambda users: (centre[users[0]], users))  # ordered by relays, so that links are short
    kind = "users with the same relays" + ", × number" * (len(groups) <= MOST_NUMBERED) if together else "user"
    heard = topology.G[:, [users[0] for users in groups]]
    labels = [f"×{len(users)}" if together else str(topology.names.user(users[0])) for users in groups]
    longest = max(map(len, labels)) if together else LONGEST_INSIDE
    wide = min(4.8 * longest + 1, ROW / len(groups))  # points, fits the longest number
    return heard, labels, np.full(len(groups), wide**2 if together else 200.0), kind


def _row(n: int, height: float = 0.0) -> NDArray[np.float64]:
    """Return n evenly spaced points [n, 2] with abscissas in (0, 1)."""
    return np.column_stack([(np.arange(n) + 0.5) / n, np.full(n, height)])
