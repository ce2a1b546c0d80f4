"""Solutions that are not unique, and rows that may count as active or not: does anybody see the difference?

CVXPY's epigraph variables are often not unique while the variables of the problem are. So a null space of K, or a row on
the margin, matters only if what becomes of it outside does: ``seen``, which is linear in (l, v).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convexlayer.certificate import ComplementaryPoint
from convexlayer.diff.reduced import ReducedFactor, ReducedSystem
from convexlayer.program import Array, ConeProgram, IndexArray
from convexlayer.solution import BoolArray

__all__ = ["Seen", "indifferent_rows", "sees_null_space", "sees_null_space_of"]

Seen = Callable[[Array, Array], Array]
"""What becomes outside of a batch of l (B, n) and v (B, m), (B, numbers)."""

VISIBLE = 1e-6
"""What is seen of a direction counts as something from this share of what its entries could make at most."""

NEGLIGIBLE = 1e-9
"""Terms of a row that count as nothing, relative to all of them."""

PATTERNS = 3
"""Random signs that are tried to tell how large something is where its terms do not cancel."""


def sees_null_space(
    factor: ReducedFactor, index: IndexArray, seen: Seen, *, place: IndexArray, batch: int
) -> BoolArray:
    """Whether anything is seen of the null spaces of K of these elements, (len(index),).

    A direction is seen where one of the numbers that it makes is not the rounding of terms that cancel.

    Args:
        factor: of a batch.
        index: elements of it.
        seen: what becomes of (l, v) outside, for a batch of ``batch`` elements ...
        place: ... among which these stand here.
        batch: see ``seen``.
    """
    l, v = factor.null_space(index)  # noqa: E741 (the design's name)
    found = np.zeros(len(index), dtype=bool)
    rng = np.random.default_rng(0)
    for j in range(l.shape[1]):
        made = _seen_at(seen, place, batch, l[:, j], v[:, j])
        most = np.zeros_like(made)
        for _ in range(PATTERNS):
            signs = rng.choice((-1.0, 1.0), l.shape[2] + v.shape[2])
            most = np.maximum(most, _seen_at(seen, place, batch, l[:, j] * signs[: l.shape[2]], v[:, j] * signs[l.shape[2] :]))
        found |= np.any(made > VISIBLE * most, axis=1)
    return found


def sees_null_space_of(
    system: ReducedSystem,
    program: ConeProgram,
    point: ComplementaryPoint,
    flat: Array,
    seen: Seen,
    *,
    place: IndexArray,
    batch: int,
) -> BoolArray:
    """Whether anything is seen of the null spaces of K with other rows of the flat cones active.

    Args:
        system: of the programs.
        program: some elements.
        point: their complementary points.
        flat: their D's diagonal in the rows of the flat cones, (elements, rows).
        seen: what becomes of (l, v) outside, for a batch of ``batch`` elements ...
        place: ... among which these stand here.
        batch: see ``seen``.
    """
    factor = ReducedFactor(system, program, point.derivative.with_flat(flat), point.scales.c)
    result = np.zeros(len(place), dtype=bool)
    singular = np.flatnonzero(factor.singular)
    if len(singular):
        result[singular] = sees_null_space(factor, singular, seen, place=place[singular], batch=batch)
    return result


def indifferent_rows(program: ConeProgram, l: Array, v: Array, top: Array, bottom: Array) -> BoolArray:  # noqa: E741
    """Rows of the flat cones where (l, v) is right whether they are active or not, (B, rows).

    Active rows ask for (A l - bottom)_i = 0 and leave v_i free, inactive ones ask for v_i = 0; where both hold, the side
    that row i lies on makes no difference. Each is told by the other terms of the same rows.
    """
    P, A, cones = program.structure.P, program.structure.A, program.structure.cones
    flat = slice(0, cones.zero + cones.nonnegative)
    abs_A, abs_l = np.abs(program.A), np.abs(l)
    left = np.abs(A.matvec(program.A, l) - bottom)
    terms = A.matvec(abs_A, abs_l) + np.abs(bottom)
    columns = P.matvec(np.abs(program.P), abs_l) + A.rmatvec(abs_A, np.abs(v)) + np.abs(top)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(abs_A > 0, abs_A * np.abs(v)[:, A.rows] / columns[:, A.cols], 0.0)
    role = A.by_row(np.maximum, np.where(v[:, A.rows] == 0.0, 0.0, share), 0.0)
    both: BoolArray = (left <= NEGLIGIBLE * terms)[:, flat] & (role <= NEGLIGIBLE)[:, flat]
    return both


def _seen_at(seen: Seen, place: IndexArray, batch: int, l: Array, v: Array) -> Array:  # noqa: E741
    """The magnitudes of what is seen of (l, v) of a few elements, which stand at these positions of the batch."""
    whole_l, whole_v = np.zeros((batch, l.shape[1])), np.zeros((batch, v.shape[1]))
    whole_l[place], whole_v[place] = l, v
    return np.abs(seen(whole_l, whole_v))[place]
