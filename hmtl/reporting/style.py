"""The style of pictures: figures that a notebook shows, and colours for colour-blind readers and grey print."""

import io
from typing import Any

import matplotlib
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure

OKABE_ITO = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermilion": "#D55E00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
    "black": "#000000",
}
"""The palette of Okabe and Ito (2008) for colour-blind readers, without yellow, which is faint on white."""

PRINT: Any = {
    "font.size": 8,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "pdf.fonttype": 42,
}
"""Settings of matplotlib for pictures in a paper; fonts are TrueType, which publishers accept."""
COLUMN, PAGE = 3.4, 7.0  # inches: the width of a column, and of a page with two columns


class Picture(Figure):
    """A figure without a window; a notebook shows it if it is the last expression of a cell."""

    def to_png(self, dpi: float) -> bytes:
        """Return the picture as a PNG file."""
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=dpi)
        return content.getvalue()

    def _repr_png_(self) -> bytes:
        return self.to_png(dpi=80)


def colors(n: int) -> Any:
    """Return n colours [n, 4]: up to seven distinct hues, else a scale from dark to light."""
    if n <= len(OKABE_ITO):
        return to_rgba_array(list(OKABE_ITO.values())[:n])
    return matplotlib.colormaps["cividis"]([0.85 * i / (n - 1) for i in range(n)])  # the end is faint on white
