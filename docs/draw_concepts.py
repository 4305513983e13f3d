"""Draw the pictures of README and guide, with loads and errors from hmtl: `python docs/draw_concepts.py`."""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from hmtl.coding import loads
from hmtl.communication.codecs.few_bit_blocks import QUANTIZERS
from hmtl.reporting.style import OKABE_ITO, Picture
from hmtl.topology import symmetric

NETWORK = symmetric(K=3, H=3, r=2)
PLAIN, LEARNS, EDGE = "#eef3f8", "#fbe3b3", "#33556b"
WIDTH = 7.4  # inches, as wide as a page of the site
X, Y = (0.48, 2.08, 3.7, 5.32, 6.92), (2.2, 1.4, 0.6)  # users, relays, server, relays and users; 0, 1 and 2
INDEX = "₀₁₂"
HEARD = [[INDEX[k] for k in NETWORK.N(i)] for i in range(3)]
Point = tuple[float, float]


def canvas(height: float) -> tuple[Picture, Axes]:
    """Return a picture of this height, and axes in inches."""
    figure = Picture(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def write(axes: Axes, at: Point, text: str, patch: str = "none") -> None:
    box = {"boxstyle": "square,pad=0.1", "facecolor": patch, "edgecolor": "none"}
    axes.text(*at, text, ha="center", va="center", fontsize=10, bbox=box)


def box(axes: Axes, at: Point, text: str, color: str = PLAIN, width: float = 0.84, edge: str = EDGE) -> None:
    height = 0.1 + 0.17 * len(text.splitlines())
    corner = at[0] - width / 2, at[1] - height / 2
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.04", fc=color, ec=edge))
    write(axes, at, text)


def arrow(axes: Axes, start: Point, end: Point, text: str = "", color: str = EDGE) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 10, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=color, **style))
    write(axes, ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2), text, "white")


def coding() -> Picture:
    """Draw the idea: relays overhear users, one combination goes up and down, and what a relay heard cancels."""
    figure, axes = canvas(3.4)
    users, hues = "abc", (OKABE_ITO["blue"], OKABE_ITO["vermilion"], OKABE_ITO["green"])
    titles = (
        "1. users send once\neach is heard by two relays",
        "2. up: 1 message, not 3\nrelay 2 adds what others missed",
        "3. down: 1 message, not 3\nrelays cancel what they heard",
    )
    for n, (title, middle) in enumerate(zip(titles, (1.24, 3.7, 6.16), strict=True)):
        places = (middle - 0.78, middle, middle + 0.78)
        write(axes, (middle, 3.1), title)
        box(axes, (middle, 2.55), "server")
        for i, x in enumerate(places):
            heard, learns = NETWORK.N(i), n == 2 and i < 2
            for k in heard:
                arrow(axes, (places[k], 0.43), (x, 1.1), color=hues[k] if n == 0 else "#d0d0d0")
            if n == 1 and i == 2:
                arrow(axes, (x, 1.68), (middle, 2.36))
            if learns:
                arrow(axes, (middle, 2.36), (x, 1.85))
            missed = next(user for k, user in enumerate(users) if k not in heard)
            text = f"relay {i}\nhas {', '.join(users[k] for k in heard)}" + f"\nfinds {missed}" * learns
            box(axes, (x, 1.4 + 0.085 * learns), text, LEARNS if learns else PLAIN, 0.62)
        for x, user, hue in zip(places, users, hues, strict=True):
            box(axes, (x, 0.25), f"user {user}", "white", 0.62, hue)
        if n:
            write(axes, (middle + (0.75, 0.35)[n - 1], 2.1), "b ⊕ c")
    return figure


def hops(row: str, captions: str, up: str, learned: str, back: str, methods: str = "|" * 4) -> Picture:
    """Draw the four hops of a round; `|` separates the texts of hops, of relays or of columns."""
    figure, axes = canvas(3.3)
    sent, known, returned = up.split("|"), learned.split("|"), back.split("|")
    server, relay = (PLAIN, LEARNS) if row == "v" else (LEARNS, PLAIN)
    for n, caption in enumerate(captions.split("|")):
        write(axes, ((X[n] + X[n + 1]) / 2, 3.05), f"{n + 1}. {caption}")
    for x, names in zip(X, methods.split("|"), strict=True):
        write(axes, (x, 0.12), names)
    box(axes, (X[2], Y[1]), f"server\n{known[0]}", server)
    for k, i in enumerate((0, 0, 1)):
        box(axes, (X[0], Y[k]), f"user {k}\nsends {row}{INDEX[k]}")
        box(axes, (X[1], Y[k]), f"relay {k}\nhears {row}{f', {row}'.join(HEARD[k])}")
        box(axes, (X[4], Y[k]), f"user {k}")
        for to in NETWORK.G[:, k].nonzero()[0]:
            arrow(axes, (X[0] + 0.5, Y[k]), (X[1] - 0.5, Y[to]))
        if sent[k]:
            arrow(axes, (X[1] + 0.5, Y[k]), (X[2] - 0.5, Y[1]), sent[k])
        arrow(axes, (X[3] + 0.5, Y[i]), (X[4] - 0.5, Y[k]), returned[k])
    for i in (0, 1):
        arrow(axes, (X[2] + 0.5, Y[1]), (X[3] - 0.5, Y[i]))
        box(axes, (X[3], Y[i]), f"relay {i}\n{known[i + 1]}", relay)
    return figure


def aggregators() -> Picture:
    """Draw who aggregates, and what relays then send up."""
    figure, axes = canvas(2.5)
    choices = ("the server", (), "111"), ("all relays", (0, 1, 2), "½½½"), ("relays 0 and 1", (0, 1), "  1")
    for middle, (who, relays, up) in zip((1.24, 3.7, 6.16), choices, strict=True):
        load = loads(NETWORK, "optimal" if relays else "uncoded", aggregators=relays or "all")
        write(axes, (middle, 2.25), f"who aggregates: {who}\n{load.uplink:g} up, {load.downlink:g} down")
        for i, x in enumerate((middle - 0.76, middle, middle + 0.76)):
            if up[i] != " ":
                arrow(axes, (x, 0.55), (middle, 1.43), up[i])
            box(axes, (x, 0.3), f"relay {i}\nv{', v'.join(HEARD[i])}", LEARNS if i in relays else PLAIN, 0.6)
        box(axes, (middle, 1.6), "server", PLAIN if relays else LEARNS)
    return figure


def feedback() -> Picture:
    """Draw error feedback, and the error of a sum of updates with and without it."""
    figure, axes = canvas(2.4)
    for x, text in ((0.48, "update"), (2.2, "round to\n4 bits"), (3.95, "aggregators")):
        box(axes, (x, 1.7), text)
    write(axes, (1.34, 1.7), "+")
    box(axes, (1.34, 0.6), "error")
    for start, end, text in ((0.98, 1.24, ""), (1.44, 1.7, ""), (2.7, 3.45, "IV")):
        arrow(axes, (start, 1.7), (end, 1.7), text)
    arrow(axes, (2.2, 1.42), (1.86, 0.65))
    arrow(axes, (1.34, 0.8), (1.34, 1.6), "next round")
    plot = figure.add_axes((0.69, 0.2, 0.3, 0.72), xlabel="updates", ylabel="error of their sum", ylim=(0, 1))
    for name, share, color, label in (("without", 0, "vermilion", (2, 0.8)), ("with", 1, "blue", (12, 0.18))):
        error, errors, sent = torch.zeros(1, 64), [], torch.empty(1, 64)
        for update in torch.randn(40, 1, 64, generator=torch.Generator().manual_seed(0)):
            QUANTIZERS["int4"].decode(QUANTIZERS["int4"].encode(update + share * error), sent)
            error = error + update - sent
            errors.append(error.norm() / update.norm())
        plot.plot(range(1, 41), errors, color=OKABE_ITO[color])
        plot.text(*label, f"{name} feedback", color=OKABE_ITO[color])
    plot.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    sends = "users send\nupdates|relays send what\nothers missed|the server\nbroadcasts|aggregators\nreturn models"
    adds = "users send\nterms|relays add terms\nof users|the server adds\nand broadcasts|relays broadcast\nthe sum"
    coded = "v", sends, "||v₁ + v₂", "v₁ + v₂|finds v₂|finds v₁", "w₀|w₁|w₂"
    pictures = {"coding": coding(), "round": hops(*coded), "aggregators": aggregators(), "feedback": feedback()}
    pictures["flow"] = hops(*coded, "update, rows|report, up|attend, down|learn, aggregate, deliver|conclude")
    pictures["sums"] = hops("t", adds, "t₀ + t₁||t₂", "learns s|s|s", "s|s|s")
    for name, picture in pictures.items():
        picture.savefig(Path(__file__).parent / "static" / f"{name}.png", dpi=160)
