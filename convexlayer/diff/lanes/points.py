"""Complementary points (see ``certificate.ComplementaryPoint``), one array per point.

A point is an array of parts: those of the variables (n entries each), those of the rows (m entries each), and what the
kernels of the cones save. The results of a batch end before PROJECTION.
"""

from __future__ import annotations

import numpy as np

from convexlayer.cones.kernels.table import project
from convexlayer.diff.lanes.layout import STARTS, Layout, Sizes, blocks_of, part, patterns_of, sizes_of
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function
from convexlayer.sparse.residual_kernels import complementary_of_element, nan_max
from convexlayer.sparse.row_kernels import RowWork, scales_of_element
from convexlayer.sparse.row_scales import ROUNDING, ZERO_REFERENCE
from convexlayer.sparse.structures import Denominators, Point, RowScales, Values

__all__ = [
    "DUAL",
    "DUAL_ROUNDING",
    "DUAL_SIZE",
    "OF_ROWS",
    "OF_VARIABLES",
    "PRIMAL",
    "PRIMAL_ROUNDING",
    "PRIMAL_SIZE",
    "PROJECTION",
    "SIZE",
    "VARIABLE",
    "C",
    "S",
    "W",
    "X",
    "Y",
    "change_of",
    "complete_point",
    "copy_to",
    "of_rows",
    "of_variables",
    "point_near",
    "point_size",
    "project_point",
    "saved_of",
    "scales_at",
    "write_scales",
]

OF_VARIABLES = X, DUAL, VARIABLE, DUAL_SIZE, DUAL_ROUNDING = range(5)
"""Parts of n entries: x, the dual residual, and scales."""

OF_ROWS = W, Y, S, PRIMAL, PRIMAL_SIZE, C, SIZE, PRIMAL_ROUNDING = range(8)
"""Parts of m entries: w, y, s, the primal residual, and scales."""

PROJECTION = 8
"""The part of the projection of w onto K*."""


@inner_function
def copy_to(out: Array, given: Array) -> None:
    """Out <- the first entries of a vector; a slice assignment takes Numba half a second to compile."""
    for i in range(len(out)):
        out[i] = given[i]


@inner_function
def point_size(sizes: Sizes) -> int:
    """Number of entries of a point."""
    return 5 * sizes.n + 9 * sizes.m + sizes.saved


@inner_function
def of_variables(point: Array, sizes: Sizes, k: int) -> Array:
    """Part k of the variables."""
    return point[k * sizes.n : (k + 1) * sizes.n]


@inner_function
def of_rows(point: Array, sizes: Sizes, k: int) -> Array:
    """Part k of the rows."""
    return point[5 * sizes.n + k * sizes.m : 5 * sizes.n + (k + 1) * sizes.m]


@inner_function
def saved_of(point: Array, sizes: Sizes) -> Array:
    """What the kernels of the cones save."""
    return point[5 * sizes.n + 9 * sizes.m :]


@inner_function
def scales_at(point: Array, sizes: Sizes) -> RowScales:
    """The scales."""
    return RowScales(
        of_variables(point, sizes, VARIABLE), of_variables(point, sizes, DUAL_SIZE), of_rows(point, sizes, PRIMAL_SIZE),
        of_rows(point, sizes, C), of_rows(point, sizes, SIZE), of_variables(point, sizes, DUAL_ROUNDING),
        of_rows(point, sizes, PRIMAL_ROUNDING),
    )  # fmt: skip


@inner_function
def write_scales(layout: Layout, values: Values, given: Point, point: Array, work: RowWork) -> None:
    """Compute the scales at a given point."""
    sizes = sizes_of(layout)
    starts = part(layout, STARTS)
    scales_of_element(patterns_of(layout), values, starts, sizes.zero, given, scales_at(point, sizes), work)


@inner_function
def project_point(layout: Layout, point: Array) -> None:
    """Compute the projection of w in the rows of curved cones."""
    sizes = sizes_of(layout)
    w, projection = of_rows(point, sizes, W), of_rows(point, sizes, PROJECTION)
    project(blocks_of(layout), w, projection, saved_of(point, sizes))


@inner_function
def point_near(layout: Layout, values: Values, given: Point, point: Array, work: RowWork) -> float:
    """Compute the complementary point nearest to a given point; returns its backward error."""
    sizes = sizes_of(layout)
    write_scales(layout, values, given, point, work)
    w, c, x = of_rows(point, sizes, W), of_rows(point, sizes, C), of_variables(point, sizes, X)
    for i in range(sizes.m):
        value = c[i] * given.y[i] - given.s[i] / c[i]
        w[i] = value if np.isfinite(value) else 0.0
    copy_to(x, given.x)
    project_point(layout, point)
    return complete_point(layout, values, point)


@inner_function
def complete_point(layout: Layout, values: Values, point: Array) -> float:
    """Compute y, s and the residuals from x, w, its projection and the scales; returns the backward error."""
    sizes = sizes_of(layout)
    denominators = Denominators(
        of_rows(point, sizes, C), of_variables(point, sizes, DUAL_SIZE), of_rows(point, sizes, PRIMAL_SIZE)
    )
    return complementary_of_element(
        patterns_of(layout), values, sizes.zero, of_rows(point, sizes, W),
        of_rows(point, sizes, PROJECTION)[sizes.flat :], denominators,
        Point(of_variables(point, sizes, X), of_rows(point, sizes, Y), of_rows(point, sizes, S)),
        of_variables(point, sizes, DUAL), of_rows(point, sizes, PRIMAL),
    )  # fmt: skip


@inner_function
def change_of(sizes: Sizes, point: Array, dx: Array, dw: Array) -> float:
    """``ComplementaryPoint.relative_change`` of one element."""
    x, variable, size = of_variables(point, sizes, X), of_variables(point, sizes, VARIABLE), of_rows(point, sizes, SIZE)
    largest = 0.0
    for j in range(len(x)):
        if dx[j] != 0.0:
            known = abs(x[j]) > ROUNDING * variable[j]
            largest = nan_max(largest, abs(dx[j]) / (abs(x[j]) if known else ZERO_REFERENCE * variable[j]))
    for i in range(len(dw)):
        largest = nan_max(largest, abs(dw[i]) / size[i])
    return largest
