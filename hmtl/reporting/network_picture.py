"""The picture of a network: nodes and links, or with many users a map of how many each two relays share.

Shapes: K users, H relays.
"""

from collections.abc import Collection, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath

from hmtl.communication.accounting.ledger import TIERS, LinkLedger
from hmtl.reporting.style import OKABE_ITO, PAGE, PRINT, Picture, colors
from hmtl.topology import Moving, Topology

MAX_MARKED_USERS = 100  # that have a mark each
MAX_NUMBERED_USERS = 30  # users in a row whose numbers do not overlap
MAX_COUNTED_RELAYS, MAX_LABELED_RELAYS, MAX_HALF_LABELED_RELAYS = 12, 20, 40  # of a map with counts, all names, half
RELAY_AREA, USER_AREA = 260, 200  # squared points of marks that can hold a name
LONGEST_UPRIGHT = 3  # characters of a name below a column of a map
DARK, GRAY, FRAME = "#333333", "#8c8c8c", OKABE_ITO["vermilion"]
INSIDE: Any = {"xytext": (0, 0), "va": "center_baseline"}
LUMINANCE = np.array([0.3, 0.6, 0.1])  # of red, green, blue


@matplotlib.rc_context(PRINT)
def draw(
    network: Topology | Moving,
    aggregators: Collection[int] | None = None,
    role: str = "computes models",
    with_server: bool = False,
    ledger: LinkLedger | None = None,
) -> Picture:
    """Draw server, relays, users and links; beyond 100 users, how many users each two relays share.

    A link has the color of its relay. A layout is drawn to scale, with the server above it. Without layout, server,
    relays and users form three rows. A `Moving` network is drawn as in round 0, and the title says so.

    Args:
        network: the network to draw.
        aggregators: the relays that compute the models, drawn with a frame; empty: the server; None: no frame.
        role: what the legend says about nodes with a frame.
        with_server: whether the server has a frame beside these relays.
        ledger: the bits of links, which are then labeled with Mbit; None, or one without rounds: no labels.
    """
    topology = network.at(0)
    first = "; first contacts" if isinstance(network, Moving) else ""
    title = f"K = {topology.K} users, H = {topology.H} relays, mean r = {topology.r:.3g}{first}"
    framed = sorted(aggregators or ())
    server_framed = aggregators is not None and (with_server or not framed)
    mbit = [ledger.per_link(tier).sum(axis=1) / 1e6 for tier in TIERS] if ledger and ledger.rounds else []
    if ledger and mbit:
        title += f"\nMbit after {ledger.rounds} round{'s' * (ledger.rounds > 1)}: ↑ up, ↓ down"
    picture = _links if topology.K <= MAX_MARKED_USERS else _map
    return picture(topology, title, framed, server_framed, role, mbit)


def _arrows(up: float, *down: float) -> str:
    """Return the Mbit up and down a link in words; "" if it has carried nothing."""
    return " ".join(f"{arrow}{mbit:.3g}" for arrow, mbit in [("↑", up), *(("↓", each) for each in down)] if mbit > 0)


def _links(topology: Topology, title: str, framed: Sequence[int], server_framed: bool, role: str, mbit: Any) -> Picture:
    """Draw all nodes and links; `mbit` has the Mbit of the links of each tier, see `LinkLedger`."""
    K, H = topology.K, topology.H
    relay_names = [str(topology.names.relay(i)) for i in range(H)]
    user_names = [str(topology.names.user(k)) for k in range(K)]
    widths = [max(map(_width, names)) for names in (relay_names, user_names)]
    fits = [widths[0] < RELAY_AREA**0.5, widths[1] < USER_AREA**0.5 - 2]
    turned = not fits[0] and not topology.layout and widths[0] * H > 65 * PAGE  # names of relays would overlap
    rise = max(0.7, 0.3 + widths[0] / 90) if turned else 0.7  # of the server above relays, beside a unit of 1.25 inches
    if topology.layout:
        users, relays = topology.layout
        low, top = (f(np.concatenate(topology.layout), axis=0) for f in (np.min, np.max))
        server = np.array([(low[0] + top[0]) / 2, top[1] + 0.12 * (top - low).max()])
    else:
        users, relays = (np.column_stack([(np.arange(n) + 0.5) / n, np.full(n, y)]) for n, y in ((K, 0.0), (H, 1.0)))
        server = np.array([0.5, 1 + rise])
        center = np.arange(H) @ topology.G / topology.degrees.clip(min=1)
        users = users[np.argsort(np.lexsort((np.arange(K), center)))]  # ordered by relays, so that links are short
    hues = colors(H)
    figure = Picture(
        figsize=(PAGE, 7 if topology.layout else 2.95 + 1.5 * rise + 0.5 * bool(mbit)), layout="constrained"
    )
    axes = figure.add_subplot(aspect="equal" if topology.layout else "auto")
    axes.set_axis_off()
    axes.set(xticks=[], yticks=[], title=title)  # invisible ticks would still take time
    axes.margins(0.03, 0.12)
    to_server = [np.stack([relays[i], server]) for i in topology.active]
    axes.add_collection(LineCollection(to_server, colors=DARK, linestyles="dashed", linewidths=0.8, zorder=1))
    k, i = np.nonzero(topology.G.T)  # ordered by user, so that the links of one relay do not cover all others
    links, width = np.stack([relays[i], users[k]], axis=1), 1.0 if K <= MAX_NUMBERED_USERS else 0.7
    axes.add_collection(LineCollection(list(links), colors=hues[i], alpha=0.8, linewidths=width, zorder=1))
    size = USER_AREA if K <= MAX_NUMBERED_USERS else 60.0 if topology.layout else 20.0
    axes.scatter(users[:, 0], users[:, 1], size, "white", marker="o", edgecolors=DARK, linewidths=0.8, zorder=2)
    frames = [(relays[framed], 620, "s")] * bool(framed) + [(server[None], 1300, "^")] * server_framed
    for at, area, marker in frames:
        axes.scatter(at[:, 0], at[:, 1], area, "white", marker=marker, edgecolors=DARK, linewidths=1.6, zorder=2.5)
    axes.scatter(relays[:, 0], relays[:, 1], RELAY_AREA, hues, marker="s", edgecolors=DARK, linewidths=0.8, zorder=3)
    axes.scatter(server[:1], server[1:], 420, DARK, marker="^", zorder=3)
    patch = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    above: Any = {"xytext": (0, 14), "va": "bottom", "bbox": patch}  # over the link to the server
    below: Any = {"xytext": (0, -10), "va": "top", "rotation": 0 if topology.layout else 90}
    on_relay = [DARK if hue[:3] @ LUMINANCE > 0.5 else "white" for hue in hues]
    texts = [(relays, relay_names, above | {"rotation": 90 * turned}, on_relay)]
    if K <= MAX_NUMBERED_USERS:
        texts.append((users, user_names, below, [DARK] * K))
    common: Any = {"textcoords": "offset points", "ha": "center"}
    for (places, names, beside, inks), inside in zip(texts, fits, strict=False):
        for xy, name, ink in zip(places, names, inks, strict=True):
            axes.annotate(name, xy, color=ink if inside else DARK, zorder=4, **common | (INSIDE if inside else beside))
    if mbit:
        sent, up, down, last = mbit
        place = (10, 14) if turned else (0, 14 if fits[0] else 26)
        turned = turned or (H > MAX_COUNTED_RELAYS and not topology.layout)
        over = above | {"xytext": place, "rotation": 90 * turned}
        under = below | {"xytext": (0 if fits[len(texts) - 1] else 9, -10)}
        labels: list[Any] = [(server, _arrows(0, down[H]), {"xytext": (34, 0), "va": "center"})]
        labels += [(relays[i], _arrows(up[i], down[i]).replace(" ", " " if turned else "\n"), over) for i in range(H)]
        labels += [(relays[i], _arrows(0, last[K + i]), under | {"rotation": 0, "bbox": patch}) for i in range(H)]
        labels += [(users[k], _arrows(sent[k], last[k]), under) for k in range(K) if len(texts) > 1]
        for xy, arrows, where in labels:
            axes.annotate(arrows, xy, color=DARK, fontsize=7, **common | where)
    entries = [_entry("^", DARK, "server"), _entry("s", GRAY, "relay"), _entry("o", "white", "user")]
    entries += [_entry("s" if framed else "^", "white", role, 1.6)] if frames else []
    entries += [
        Line2D([], [], color=DARK, linestyle="dashed", linewidth=0.8, label="relay to server"),
        Line2D([], [], color=GRAY, linewidth=1, label="user to relay"),
    ]
    figure.fit_legend(entries, "outside lower center")
    return figure


def _width(text: str) -> float:
    """Return the width of a text of the pictures' size [points]."""
    return float(TextPath((0, 0), text.replace("$", "S"), size=PRINT["font.size"]).get_extents().width)


def _map(topology: Topology, title: str, framed: Sequence[int], server_framed: bool, role: str, mbit: Any) -> Picture:
    """Draw how many users each two relays both hear, and on the diagonal, how many a relay hears."""
    G, H = topology.G.astype(np.int64), topology.H
    counts = G @ G.T
    shared = np.where(np.eye(H), np.nan, counts)
    figure = Picture(figsize=(5.5, 4.6), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="relay", ylabel="relay", facecolor="lightgray")
    pale = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(0, 0.45, 256)))  # dark numbers stay readable
    image = axes.imshow(shared, cmap=pale, vmin=0)
    diagonal = "; diagonal: users of the relay" * (H <= MAX_COUNTED_RELAYS)
    figure.colorbar(image, ax=axes, label=f"users that both relays hear{diagonal}")
    for i in framed:
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=FRAME, linewidth=2, clip_on=False))
    if H <= MAX_COUNTED_RELAYS:
        for (i, j), count in np.ndenumerate(counts):
            axes.text(j, i, str(count), ha="center", va="center", color=DARK)
    if H <= MAX_HALF_LABELED_RELAYS:
        labeled = range(0, H, 1 if H <= MAX_LABELED_RELAYS else 2)
        names = [str(topology.names.relay(i)) for i in labeled]
        axes.set_xticks(labeled, names, rotation=90 if max(map(len, names)) > LONGEST_UPRIGHT else 0)
        arrows = [f"  {_arrows(mbit[1][i], mbit[2][i], mbit[3][topology.K + i])}" if mbit else "" for i in labeled]
        axes.set_yticks(labeled, [name + arrow for name, arrow in zip(names, arrows, strict=True)])
    entries = [_entry("s", "white", role, 1.6, FRAME)] * bool(framed)
    entries += [_entry("^", DARK, f"server {role}")] * server_framed
    figure.fit_legend(entries, "outside lower center")
    return figure


def _entry(marker: str, color: str, label: str, width: float = 1.0, edge: str = DARK) -> Line2D:
    """Return the entry of a node in a legend."""
    style: Any = {"markeredgecolor": edge, "markeredgewidth": width, "linestyle": "none", "markersize": 9}
    return Line2D([], [], marker=marker, color=color, label=label, **style)
