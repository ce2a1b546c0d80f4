"""Layout checks of the gallery's figures: labelled axes, legends beside the data, no overlaps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from convexlayer.gallery import Result
from convexlayer.gallery.style import rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

SLACK = 1.0  # pixels


def faults(result: Result) -> list[str]:
    """Describe the layout faults of a result's figure, one sentence each."""
    with rendered(result.draw) as figure:
        figure.draw_without_rendering()
        return [*_unlabelled(figure), *_overlaps(figure)]


def _unlabelled(figure: Figure) -> Iterator[str]:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            numbered = any(text.get_visible() and text.get_text() for text in axis.get_ticklabels())
            if axes.axison and numbered and not axis.label.get_text():
                yield f"{_name(axes)}: an axis has numbers and no label"


def _overlaps(figure: Figure) -> Iterator[str]:
    """Find legends, titles and labels that overlap each other or axes, or leave the figure."""
    texts = dict(_texts(figure))
    boxes = {what: _shrunk(text.get_window_extent()) for what, text in texts.items()}
    parts = (figure, *figure.subfigs)
    legends = [*(a.get_legend() for a in figure.axes), *(legend for part in parts for legend in part.legends)]
    boxes |= {f"legend {i}": _shrunk(legend.get_window_extent()) for i, legend in enumerate(legends) if legend}
    for what, box in boxes.items():
        if not figure.bbox.padded(SLACK).containsx(box.x0) or not figure.bbox.padded(SLACK).containsx(box.x1):
            yield f"{what} is cut off at a side"
        if not figure.bbox.padded(SLACK).containsy(box.y0) or not figure.bbox.padded(SLACK).containsy(box.y1):
            yield f"{what} is cut off at the top or bottom"
        for axes in figure.axes:
            if box.overlaps(_shrunk(axes.get_window_extent())):
                yield f"{what} is over the data of {_name(axes)}"
    for (first, box), (second, other) in combinations(boxes.items(), 2):
        if box.overlaps(other):
            yield f"{first} is over {second}"


def _texts(figure: Figure) -> Iterator[tuple[str, Text]]:
    for place, axes in enumerate(figure.axes):
        for what, text in (
            ("title", axes.title if axes.title.get_text() else axes._left_title),  # type: ignore[attr-defined]
            ("x label", axes.xaxis.label),
            ("y label", axes.yaxis.label),
        ):
            if text.get_text() and text.get_visible() and axes.axison:
                yield f"{what} {text.get_text()!r} of axes {place}", text


def _shrunk(box: Bbox) -> Bbox:
    return box.padded(-SLACK)


def _name(axes: Axes) -> str:
    return f"axes {axes.get_title(loc='left') or axes.get_ylabel()!r}"
