"""Solutions that are not unique, and rows that may count as active or not: does anybody see the difference?

CVXPY's epigraph variables are often not unique while the variables of the problem are. So a null space of K, or a row
on the margin, matters only if what becomes of it outside does: ``seen``, which is linear in (l, v).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convexlayer.diff.reduced import ReducedFactor
from convexlayer.program import Array, IndexArray
from convexlayer.solution import BoolArray

__all__ = ["Seen", "is_seen", "sees_null_space", "sees_null_space_of"]

Seen = Callable[[Array, Array], Array]
"""What becomes outside of a batch of l (B, n) and v (B, m), (B, numbers)."""

VISIBLE = 1e-6
"""What is seen of a direction counts as something from this share of what its entries could make at most."""

PATTERNS = 3
"""Random signs that are tried to tell how large something is where its terms do not cancel."""


def sees_null_space(
    factor: ReducedFactor, index: IndexArray, seen: Seen, *, place: IndexArray, batch: int
) -> BoolArray:
    """Whether anything is seen of the null spaces of K of these elements, (len(index),).

    A direction is seen where one of the numbers that it makes is not the rounding of terms that cancel; what could not
    be told is taken for seen. Of a space of many dimensions a few random directions tell.

    Args:
        factor: of a batch.
        index: elements of it.
        seen: what becomes of (l, v) outside, for a batch of ``batch`` elements ...
        place: ... among which these stand here.
        batch: see ``seen``.
    """
    l, v = factor.null_space(index)  # noqa: E741 (the design's name)
    found = ~factor.certain(index)
    for j in range(l.shape[1]):
        rest = np.flatnonzero(~found & np.any(np.concatenate([l[:, j], v[:, j]], axis=1) != 0.0, axis=1))
        if not len(rest):
            break
        direction = l[rest, j], v[rest, j]
        made = _seen_at(seen, place[rest], batch, *direction)
        found[rest] = np.any(made > VISIBLE * _most(seen, place[rest], batch, *direction), axis=1)
    return found


def sees_null_space_of(factor: ReducedFactor, seen: Seen, *, place: IndexArray, batch: int) -> BoolArray:
    """Whether anything is seen of the null spaces of a whole factor's elements, which stand at ``place``."""
    result = np.zeros(len(place), dtype=bool)
    singular = np.flatnonzero(factor.singular & np.isfinite(factor.condition))
    if len(singular):
        result[singular] = sees_null_space(factor, singular, seen, place=place[singular], batch=batch)
    return result


def is_seen(
    change: tuple[Array, Array], answer: tuple[Array, Array], seen: Seen, *, place: IndexArray, batch: int
) -> BoolArray:
    """Whether a change of an answer (l, v) of some elements is seen: whether it is more than rounding of what is."""
    made = _seen_at(seen, place, batch, *change)
    return np.any(made > VISIBLE * _most(seen, place, batch, *answer), axis=1)


def _most(seen: Seen, place: IndexArray, batch: int, l: Array, v: Array) -> Array:  # noqa: E741
    """How large what is seen of (l, v) is where its terms do not cancel."""
    rng, most = np.random.default_rng(0), _seen_at(seen, place, batch, l, v)
    for _ in range(PATTERNS):
        signs = rng.choice((-1.0, 1.0), l.shape[1] + v.shape[1])
        made = _seen_at(seen, place, batch, l * signs[: l.shape[1]], v * signs[l.shape[1] :])
        most = np.maximum(most, made)
    return most


def _seen_at(seen: Seen, place: IndexArray, batch: int, l: Array, v: Array) -> Array:  # noqa: E741
    """The magnitudes of what is seen of (l, v) of a few elements, which stand at these positions of the batch."""
    whole_l, whole_v = np.zeros((batch, l.shape[1])), np.zeros((batch, v.shape[1]))
    whole_l[place], whole_v[place] = l, v
    return np.abs(seen(whole_l, whole_v))[place]
