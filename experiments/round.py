"""Draw what one round sends between relays and server: `python experiments/round.py`.

Twenty users, each heard by three of five relays, train for one round by plain forwarding, coded, and by sums. The
numbers are the payload that the ledger counted on each link, in IVs. Writes round.png to experiments/results/.
"""

import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS
from hmtl.config.build import build, compose
from hmtl.reporting.style import PAGE, PRINT, Picture, colors

PANELS = {  # settings by title
    "Plain forwarding": "communicator=uncoded",
    "Coded: the same models": "",
    "Sums, if they suffice": "regularizer=mean communicator=sums",
}
RESULTS = Path(__file__).parent / "results"
HEIGHTS = (0.0, 1.0, 2.0)  # of users, relays, server
DARK, GRAY = "#333333", "#b0b0b0"
PATCH = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}


def panel(axes: Axes, title: str, settings: str) -> None:
    """Train for one round, and draw how much each relay sent."""
    with tempfile.TemporaryDirectory() as folder:
        run = build(compose(*settings.split(), "rounds=1", "logger=none", f"output_dir={folder}"))
        run.trainer.fit()
    communicator = run.trainer.communicator
    t, ledger, V = communicator.topology.at(0), communicator.ledger, communicator.V_bits
    up = ledger.per_link(RELAYS_TO_SERVER, 0)[:, 0] / V
    down = ledger.bits(SERVER_TO_RELAYS, round=0).payload / V
    users, relays, (server,) = (
        np.column_stack([(np.arange(n) + 0.5) / n, np.full(n, height)])
        for n, height in zip((t.K, t.H, 1), HEIGHTS, strict=True)
    )
    hues, (i, k) = colors(t.H), np.nonzero(t.G)
    heard = np.stack([relays[i], users[k]], axis=1)
    axes.add_collection(LineCollection(list(heard), colors=hues[i], linewidths=0.5, alpha=0.6, zorder=1))
    to_server = np.stack([np.tile(server, (t.H, 1)), relays], axis=1)
    widths = np.where(up > 0, 0.8 + up, 0.0)
    axes.add_collection(LineCollection(list(to_server), colors=GRAY, linewidths=widths, zorder=1))
    axes.scatter(users[:, 0], users[:, 1], 20, "white", marker="o", edgecolors=DARK, linewidths=0.8, zorder=3)
    axes.scatter(relays[:, 0], relays[:, 1], 80, hues, marker="s", edgecolors=DARK, linewidths=0.8, zorder=3)
    axes.scatter(server[:1], server[1:], 160, DARK, marker="^", zorder=3)
    for at, IVs in zip(0.2 * server + 0.8 * relays, up, strict=True):  # near the relays, where links are apart
        if IVs:
            axes.text(*at, f"{IVs:.2g}", ha="center", va="center", zorder=4, bbox=PATCH)
    axes.text(0.5, 2.25, f"{up.sum():.2g} up, {down:.2g} down", ha="center", fontweight="bold")
    axes.set(xlim=(0, 1), ylim=(-0.2, 2.5))
    axes.set_title(title)
    axes.set_axis_off()


@matplotlib.rc_context(PRINT)
def main() -> Picture:
    figure = Picture(figsize=(PAGE, 2.8), layout="constrained")
    for axes, (title, settings) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        panel(axes, title, settings)
    entries = [
        Line2D(
            [], [], marker=marker, color="none", markerfacecolor=face, markeredgecolor=DARK, markersize=8, label=label
        )
        for marker, face, label in (("^", DARK, "server"), ("s", GRAY, "relay"), ("o", "white", "user"))
    ]
    entries.append(Line2D([], [], color=GRAY, linewidth=4, label="IVs that a relay sends up in a round"))
    figure.fit_legend(entries, "outside lower center")
    figure.write(RESULTS / "round", "png", dpi=120)
    return figure


if __name__ == "__main__":
    main()
