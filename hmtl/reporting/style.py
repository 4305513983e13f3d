"""The look of all pictures: a figure that notebooks display, and colours that differ in grey print, too."""

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


class Picture(Figure):
    """A figure without a window, which a notebook displays if it is the value of a cell."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=80)
        return content.getvalue()


def colors(n: int) -> Any:
    """Return n colours as RGBA [n, 4]: distinct hues if n is small, else a scale from dark to light."""
    if n <= len(OKABE_ITO):
        return to_rgba_array([*OKABE_ITO.values()][:n])
    return matplotlib.colormaps["cividis"](
        [0.85 * i / (n - 1) for i in range(n)]
    )  # the end of the scale is faint on white
