"""Degenerate solutions: whether a null space of K, or a weakly active row, changes the requested derivative.

CVXPY's epigraph variables are often not unique although the variables of the problem are. A null direction of K, or the
choice of the active set, matters only if its image under ``seen`` is not zero. ``seen`` is the linear map from (l, v)
to what the caller uses of the derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convexlayer.diff.reduced import ReducedFactor
from convexlayer.program import Array, IndexArray
from convexlayer.solution import BoolArray

__all__ = ["Seen", "is_seen", "sees_null_space", "sees_null_space_of"]

Seen = Callable[[Array, Array], Array]
"""Linear map from a batch of l (B, n) and v (B, m) to what the caller uses of the derivative, (B, numbers)."""

VISIBLE = 1e-6
"""An image under ``seen`` counts as nonzero above this fraction of its magnitude without cancellation. It separates
rounding errors of cancelling terms from true images."""

PATTERNS = 3
"""Number of random sign patterns by which the magnitude without cancellation is estimated."""


def sees_null_space(
    factor: ReducedFactor, index: IndexArray, seen: Seen, *, place: IndexArray, batch: int
) -> BoolArray:
    """Test whether ``seen`` maps the null spaces of K to zero; True (len(index),) where it does not.

    An image counts as nonzero if any of its numbers exceeds the rounding errors of cancelling terms. Elements whose
    null space is not known completely count as True. Null spaces of many dimensions are sampled by random directions.

    Args:
        factor: the factor of a batch.
        index: elements of that batch.
        seen: the linear map, for a batch of ``batch`` elements.
        place: positions of the elements at ``index`` in the batch of ``seen``.
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
    """Apply ``sees_null_space`` to all elements of a factor; ``place`` are their positions in the batch of ``seen``."""
    result = np.zeros(len(place), dtype=bool)
    singular = np.flatnonzero(factor.singular & np.isfinite(factor.condition))
    if len(singular):
        result[singular] = sees_null_space(factor, singular, seen, place=place[singular], batch=batch)
    return result


def is_seen(
    change: tuple[Array, Array], answer: tuple[Array, Array], seen: Seen, *, place: IndexArray, batch: int
) -> BoolArray:
    """Whether ``seen`` maps a change of a solution (l, v) to more than rounding errors of the image of ``answer``."""
    made = _seen_at(seen, place, batch, *change)
    return np.any(made > VISIBLE * _most(seen, place, batch, *answer), axis=1)


def _most(seen: Seen, place: IndexArray, batch: int, l: Array, v: Array) -> Array:  # noqa: E741
    """Estimate the magnitude of the image of (l, v) without cancellation, by random sign changes of l and v."""
    rng, most = np.random.default_rng(0), _seen_at(seen, place, batch, l, v)
    for _ in range(PATTERNS):
        signs = rng.choice((-1.0, 1.0), l.shape[1] + v.shape[1])
        made = _seen_at(seen, place, batch, l * signs[: l.shape[1]], v * signs[l.shape[1] :])
        most = np.maximum(most, made)
    return most


def _seen_at(seen: Seen, place: IndexArray, batch: int, l: Array, v: Array) -> Array:  # noqa: E741
    """Magnitudes of the image of (l, v) for the elements at these positions of the batch."""
    whole_l, whole_v = np.zeros((batch, l.shape[1])), np.zeros((batch, v.shape[1]))
    whole_l[place], whole_v[place] = l, v
    return np.abs(seen(whole_l, whole_v))[place]
