"""How the figures look: one type, colours for the colour-blind (Okabe and Ito 2008), legends beside the data.

Colours of the cycle stand for things that differ in kind; shades of one scale, light for more, for a number that grows.
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
    """A figure drawn in the style of the gallery, which holds while it is saved: matplotlib looks colours up late."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        draw(figure)
        yield figure


def panels(
    figure: Figure, columns: int, rows: int = 1, *, width: float = 3.6, height: float = 3.0, **options: Any
) -> list[Axes]:
    """The axes of a grid, row by row.

    Args:
        figure: what to put them on; its size becomes that of all panels.
        columns: panels beside each other.
        rows: panels below each other.
        width: inches of a panel, its labels and legend included.
        height: likewise.
        options: further arguments of ``Figure.subplots``.
    """
    figure.set_size_inches(columns * width, rows * height)
    return list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def legend_below(axes: Axes, columns: int = 2, **options: Any) -> Legend:
    """The legend of a panel below the label of its x axis, where it covers nothing."""
    return axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=4.2, ncols=columns, **options)


def shades(count: int) -> list[tuple[float, float, float, float]]:
    """Colours for a number that grows, dark to light."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * place / max(count - 1, 1)) for place in range(count)]


def image(axes: Axes) -> None:
    """A panel that shows an image: no grid, no ticks."""
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
