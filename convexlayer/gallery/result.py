"""What an entry of the gallery gives: numbers, claims compared, and how to draw them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Claim", "Result"]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper beside what was measured here.

    Attributes:
        paper: the statement, with its place: ``figure 5: more back-iterations give more accurate gradients``.
        ours: what came out, with figures.
        holds: whether the two agree.
    """

    paper: str
    ours: str
    holds: bool


@dataclass(frozen=True)
class Result:
    """The outcome of an entry.

    Attributes:
        numbers: what was measured, by name: numbers, strings, booleans, tensors, arrays, lists and mappings of these.
        claims: the paper's statements, each with its counterpart.
        draw: draws the numbers on an empty figure, whose size and axes are its own to choose.
    """

    numbers: Mapping[str, Any]
    claims: Sequence[Claim]
    draw: Callable[[Figure], None]
