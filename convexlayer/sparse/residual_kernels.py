"""Kernels of ``row_scales``: residuals of points.

The functions of one element take structures whose arrays have no batch axis; the kernels of ``diff`` call them too.
"""

from __future__ import annotations

import numpy as np

from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.runtime.inner_function import inner_function
from convexlayer.sparse.row_kernels import element_of, point_of
from convexlayer.sparse.row_scales import DENOMINATOR_FLOOR
from convexlayer.sparse.structures import Denominators, Floats, Patterns, Point, Positions, Values

__all__ = [
    "complementary_of_element",
    "complementary_residuals",
    "nan_max",
    "norm_of",
    "relative_residuals",
    "residuals_of_element",
]


@cached_kernel
def complementary_residuals(
    pattern_fields: tuple[Positions, ...],
    free: int,
    value_fields: tuple[Floats, ...],
    given: tuple[Floats, Floats, Floats],
    denominator_fields: tuple[Floats, ...],
    out: tuple[Floats, Floats, Floats, Floats, Floats],
    first: int,
    last: int,
) -> None:
    """``row_scales.complementary_residuals`` for the elements first <= e < last; ``given`` is x, w and curved."""
    patterns, values = Patterns(*pattern_fields), Values(*value_fields)
    (x, w, curved), sizes, (y, s, dual, primal, backward) = given, Denominators(*denominator_fields), out
    for e in range(first, last):
        backward[e] = complementary_of_element(
            patterns, element_of(values, e), free, w[e], curved[e],
            Denominators(sizes.c[e], sizes.dual[e], sizes.primal[e]), Point(x[e], y[e], s[e]), dual[e], primal[e],
        )  # fmt: skip


@inner_function
def complementary_of_element(
    patterns: Patterns,
    values: Values,
    free: int,
    w: Floats,
    curved: Floats,
    sizes: Denominators,
    point: Point,
    dual: Floats,
    primal: Floats,
) -> float:
    """The complementary point of one element, and its backward error.

    Args:
        patterns: those of P and A.
        values: the program.
        free: number of rows of the zero cone.
        w: (m,).
        curved: the last rows of its projection, those of curved cones.
        sizes: c, and the denominators.
        point: x; y and s are out.
        dual: out, the dual residual, (n,).
        primal: out, the primal residual, (m,).
    """
    x, y, s, c = point.x, point.y, point.s, sizes.c
    flat = len(w) - len(curved)
    for i in range(len(w)):
        projected = w[i] if i < free or w[i] > 0.0 else 0.0
        if i >= flat:
            projected = curved[i - flat]
        y[i], s[i] = projected / c[i], (projected - w[i]) * c[i]
        primal[i] = s[i] - values.b[i]
    worst = 0.0
    for j in range(len(x)):
        total = values.q[j]
        for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
            total += values.P[p] * x[patterns.P_rows[p]]
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            total += values.A[p] * y[patterns.A_rows[p]]
            primal[patterns.A_rows[p]] += values.A[p] * x[j]
        dual[j] = total
        worst = nan_max(worst, _ratio(total, sizes.dual[j]))
    for i in range(len(w)):
        worst = nan_max(worst, _ratio(primal[i], sizes.primal[i]))
    return np.inf if np.isnan(worst) else worst


@inner_function
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
    Px, Ax = np.empty(values.q.shape[1]), np.empty(values.b.shape[1])
    for e in range(first, last):
        residuals_of_element(
            patterns, element_of(values, e), free, r[e], point_of(point, e), curved[e], (Px, Ax), out[:, e]
        )


@inner_function
def residuals_of_element(
    patterns: Patterns,
    values: Values,
    free: int,
    r: float,
    point: Point,
    curved: Floats,
    products: tuple[Floats, Floats],
    out: Floats,
) -> None:
    """``row_scales.relative_residuals`` of one element.

    Args:
        patterns: those of P and A.
        values: the program.
        free: number of rows of the zero cone.
        r: the constant of its objective.
        point: the point.
        curved: the last rows of the projection of y - s, those of curved cones.
        products: scratch, (n,) and (m,).
        out: out, (6,).
    """
    (Px, Ax), (x, y, s), q, b = products, point, values.q, values.b
    flat = len(b) - len(curved)
    Px[:], Ax[:] = 0.0, 0.0
    for j in range(len(x)):
        for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
            Px[patterns.P_rows[p]] += values.P[p] * x[j]
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            Ax[patterns.A_rows[p]] += values.A[p] * x[j]
    dual, dual_size, xPx, qx = 0.0, 1.0, 0.0, 0.0
    for j in range(len(x)):
        Aty = 0.0
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            Aty += values.A[p] * y[patterns.A_rows[p]]
        dual = nan_max(dual, abs(Px[j] + q[j] + Aty))
        dual_size = max(dual_size, max(abs(Px[j]), max(abs(q[j]), abs(Aty))))
        xPx += x[j] * Px[j]
        qx += x[j] * q[j]
    primal, primal_size, by, natural, size = 0.0, 1.0, 0.0, 0.0, 1.0
    for i in range(len(b)):
        primal = nan_max(primal, abs(Ax[i] + s[i] - b[i]))
        primal_size = max(primal_size, max(abs(Ax[i]), max(abs(s[i]), abs(b[i]))))
        by += b[i] * y[i]
        size = max(size, max(abs(y[i]), abs(s[i])))
        w = y[i] - s[i]
        projected = curved[i - flat] if i >= flat else (w if i < free or w > 0.0 else 0.0)
        natural = nan_max(natural, abs(y[i] - projected))
    gap = abs(xPx + qx + by) / max(1.0, max(abs(xPx), max(abs(qx), abs(by))))
    primal, dual, natural = primal / primal_size, dual / dual_size, natural / size
    worst = nan_max(nan_max(primal, dual), nan_max(gap, natural))
    out[0], out[1], out[2], out[3] = primal, dual, gap, natural
    out[4] = np.inf if np.isnan(worst) else worst
    out[5] = 0.5 * xPx + qx + r


@inner_function
def nan_max(largest: float, value: float) -> float:
    """The larger of two numbers; NaN if either is."""
    return largest if value <= largest or np.isnan(largest) else value


@inner_function
def norm_of(values: Floats) -> float:
    """The maximum norm; NaN if an entry is."""
    largest = 0.0
    for value in values:
        largest = nan_max(largest, abs(value))
    return largest
