"""Degenerate solutions: whether a null space of K, or a weakly active row, changes the requested derivative.

CVXPY's epigraph variables are often not unique although the variables of the problem are. A null direction of K, or the
choice of the active set, matters only if its image under ``observe`` is not zero. ``observe`` is the linear map
from (l, v) to what the caller uses of the derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convexlayer.diff.kkt_system import KKTFactor
from convexlayer.program import Array, IndexArray
from convexlayer.solution import BoolArray

__all__ = ["Observation", "is_observed", "observes_null_space", "observes_null_space_of"]

Observation = Callable[[Array, Array], Array]
"""Linear map from a batch of l (B, n) and v (B, m) to what the caller uses of the derivative, (B, numbers)."""

VISIBLE = 1e-6
"""An image under ``observe`` counts as nonzero above this fraction of its magnitude without cancellation. It separates
rounding errors of cancelling terms from true images."""

PATTERNS = 3
"""Number of random sign patterns by which the magnitude without cancellation is estimated."""


def observes_null_space(
    factor: KKTFactor, index: IndexArray, observe: Observation, *, place: IndexArray, batch: int
) -> BoolArray:
    """Test whether ``observe`` maps the null spaces of K to zero; True (len(index),) where it does not.

    An image counts as nonzero if any of its numbers exceeds the rounding errors of cancelling terms. Elements whose
    null space is not known completely count as True. Null spaces of many dimensions are sampled by random directions.

    Args:
        factor: the factor of a batch.
        index: elements of that batch.
        observe: the linear map, for a batch of ``batch`` elements.
        place: positions of the elements at ``index`` in the batch of ``observe``.
        batch: see ``observe``.
    """
    l, v = factor.null_space(index)  # noqa: E741 (the design's name)
    found = ~factor.null_space_is_reliable(index)
    for j in range(l.shape[1]):
        rest = np.flatnonzero(~found & np.any(np.concatenate([l[:, j], v[:, j]], axis=1) != 0.0, axis=1))
        if not len(rest):
            break
        direction = l[rest, j], v[rest, j]
        made = _observed_at(observe, place[rest], batch, *direction)
        found[rest] = np.any(made > VISIBLE * _most(observe, place[rest], batch, *direction), axis=1)
    return found


def observes_null_space_of(factor: KKTFactor, observe: Observation, *, place: IndexArray, batch: int) -> BoolArray:
    """Apply ``observes_null_space`` to all elements of a factor, at positions ``place`` of the batch of ``observe``."""
    result = np.zeros(len(place), dtype=bool)
    singular = np.flatnonzero(factor.singular & np.isfinite(factor.condition))
    if len(singular):
        result[singular] = observes_null_space(factor, singular, observe, place=place[singular], batch=batch)
    return result


def is_observed(
    change: tuple[Array, Array], answer: tuple[Array, Array], observe: Observation, *, place: IndexArray, batch: int
) -> BoolArray:
    """Whether the image of a change of a solution (l, v) exceeds rounding errors of the image of ``answer``."""
    made = _observed_at(observe, place, batch, *change)
    return np.any(made > VISIBLE * _most(observe, place, batch, *answer), axis=1)


def _most(observe: Observation, place: IndexArray, batch: int, l: Array, v: Array) -> Array:  # noqa: E741
    """Estimate the magnitude of the image of (l, v) without cancellation, by random sign changes of l and v."""
    rng, most = np.random.default_rng(0), _observed_at(observe, place, batch, l, v)
    for _ in range(PATTERNS):
        signs = rng.choice((-1.0, 1.0), l.shape[1] + v.shape[1])
        made = _observed_at(observe, place, batch, l * signs[: l.shape[1]], v * signs[l.shape[1] :])
        most = np.maximum(most, made)
    return most


def _observed_at(observe: Observation, place: IndexArray, batch: int, l: Array, v: Array) -> Array:  # noqa: E741
    """Magnitudes of the image of (l, v) for the elements at these positions of the batch."""
    whole_l, whole_v = np.zeros((batch, l.shape[1])), np.zeros((batch, v.shape[1]))
    whole_l[place], whole_v[place] = l, v
    return np.abs(observe(whole_l, whole_v))[place]
