"""Kernels of ``row_scales``: residuals of a point and the scales that they are measured by."""

from __future__ import annotations

import numpy as np
from numba import njit

from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.sparse.row_scales import (
    BALANCE_THRESHOLD,
    BLOCK_FLOOR,
    DENOMINATOR_FLOOR,
    EPS,
    EXPONENT,
    FLOOR,
    LOST_IN_BLOCK,
    ROUNDING,
    SLACK_FACTOR,
)
from convexlayer.sparse.structures import Denominators, Floats, Patterns, Point, Positions, RowScales, Values

__all__ = ["complementary_residuals", "nan_max", "relative_residuals", "row_scales"]


@cached_kernel
def row_scales(
    pattern_fields: tuple[Positions, ...],
    blocks: Positions,
    free: int,
    value_fields: tuple[Floats, ...],
    point_fields: tuple[Floats, ...],
    scale_fields: tuple[Floats, ...],
    first: int,
    last: int,
) -> None:
    """Compute the scales of the elements first <= e < last (see ``row_scales.row_scales``)."""
    patterns, values, point = Patterns(*pattern_fields), Values(*value_fields), Point(*point_fields)
    scales = RowScales(*scale_fields)
    n, m = values.q.shape[1], values.b.shape[1]
    abs_x, abs_y, Y, S = np.empty(n), np.empty(m), np.empty(m), np.empty(m)
    for e in range(first, last):
        for j in range(n):
            abs_x[j] = abs(point.x[e, j])
        for i in range(m):
            abs_y[i] = abs(point.y[e, i])
        _raise_to_fraction(abs_y, blocks, BLOCK_FLOOR)
        _term_sums(patterns, values, e, point.s[e], abs_x, abs_y, scales)
        S[:] = scales.primal[e]
        _largest_of_blocks(S, blocks)
        _raise_to_sizes(patterns, values, e, blocks, S, Y, abs_x, abs_y, scales)
        _term_sums(patterns, values, e, point.s[e], abs_x, abs_y, scales)
        S[:] = scales.primal[e]
        _largest_of_blocks(S, blocks)
        _multiplier_sizes(patterns, values, e, scales.dual[e], Y)
        _largest_of_blocks(Y, blocks)
        _balance_rows(values, e, blocks, free, point, S, Y, scales)
        _rounding_errors(patterns, values, e, blocks[0], point, Y, scales)


@njit(nogil=True, error_model="numpy")
def _raise_to_sizes(
    patterns: Patterns,
    values: Values,
    e: int,
    blocks: Positions,
    S: Floats,
    Y: Floats,
    abs_x: Floats,
    abs_y: Floats,
    scales: RowScales,
) -> None:
    """Compute ``scales.variable``, and raise abs_x and abs_y to FLOOR times the sizes at which they dominate a row."""
    Y[:] = 0.0
    dual = scales.dual[e]
    for j in range(len(abs_x)):
        highest = 0.0
        for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
            if patterns.P_rows[p] == j and values.P[e, p] != 0.0:
                highest = dual[j] / abs(values.P[e, p])
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            i, value = patterns.A_rows[p], abs(values.A[e, p])
            if value > 0.0:
                highest = max(highest, S[i] / value)
                Y[i] = max(Y[i], dual[j] / value)
        scales.variable[e, j] = highest
        abs_x[j] = max(abs_x[j], FLOOR * highest)
    _largest_of_blocks(Y, blocks)
    for i in range(len(abs_y)):
        abs_y[i] = max(abs_y[i], FLOOR * Y[i])


@njit(nogil=True, error_model="numpy")
def _multiplier_sizes(patterns: Patterns, values: Values, e: int, dual: Floats, Y: Floats) -> None:
    """Y <- the size at which each multiplier matters in one of its rows of the dual residual."""
    Y[:] = np.inf
    highest = 0.0
    for size in dual:
        highest = max(highest, size)
    for j in range(len(dual)):
        column = max(dual[j], ROUNDING * highest)
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            value = abs(values.A[e, p])
            if value > 0.0 and column > 0.0:
                Y[patterns.A_rows[p]] = min(Y[patterns.A_rows[p]], column / value)
    for i in range(len(Y)):
        if not np.isfinite(Y[i]):
            Y[i] = 0.0


@njit(nogil=True, error_model="numpy")
def _balance_rows(
    values: Values, e: int, blocks: Positions, free: int, point: Point, S: Floats, Y: Floats, scales: RowScales
) -> None:
    """Compute c and the size of w; Y and ``scales.primal_rounding`` <- the norm of w, divided and multiplied by c."""
    c, size, primal, rounding = scales.c[e], scales.size[e], scales.primal[e], scales.primal_rounding[e]
    s, y, b = point.s[e], point.y[e], values.b[e]
    for i in range(blocks[0]):
        c[i], size[i] = _balance(SLACK_FACTOR * S[i], Y[i])
        rounding[i] = 0.0
    for i in range(free):
        c[i] = 1.0
    for k in range(len(blocks) - 1):
        start, stop = blocks[k], blocks[k + 1]
        s_norm, y_norm, w_norm = 0.0, 0.0, 0.0
        for i in range(start, stop):
            s_norm, y_norm = max(s_norm, abs(s[i])), max(y_norm, abs(y[i]))
            if b[i] == 0.0 or abs(b[i]) >= LOST_IN_BLOCK * S[start]:
                primal[i] = max(primal[i], BLOCK_FLOOR * S[start])
        s_size, y_size = SLACK_FACTOR * S[start], Y[start]
        if s_norm > BALANCE_THRESHOLD * s_size and y_norm > BALANCE_THRESHOLD * y_size:
            s_size, y_size = s_norm, y_norm
        scale, norm = _balance(s_size, y_size)
        for i in range(start, stop):
            w_norm = max(w_norm, abs(scale * y[i]) + abs(s[i]) / scale)
        for i in range(start, stop):
            c[i], size[i] = scale, norm
            rounding[i], Y[i] = w_norm * scale, w_norm / scale


@njit(nogil=True, error_model="numpy")
def _rounding_errors(
    patterns: Patterns, values: Values, e: int, flat: int, point: Point, Y: Floats, scales: RowScales
) -> None:
    """Compute the bounds of rounding errors of both residuals; Y is the norm of w / c in the rows after ``flat``."""
    x, y, s, primal = point.x[e], point.y[e], point.s[e], scales.primal_rounding[e]
    for j in range(len(x)):
        total = abs(values.q[e, j])
        for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
            total += abs(values.P[e, p] * x[patterns.P_rows[p]])
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            i, value = patterns.A_rows[p], abs(values.A[e, p])
            total += value * (abs(y[i]) + (Y[i] if i >= flat else 0.0))
            primal[i] += value * abs(x[j])
        scales.dual_rounding[e, j] = EPS * total
    for i in range(len(y)):
        primal[i] = EPS * (primal[i] + abs(values.b[e, i]) + abs(s[i]))


@njit(nogil=True, error_model="numpy")
def _term_sums(
    patterns: Patterns, values: Values, e: int, s: Floats, abs_x: Floats, abs_y: Floats, scales: RowScales
) -> None:
    """dual <- |P||x| + |q| + |A|'|y| and primal <- |A||x| + |b| + |s|, for symmetric P."""
    dual, primal = scales.dual[e], scales.primal[e]
    for i in range(len(primal)):
        primal[i] = abs(values.b[e, i]) + abs(s[i])
    for j in range(len(dual)):
        total, x_j = abs(values.q[e, j]), abs_x[j]
        for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
            total += abs(values.P[e, p]) * abs_x[patterns.P_rows[p]]
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            i, value = patterns.A_rows[p], abs(values.A[e, p])
            total += value * abs_y[i]
            primal[i] += value * x_j
        dual[j] = total


@njit(nogil=True, error_model="numpy")
def _largest_of_blocks(v: Floats, blocks: Positions) -> None:
    for k in range(len(blocks) - 1):
        largest = 0.0
        for i in range(blocks[k], blocks[k + 1]):
            largest = max(largest, v[i])
        for i in range(blocks[k], blocks[k + 1]):
            v[i] = largest


@njit(nogil=True, error_model="numpy")
def _raise_to_fraction(v: Floats, blocks: Positions, fraction: float) -> None:
    """Raise the entries of each block to at least ``fraction`` times its largest."""
    for k in range(len(blocks) - 1):
        largest = 0.0
        for i in range(blocks[k], blocks[k + 1]):
            largest = max(largest, v[i])
        for i in range(blocks[k], blocks[k + 1]):
            v[i] = max(v[i], fraction * largest)


@njit(nogil=True, error_model="numpy")
def _balance(S: float, Y: float) -> tuple[float, float]:
    """c and the size of w, from the sizes of s and y: a power of two near sqrt(S / Y), and sqrt(S Y)."""
    if S > 0.0 and Y > 0.0:
        power = min(max(np.rint(0.5 * np.log2(S / Y)), -EXPONENT), EXPONENT)
        return 2.0**power, np.sqrt(S) * np.sqrt(Y)
    largest = max(S, Y)
    return 1.0, (largest if largest > 0.0 else np.inf)


@cached_kernel
def complementary_residuals(
    pattern_fields: tuple[Positions, ...],
    free: int,
    value_fields: tuple[Floats, ...],
    point: tuple[Floats, Floats, Floats],
    denominator_fields: tuple[Floats, ...],
    out: tuple[Floats, Floats, Floats, Floats, Floats],
    first: int,
    last: int,
) -> None:
    """``row_scales.complementary_residuals`` for the elements first <= e < last; ``point`` is x, w and curved."""
    patterns, values = Patterns(*pattern_fields), Values(*value_fields)
    (x, w, curved), denominators, (y, s, dual, primal, backward) = point, Denominators(*denominator_fields), out
    n, m, c = values.q.shape[1], values.b.shape[1], denominators.c
    flat = m - curved.shape[1]
    for e in range(first, last):
        for i in range(m):
            projected = w[e, i] if i < free or w[e, i] > 0.0 else 0.0
            if i >= flat:
                projected = curved[e, i - flat]
            y[e, i], s[e, i] = projected / c[e, i], (projected - w[e, i]) * c[e, i]
            primal[e, i] = s[e, i] - values.b[e, i]
        worst = 0.0
        for j in range(n):
            total = values.q[e, j]
            for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
                total += values.P[e, p] * x[e, patterns.P_rows[p]]
            for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
                total += values.A[e, p] * y[e, patterns.A_rows[p]]
                primal[e, patterns.A_rows[p]] += values.A[e, p] * x[e, j]
            dual[e, j] = total
            worst = nan_max(worst, _ratio(total, denominators.dual[e, j]))
        for i in range(m):
            worst = nan_max(worst, _ratio(primal[e, i], denominators.primal[e, i]))
        backward[e] = np.inf if np.isnan(worst) else worst


@njit(nogil=True, error_model="numpy")
def _ratio(residual: float, size: float) -> float:
    """|residual| / size, with 0 / 0 = 0."""
    if residual == 0.0:
        return 0.0
    return abs(residual) / (size if size > 0.0 else DENOMINATOR_FLOOR)


@cached_kernel
def relative_residuals(
    pattern_fields: tuple[Positions, ...],
    free: int,
    value_fields: tuple[Floats, ...],
    r: Floats,
    point_fields: tuple[Floats, ...],
    curved: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """``row_scales.relative_residuals`` for the elements first <= e < last, in the columns of out (6, B)."""
    patterns, values, point = Patterns(*pattern_fields), Values(*value_fields), Point(*point_fields)
    n, m = values.q.shape[1], values.b.shape[1]
    flat = m - curved.shape[1]
    Px, Aty, Ax = np.empty(n), np.empty(n), np.empty(m)
    for e in range(first, last):
        x, y, s, q, b = point.x[e], point.y[e], point.s[e], values.q[e], values.b[e]
        Px[:], Ax[:] = 0.0, 0.0
        for j in range(n):
            for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
                Px[patterns.P_rows[p]] += values.P[e, p] * x[j]
            total = 0.0
            for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
                Ax[patterns.A_rows[p]] += values.A[e, p] * x[j]
                total += values.A[e, p] * y[patterns.A_rows[p]]
            Aty[j] = total
        dual, dual_size, xPx, qx = 0.0, 1.0, 0.0, 0.0
        for j in range(n):
            dual = nan_max(dual, abs(Px[j] + q[j] + Aty[j]))
            dual_size = max(dual_size, max(abs(Px[j]), max(abs(q[j]), abs(Aty[j]))))
            xPx += x[j] * Px[j]
            qx += x[j] * q[j]
        primal, primal_size, by, natural, size = 0.0, 1.0, 0.0, 0.0, 1.0
        for i in range(m):
            primal = nan_max(primal, abs(Ax[i] + s[i] - b[i]))
            primal_size = max(primal_size, max(abs(Ax[i]), max(abs(s[i]), abs(b[i]))))
            by += b[i] * y[i]
            size = max(size, max(abs(y[i]), abs(s[i])))
            w = y[i] - s[i]
            projected = curved[e, i - flat] if i >= flat else (w if i < free or w > 0.0 else 0.0)
            natural = nan_max(natural, abs(y[i] - projected))
        gap = abs(xPx + qx + by) / max(1.0, max(abs(xPx), max(abs(qx), abs(by))))
        primal, dual, natural = primal / primal_size, dual / dual_size, natural / size
        worst = nan_max(nan_max(primal, dual), nan_max(gap, natural))
        out[0, e], out[1, e], out[2, e], out[3, e] = primal, dual, gap, natural
        out[4, e] = np.inf if np.isnan(worst) else worst
        out[5, e] = 0.5 * xPx + qx + r[e]


@njit(nogil=True)
def nan_max(largest: float, value: float) -> float:
    """The larger of two numbers; NaN if either is."""
    return largest if value <= largest or np.isnan(largest) else value
