"""Row-wise scales and residuals of points of a batch of programs, each by kernels or in NumPy.

``certificate`` says what they mean. P and A are given by their patterns and values, the cone by the number of rows of
the zero cone, and the first rows of the blocks of curved cones, followed by m; each row before the first block is one.
"""

from __future__ import annotations

from functools import reduce

import numpy as np

from convexlayer.runtime import kernel_cache
from convexlayer.runtime.buffers import as_contiguous_float64, contiguous, empty
from convexlayer.sparse.dispatch import kernels, run
from convexlayer.sparse.pattern import Pattern, pattern_fields
from convexlayer.sparse.rows import largest_of_blocks, max_norm
from convexlayer.sparse.structures import Denominators, Floats, Point, Positions, RowScales, Values

__all__ = ["complementary_residuals", "relative_residuals", "row_scales"]

FLOOR = 1e-6
"""Lower bound of a variable's size in backward errors, relative to the size at which it would dominate a row. It keeps
rounding errors of a zero solution from counting as terms."""

EPS = 2.0 * float(np.finfo(float).eps)
"""Relative rounding error of a sum (by its terms) and of a projection (by its block)."""

ROUNDING = 1e-14
"""Entries of x below this size, relative to the size at which they would dominate a row, count as zero."""

ZERO_REFERENCE = 1e-7
"""Reference size for changes of a zero entry of x, relative to the size at which it would dominate a row."""

BLOCK_FLOOR = 1e-5
"""Lower bound of the size of a row of a curved cone, relative to the largest row of its block: projections round
relative to the whole block."""

LOST_IN_BLOCK = 1e-12
"""Entries of b below this size, relative to their block, vanish in its rounding errors; such a row keeps its own
size."""

SLACK_FACTOR = 8.0
"""Factor on the size S of s. If x_j >= 0 is active and x_j is not yet zero, x_j itself is the only term in the size of
its row, so s must exceed that size to count as large. Measured by ``benchmarks.scales`` (separable, parameters in
10^-4..10^4, Clarabel): of 240 draws 198, 200 and 181 are right and reported ok for the factors 1, 8 and 64."""

BALANCE_THRESHOLD = 1e-2
"""If s and y of a curved block both exceed this fraction of S and Y, c is computed from the norms of s and y instead
of S and Y, which keeps the digits of both. In the same measurement 200 draws are right and reported ok for fractions of
1e-6 and 1e-2, and 196 if c is never computed so."""

EXPONENT = 200.0
"""Bound of abs(log2(c)), which keeps products with c within the range of double precision."""

DENOMINATOR_FLOOR = 1e-300
"""Lower bound of the denominator of a backward error, near the smallest normal double: any residual of a row without
terms is wrong."""


def row_scales(
    patterns: tuple[Pattern, Pattern], blocks: Positions, free: int, values: Values, point: Point
) -> RowScales:
    """Compute the scales at a point.

    Args:
        patterns: those of P and A.
        blocks: first rows of the blocks of curved cones, and m.
        free: number of rows of the zero cone.
        values: the values of the programs.
        point: the point.
    """
    if not kernel_cache.ready():
        return _portable_row_scales(patterns, blocks, free, values, point)
    (batch, n), m = values.q.shape, values.b.shape[1]
    out = RowScales(*(empty(batch, size) for size in (n, n, m, m, m, n, m)))
    arguments = (pattern_fields(*patterns), blocks, free, contiguous(values), contiguous(point), tuple(out))
    run(kernels().row_scales, arguments, batch, 3 * (patterns[0].nnz + 2 * patterns[1].nnz))
    return out


def _portable_row_scales(
    patterns: tuple[Pattern, Pattern], blocks: Positions, free: int, values: Values, point: Point
) -> RowScales:
    (P, A), (x, y, s), flat = patterns, point, int(blocks[0])

    def largest(v: Floats) -> Floats:
        return largest_of_blocks(v, blocks)

    abs_P, abs_q, abs_A, abs_b = map(np.abs, values)
    abs_x, abs_y, abs_s = map(np.abs, (x, y, s))
    curved = slice(flat, None)
    abs_y[:, curved] = np.maximum(abs_y, BLOCK_FLOOR * largest(abs_y))[:, curved]

    def sums(x: Floats, y: Floats) -> tuple[Floats, Floats]:
        dual = P.matvec(abs_P, x) + abs_q + A.rmatvec(abs_A, y)
        return dual, A.matvec(abs_A, x) + abs_b + abs_s

    dual, primal = sums(abs_x, abs_y)
    primal = largest(primal)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        of_rows = np.where(abs_A > 0, primal[:, A.rows] / abs_A, 0.0)
        of_cols = np.where(abs_A > 0, dual[:, A.cols] / abs_A, 0.0)
        diagonal = P.rows == P.cols
        curvature = np.zeros_like(x)
        curvature[:, P.rows[diagonal]] = abs_P[:, diagonal]
        of_curvature = np.where(curvature > 0, dual / curvature, 0.0)
        variable = np.maximum(of_curvature, A.by_col(np.maximum, of_rows, 0.0))
        multiplier = largest(A.by_row(np.maximum, of_cols, 0.0))
        dual, primal = sums(np.maximum(abs_x, FLOOR * variable), np.maximum(abs_y, FLOOR * multiplier))
        columns = np.maximum(dual, ROUNDING * max_norm(dual)[:, None])
        matters = np.where((abs_A > 0) & (columns[:, A.cols] > 0), columns[:, A.cols] / abs_A, np.inf)
        Y = A.by_row(np.minimum, matters, np.inf)
    S = largest(primal)
    hidden = (abs_b > 0) & (abs_b < LOST_IN_BLOCK * S)
    primal[:, curved] = np.where(hidden, primal, np.maximum(primal, BLOCK_FLOOR * S))[:, curved]
    Y = largest(np.where(np.isfinite(Y), Y, 0.0))
    S = S * SLACK_FACTOR
    s_norm, y_norm = largest(np.abs(s)), largest(np.abs(y))
    both = (s_norm > BALANCE_THRESHOLD * S) & (y_norm > BALANCE_THRESHOLD * Y)
    both[:, :flat] = False
    S, Y = np.where(both, s_norm, S), np.where(both, y_norm, Y)
    known = (S > 0) & (Y > 0)
    exponent = 0.5 * np.log2(np.where(known, S, 1.0) / np.where(known, Y, 1.0))
    c = np.exp2(np.clip(np.rint(exponent), -EXPONENT, EXPONENT))
    c[:, :free] = 1.0
    size = np.where(known, np.sqrt(S) * np.sqrt(Y), np.maximum(S, Y))
    size[size == 0.0] = np.inf
    w_norm = largest(np.abs(c * y) + np.abs(s) / c)
    w_norm[:, :flat] = 0.0
    noise = (
        EPS * (P.matvec(abs_P, np.abs(x)) + abs_q + A.rmatvec(abs_A, np.abs(y) + w_norm / c)),
        EPS * (A.matvec(abs_A, np.abs(x)) + abs_b + np.abs(s) + w_norm * c),
    )
    return RowScales(variable, dual, primal, c, size, *noise)


def complementary_residuals(
    patterns: tuple[Pattern, Pattern],
    free: int,
    values: Values,
    x: Floats,
    w: Floats,
    curved: Floats,
    denominators: Denominators,
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """y = Pi_{K*}(w) / c, s = c (Pi_{K*}(w) - w), Px + q + A'y, Ax + s - b, and the largest backward error (B,).

    Args:
        patterns: those of P and A.
        free: number of rows of the zero cone.
        values: the values of the programs.
        x: (B, n).
        w: (B, m).
        curved: projections of the rows of w that belong to curved cones.
        denominators: c, and the denominators of the backward errors.
    """
    if not kernel_cache.ready():
        return _portable_complementary_residuals(patterns, free, values, x, w, curved, denominators)
    (batch, n), m = values.q.shape, values.b.shape[1]
    out = empty(batch, m), empty(batch, m), empty(batch, n), empty(batch, m), np.empty(batch)
    point = contiguous((x, w, curved))
    arguments = (pattern_fields(*patterns), free, contiguous(values), point, contiguous(denominators), out)
    run(kernels().complementary_residuals, arguments, batch, patterns[0].nnz + 2 * patterns[1].nnz)
    return out


def _portable_complementary_residuals(
    patterns: tuple[Pattern, Pattern],
    free: int,
    values: Values,
    x: Floats,
    w: Floats,
    curved: Floats,
    denominators: Denominators,
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    (P, A), c = patterns, denominators.c
    projection = _projection(free, w, curved)
    y, s = projection / c, (projection - w) * c
    dual = P.matvec(values.P, x) + values.q + A.rmatvec(values.A, y)
    primal = A.matvec(values.A, x) + s - values.b
    backward = np.maximum(_largest_ratio(dual, denominators.dual), _largest_ratio(primal, denominators.primal))
    return y, s, dual, primal, backward


def relative_residuals(
    patterns: tuple[Pattern, Pattern], free: int, values: Values, r: Floats, point: Point, curved: Floats
) -> Floats:
    """Primal, dual, gap and natural residual, their maximum, and the objective, (6, B) (see ``solution.Residuals``).

    Args:
        patterns: those of P and A.
        free: number of rows of the zero cone.
        values: the values of the programs.
        r: constants of the objectives, (B,).
        point: the point.
        curved: projections of the rows of y - s that belong to curved cones.
    """
    if not kernel_cache.ready():
        return _portable_relative_residuals(patterns, free, values, r, point, curved)
    batch = len(r)
    out = np.empty((6, batch))
    arguments = (
        pattern_fields(*patterns), free, contiguous(values), as_contiguous_float64(r), contiguous(point),
        as_contiguous_float64(curved), out,
    )  # fmt: skip
    run(kernels().relative_residuals, arguments, batch, patterns[0].nnz + 2 * patterns[1].nnz)
    return out


def _portable_relative_residuals(
    patterns: tuple[Pattern, Pattern], free: int, values: Values, r: Floats, point: Point, curved: Floats
) -> Floats:
    (P, A), (x, y, s), b, q = patterns, point, values.b, values.q
    projection = _projection(free, y - s, curved)
    Px, Ax, Aty = P.matvec(values.P, x), A.matvec(values.A, x), A.rmatvec(values.A, y)
    xPx, qx, by = np.vecdot(x, Px), np.vecdot(q, x), np.vecdot(b, y)
    each = (
        max_norm(Ax + s - b) / _size(Ax, s, b),
        max_norm(Px + q + Aty) / _size(Px, q, Aty),
        np.abs(xPx + qx + by) / np.max(np.abs([np.ones_like(qx), xPx, qx, by]), axis=0),
        max_norm(y - projection) / _size(y, s),
    )
    largest = reduce(np.maximum, each)
    return np.array([*each, np.where(largest >= 0.0, largest, np.inf), 0.5 * xPx + qx + r])


def _projection(free: int, w: Floats, curved: Floats) -> Floats:
    """The projection onto the dual cone, from that of the rows of curved cones."""
    flat = w.shape[1] - curved.shape[1]
    return np.concatenate([w[:, :free], np.maximum(w[:, free:flat], 0.0), curved], axis=1)


def _largest_ratio(residual: Floats, size: Floats) -> Floats:
    """Largest |residual| / size of each element, with 0 / 0 = 0; infinite if a residual is NaN."""
    magnitude = np.abs(residual)
    ratio = np.where(magnitude > 0, magnitude / np.where(size > 0, size, DENOMINATOR_FLOOR), 0.0)
    largest: Floats = np.max(np.where(np.isnan(magnitude), np.inf, ratio), axis=1, initial=0.0)
    return largest


def _size(*vectors: Floats) -> Floats:
    """The largest entry of the vectors, at least 1, (B,)."""
    size: Floats = np.max(np.stack([np.ones(vectors[0].shape[0]), *map(max_norm, vectors)]), axis=0)
    return size
