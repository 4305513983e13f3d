"""Draw the idea of coding, by three users, each of whom two of three relays hear: `python docs/draw_coding.py`."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PLACES = (0.17, 0.5, 0.83)  # of users and relays
HEIGHTS = (0.0, 1.0, 2.0)  # of users, relays, server
USERS = ("a", "b", "c")
HEARD = ((0, 1), (1, 2), (0, 2))  # the users whom each relay hears
HUES = ("#0072b2", "#e69f00", "#009e73")
DARK, GREY, PALE = "#333333", "#8a8a8a", "#d8d8d8"
TITLES = (
    "1  Relays overhear\neach user sends once, two relays hear it",
    "2  Up: 2 messages, not 3\nthe server adds them: $a \\oplus b \\oplus c$",
    "3  Down: 1 message, not 3\neach relay cancels what it heard",
)
SENT = {0: "$a \\oplus b$", 1: "$c$"}  # by relays, up


def stage(axes: Axes, n: int) -> None:
    """Draw the nodes, and the links that step n uses."""
    users, relays, server = HEIGHTS
    for relay, heard in enumerate(HEARD):
        for k in heard:
            hue, width = (HUES[k], 2.0) if n == 0 else (PALE, 1.0)
            axes.plot((PLACES[k], PLACES[relay]), (users, relays), color=hue, linewidth=width, zorder=1)
        if n == 2 or (n == 1 and relay in SENT):
            ends = ((PLACES[relay], relays + 0.18), (0.5, server - 0.16))
            start, end = ends if n == 1 else ends[::-1]
            arrow = {"arrowstyle": "-|>", "color": DARK, "linewidth": 1.6, "mutation_scale": 14}
            axes.annotate("", end, start, arrowprops=arrow)
        if n == 1 and relay in SENT:
            _label(axes, (PLACES[relay] + 0.5) / 2, (relays + server) / 2, SENT[relay], 14)
        known = ", ".join(USERS[k] for k in heard)
        missed = next(k for k in range(3) if k not in heard)
        text = f"has {known}" if n < 2 else f"has {known}, gets {USERS[missed]}"
        axes.text(PLACES[relay], relays - 0.24, text, ha="center", fontsize=10, color=DARK, zorder=4, bbox=WHITE)
        axes.scatter(PLACES[relay], relays, 330, "white", marker="s", edgecolors=DARK, linewidths=1.2, zorder=3)
        axes.text(PLACES[relay], relays, str(relay + 1), ha="center", va="center", fontsize=11, zorder=4)
    for k, user in enumerate(USERS):
        axes.scatter(PLACES[k], users, 330, HUES[k], marker="o", edgecolors=DARK, linewidths=1.2, zorder=3)
        axes.text(PLACES[k], users, f"${user}$", ha="center", va="center", fontsize=14, color="white", zorder=4)
    axes.scatter(0.5, server, 420, DARK, marker="^", zorder=3)
    if n == 2:
        _label(axes, 0.5, (relays + server) / 2, "$a \\oplus b \\oplus c$", 14)
    axes.set(xlim=(0, 1), ylim=(-0.25, 2.25))
    axes.set_title(TITLES[n], fontsize=11)
    axes.set_axis_off()


WHITE = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}


def _label(axes: Axes, x: float, y: float, text: str, size: int) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=size, zorder=4, bbox=WHITE)


def draw(target: Path) -> None:
    """Write the picture to `target`."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    for n, axes in enumerate(figure.subplots(1, 3)):
        stage(axes, n)
    names = {"server": ("^", DARK), "relay": ("s", "white"), "user": ("o", GREY)}
    handles = [
        axes.scatter([], [], 110, hue, marker=marker, edgecolors=DARK, label=name)
        for name, (marker, hue) in names.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    draw(Path(__file__).parent / "static" / "coding.png")
