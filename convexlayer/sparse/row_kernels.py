"""Kernels of ``row_scales``: the scales that residuals are measured by.

The functions of one element take structures whose arrays have no batch axis; the kernels of ``diff`` call them too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.runtime.inner_function import inner_function
from convexlayer.sparse.row_scales import (
    BALANCE_THRESHOLD,
    BLOCK_FLOOR,
    EPS,
    EXPONENT,
    FLOOR,
    LOST_IN_BLOCK,
    ROUNDING,
    SLACK_FACTOR,
)
from convexlayer.sparse.structures import Floats, Patterns, Point, Positions, RowScales, Values

__all__ = [
    "RowWork",
    "element_of",
    "new_row_work",
    "point_of",
    "row_scales",
    "scales_of",
    "scales_of_element",
]


class RowWork(NamedTuple):
    """Scratch of one element: abs_x (n,), and abs_y, Y and S (m,)."""

    abs_x: Floats
    abs_y: Floats
    Y: Floats
    S: Floats


@inner_function
def new_row_work(n: int, m: int) -> RowWork:
    """Allocate the scratch."""
    return RowWork(np.empty(n), np.empty(m), np.empty(m), np.empty(m))


@inner_function
def element_of(values: Values, e: int) -> Values:
    """The values of element e."""
    return Values(values.P[e], values.q[e], values.A[e], values.b[e])


@inner_function
def point_of(point: Point, e: int) -> Point:
    """The point of element e."""
    return Point(point.x[e], point.y[e], point.s[e])


@inner_function
def scales_of(scales: RowScales, e: int) -> RowScales:
    """The scales of element e."""
    return RowScales(
        scales.variable[e], scales.dual[e], scales.primal[e], scales.c[e], scales.size[e], scales.dual_rounding[e],
        scales.primal_rounding[e],
    )  # fmt: skip


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
    work = new_row_work(values.q.shape[1], values.b.shape[1])
    for e in range(first, last):
        scales_of_element(patterns, element_of(values, e), blocks, free, point_of(point, e), scales_of(scales, e), work)


@inner_function
def scales_of_element(
    patterns: Patterns, values: Values, blocks: Positions, free: int, point: Point, scales: RowScales, work: RowWork
) -> None:
    """Compute the scales of one element; ``scales`` is out."""
    abs_x, abs_y, Y, S = work.abs_x, work.abs_y, work.Y, work.S
    for j in range(len(abs_x)):
        abs_x[j] = abs(point.x[j])
    for i in range(len(abs_y)):
        abs_y[i] = abs(point.y[i])
    _raise_to_fraction(abs_y, blocks, BLOCK_FLOOR)
    _term_sums(patterns, values, point.s, abs_x, abs_y, scales)
    _copy(scales.primal, S)
    _largest_of_blocks(S, blocks)
    _raise_to_sizes(patterns, values, blocks, work, scales)
    _term_sums(patterns, values, point.s, abs_x, abs_y, scales)
    _copy(scales.primal, S)
    _largest_of_blocks(S, blocks)
    _multiplier_sizes(patterns, values, scales.dual, Y)
    _largest_of_blocks(Y, blocks)
    _balance_rows(values, blocks, free, point, S, Y, scales)
    _rounding_errors(patterns, values, blocks[0], point, Y, scales)


@inner_function
def _raise_to_sizes(patterns: Patterns, values: Values, blocks: Positions, work: RowWork, scales: RowScales) -> None:
    """Compute ``scales.variable``, and raise abs_x and abs_y to FLOOR times the sizes at which they dominate a row."""
    abs_x, abs_y, Y, S = work.abs_x, work.abs_y, work.Y, work.S
    Y[:] = 0.0
    dual = scales.dual
    for j in range(len(abs_x)):
        highest = 0.0
        for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
            if patterns.P_rows[p] == j and values.P[p] != 0.0:
                highest = dual[j] / abs(values.P[p])
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            i, value = patterns.A_rows[p], abs(values.A[p])
            if value > 0.0:
                highest = max(highest, S[i] / value)
                Y[i] = max(Y[i], dual[j] / value)
        scales.variable[j] = highest
        abs_x[j] = max(abs_x[j], FLOOR * highest)
    _largest_of_blocks(Y, blocks)
    for i in range(len(abs_y)):
        abs_y[i] = max(abs_y[i], FLOOR * Y[i])


@inner_function
def _multiplier_sizes(patterns: Patterns, values: Values, dual: Floats, Y: Floats) -> None:
    """Y <- the size at which each multiplier matters in one of its rows of the dual residual."""
    Y[:] = np.inf
    highest = 0.0
    for size in dual:
        highest = max(highest, size)
    for j in range(len(dual)):
        column = max(dual[j], ROUNDING * highest)
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            value = abs(values.A[p])
            if value > 0.0 and column > 0.0:
                Y[patterns.A_rows[p]] = min(Y[patterns.A_rows[p]], column / value)
    for i in range(len(Y)):
        if not np.isfinite(Y[i]):
            Y[i] = 0.0


@inner_function
def _balance_rows(
    values: Values, blocks: Positions, free: int, point: Point, S: Floats, Y: Floats, scales: RowScales
) -> None:
    """Compute c and the size of w; Y and ``scales.primal_rounding`` <- the norm of w, divided and multiplied by c."""
    c, size, primal, rounding = scales.c, scales.size, scales.primal, scales.primal_rounding
    s, y, b = point.s, point.y, values.b
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


@inner_function
def _rounding_errors(patterns: Patterns, values: Values, flat: int, point: Point, Y: Floats, scales: RowScales) -> None:
    """Compute the bounds of rounding errors of both residuals; Y is the norm of w / c in the rows after ``flat``."""
    x, y, s, primal = point.x, point.y, point.s, scales.primal_rounding
    for j in range(len(x)):
        total = abs(values.q[j])
        for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
            total += abs(values.P[p] * x[patterns.P_rows[p]])
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            i, value = patterns.A_rows[p], abs(values.A[p])
            total += value * (abs(y[i]) + (Y[i] if i >= flat else 0.0))
            primal[i] += value * abs(x[j])
        scales.dual_rounding[j] = EPS * total
    for i in range(len(y)):
        primal[i] = EPS * (primal[i] + abs(values.b[i]) + abs(s[i]))


@inner_function
def _term_sums(patterns: Patterns, values: Values, s: Floats, abs_x: Floats, abs_y: Floats, scales: RowScales) -> None:
    """dual <- |P||x| + |q| + |A|'|y| and primal <- |A||x| + |b| + |s|, for symmetric P."""
    dual, primal = scales.dual, scales.primal
    for i in range(len(primal)):
        primal[i] = abs(values.b[i]) + abs(s[i])
    for j in range(len(dual)):
        total, x_j = abs(values.q[j]), abs_x[j]
        for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
            total += abs(values.P[p]) * abs_x[patterns.P_rows[p]]
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            i, value = patterns.A_rows[p], abs(values.A[p])
            total += value * abs_y[i]
            primal[i] += value * x_j
        dual[j] = total


@inner_function
def _copy(source: Floats, target: Floats) -> None:
    for i in range(len(source)):  # Numba takes longer to compile target[:] = source
        target[i] = source[i]


@inner_function
def _largest_of_blocks(v: Floats, blocks: Positions) -> None:
    for k in range(len(blocks) - 1):
        largest = 0.0
        for i in range(blocks[k], blocks[k + 1]):
            largest = max(largest, v[i])
        for i in range(blocks[k], blocks[k + 1]):
            v[i] = largest


@inner_function
def _raise_to_fraction(v: Floats, blocks: Positions, fraction: float) -> None:
    """Raise the entries of each block to at least ``fraction`` times its largest."""
    for k in range(len(blocks) - 1):
        largest = 0.0
        for i in range(blocks[k], blocks[k + 1]):
            largest = max(largest, v[i])
        for i in range(blocks[k], blocks[k + 1]):
            v[i] = max(v[i], fraction * largest)


@inner_function
def _balance(S: float, Y: float) -> tuple[float, float]:
    """c and the size of w, from the sizes of s and y: a power of two near sqrt(S / Y), and sqrt(S Y)."""
    if S > 0.0 and Y > 0.0:
        power = min(max(np.rint(0.5 * np.log2(S / Y)), -EXPONENT), EXPONENT)
        return 2.0**power, np.sqrt(S) * np.sqrt(Y)
    largest = max(S, Y)
    return 1.0, (largest if largest > 0.0 else np.inf)
