"""The style of all pictures: as wide as a column or a page, text of 9 points, colors for color-blind readers."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure

from hmtl.io.files import replacing

OKABE_ITO = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermilion": "#D55E00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
    "black": "#000000",
}
"""The palette of Okabe and Ito (2008) for color-blind readers, without yellow, which is faint on white."""
DASHES = ("-", (0, (5, 2)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1)), (0, (2, 2)), (0, (9, 2)), (0, (4, 1, 1, 1, 1, 1)))
MARKERS = "os^DvPX"

PRINT: Any = {
    "font.size": 9,
    "axes.titlesize": "medium",
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "svg.hashsalt": "hmtl",
    "text.parse_math": False,  # names may have dollars
}
"""Settings of matplotlib; fonts are TrueType, which publishers accept, and the same picture gives the same bytes."""
COLUMN, PAGE = 3.4, 7.0  # inches: the width of a column, and of a page with two columns
NO_DATE: Any = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


class Picture(Figure):
    """A figure without a window; a notebook shows it if it is the last expression of a cell."""

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        """Write the picture; a box stands for each character of a name that the font lacks."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
            super().savefig(*args, **kwargs)

    def to_png(self, dpi: float) -> bytes:
        """Return the picture as a PNG file."""
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=dpi)
        return content.getvalue()

    def write(self, path: Path, *endings: str, dpi: float = 200) -> None:
        """Write the picture to a file for each ending: png, pdf or svg."""
        with matplotlib.rc_context(PRINT):
            for ending in endings:
                with replacing(path.with_name(f"{path.name}.{ending}")) as file:
                    self.savefig(file, format=ending, dpi=dpi, metadata=NO_DATE[ending])

    def fit_legend(self, handles: Sequence[Any], loc: Any = "outside upper center") -> None:
        """Add a legend of as few rows as the picture is wide enough for, and make the picture higher by them."""
        for rows in range(1, len(handles) + 1):
            legend = self.legend(handles=handles, loc=loc, ncols=-(-len(handles) // rows))
            space = legend.get_window_extent()
            if rows == len(handles) or space.width <= self.bbox.width:
                self.set_figheight(self.get_figheight() + space.height / self.dpi)
                return
            legend.remove()

    def _repr_png_(self) -> bytes:
        return self.to_png(dpi=80)


def colors(n: int) -> Any:
    """Return n colors [n, 4]: up to seven distinct hues, else a scale from dark to light."""
    if n <= len(OKABE_ITO):
        return to_rgba_array(list(OKABE_ITO.values())[:n])
    return matplotlib.colormaps["cividis"]([0.85 * i / (n - 1) for i in range(n)])  # the end is faint on white


def curve_styles(n: int) -> list[dict[str, Any]]:
    """Return color, dashes and marker of n curves; after seven, the colors repeat with other dashes and markers."""
    hues = colors(len(OKABE_ITO))
    return [
        {
            "color": hues[i % len(hues)],
            "linestyle": DASHES[(i + i // len(hues)) % len(DASHES)],
            "linewidth": 1.5,
            "marker": MARKERS[(i + i // len(hues)) % len(MARKERS)],
            "markevery": (0.16 * i / n, 0.16),
            "zorder": 3 + 0.01 * i,
        }
        for i in range(n)
    ]
