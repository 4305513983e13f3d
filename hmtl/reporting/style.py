"""Pictures that a notebook shows, and colours that colour-blind eyes and grey print tell apart."""

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
"""Of Okabe and Ito 2008, without the yellow, which is faint on white."""


class Picture(Figure):
    """A figure that belongs to no window; as the last word of a notebook's cell it is shown."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=80)
        return content.getvalue()


def colors(n: int) -> Any:
    """n of them, [n, 4]: few are distinct hues, many a scale that grows lighter."""
    if n <= len(OKABE_ITO):
        return to_rgba_array([*OKABE_ITO.values()][:n])
    return matplotlib.colormaps["cividis"]([0.85 * i / (n - 1) for i in range(n)])  # its end is faint on white
