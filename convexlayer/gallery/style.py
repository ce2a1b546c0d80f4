"""Style of the figures: one typeface, a colour-blind palette (Okabe and Ito 2008), legends beside the data.

The colour cycle distinguishes categories; shades of one colour map, lighter for larger, show an increasing number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

__all__ = ["image", "legend_below", "panels", "rendered", "shades"]

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.prop_cycle": "cycler('color', ['0072B2', 'D55E00', '009E73', 'CC79A7', 'E69F00', '56B4E9', '000000'])",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "figure.dpi": 150,
    "font.family": "STIXGeneral",
    "font.size": 10,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.5,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "mathtext.fontset": "stix",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@contextmanager
def rendered(draw: Callable[[Figure], None]) -> Iterator[Figure]:
    """Draw a figure in the gallery's style, which stays active until it is saved: matplotlib resolves colours late."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        draw(figure)
        yield figure


def panels(
    figure: Figure, columns: int, rows: int = 1, *, width: float = 3.6, height: float = 3.0, **options: Any
) -> list[Axes]:
    """Create a grid of axes, returned row by row.

    Args:
        figure: the figure, which is resized to the panels.
        columns: number of columns.
        rows: number of rows.
        width: width of a panel with labels and legend, inches.
        height: height of a panel, inches.
        options: further arguments of ``Figure.subplots``.
    """
    figure.set_size_inches(columns * width, rows * height)
    return list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def legend_below(axes: Axes, columns: int = 2, **options: Any) -> Legend:
    """Add a legend below the x label of a panel, where it covers no data."""
    return axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=4.2, ncols=columns, **options)


def shades(count: int) -> list[tuple[float, float, float, float]]:
    """Colours for an increasing number, dark to light."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * place / max(count - 1, 1)) for place in range(count)]


def image(axes: Axes) -> None:
    """Remove grid, ticks and spines from a panel that shows an image."""
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
