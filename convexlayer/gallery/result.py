"""Result of a gallery entry: numbers, claims of the paper, and the figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Claim", "Result"]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, compared with a measurement.

    Attributes:
        paper: the claim, with its place: ``figure 5: more back-iterations give more accurate gradients``.
        ours: the measurement, with numbers.
        holds: whether they agree.
    """

    paper: str
    ours: str
    holds: bool


@dataclass(frozen=True)
class Result:
    """Result of an entry.

    Attributes:
        numbers: measurements by name: numbers, strings, booleans, tensors, arrays, lists and mappings of these.
        claims: claims of the paper with the measurements.
        draw: draws the numbers on an empty figure, whose size and axes it sets.
    """

    numbers: Mapping[str, Any]
    claims: Sequence[Claim]
    draw: Callable[[Figure], None]
