"""Complementary points of the elements in the lanes (see ``certificate.ComplementaryPoint``), one after another."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from convexlayer.cones.kernels.table import project
from convexlayer.diff.lanes.layout import SystemLayout
from convexlayer.program import Array
from convexlayer.sparse.residual_kernels import complementary_of_element, nan_max
from convexlayer.sparse.row_kernels import RowWork, scales_of, scales_of_element
from convexlayer.sparse.row_scales import ROUNDING, ZERO_REFERENCE
from convexlayer.sparse.structures import Denominators, Point, RowScales, Values

__all__ = ["Points", "change_of", "complete_point", "copy_point", "new_points", "point_near", "points_from"]


class Points(NamedTuple):
    """Complementary points, by index.

    Attributes:
        x: (points, n).
        y: (points, m).
        s: (points, m).
        w: c y - s / c, (points, m).
        dual: dual residuals, (points, n).
        primal: primal residuals, (points, m).
        scales: row-wise scales.
        projection: the projection of w onto K*, (points, m).
        saved: what the kernels of the cones save, (points, entries).
    """

    x: Array
    y: Array
    s: Array
    w: Array
    dual: Array
    primal: Array
    scales: RowScales
    projection: Array
    saved: Array


@njit(nogil=True)
def new_points(layout: SystemLayout, points: int) -> Points:
    """Allocate points."""
    n, m = layout.sizes.n, layout.sizes.m
    return points_from(
        (
            np.empty((points, n)), np.empty((points, m)), np.empty((points, m)), np.empty((points, m)),
            np.empty((points, n)), np.empty((points, m)),
        ),
        (
            np.empty((points, n)), np.empty((points, n)), np.empty((points, m)), np.empty((points, m)),
            np.empty((points, m)), np.empty((points, n)), np.empty((points, m)),
        ),
        np.zeros((points, m)), np.empty((points, layout.sizes.saved)),
    )  # fmt: skip


@njit(nogil=True)
def points_from(fields: tuple[Any, ...], scale_fields: tuple[Any, ...], projection: Array, saved: Array) -> Points:
    """Points from x, y, s, w, dual and primal, and the fields of their scales."""
    x, y, s, w, dual, primal = fields
    variable, dual_size, primal_size, c, size, dual_rounding, primal_rounding = scale_fields
    scales = RowScales(variable, dual_size, primal_size, c, size, dual_rounding, primal_rounding)
    return Points(x, y, s, w, dual, primal, scales, projection, saved)


@njit(nogil=True)
def point_of(points: Points, k: int) -> Point:
    """x, y and s of point k."""
    return Point(points.x[k], points.y[k], points.s[k])


@njit(nogil=True, error_model="numpy")
def point_near(layout: SystemLayout, values: Values, given: Point, points: Points, k: int, work: RowWork) -> float:
    """Point k <- the complementary point nearest to a given point; returns its backward error."""
    scales, w = scales_of(points.scales, k), points.w[k]
    scales_of_element(layout.patterns, values, layout.starts, layout.sizes.zero, given, scales, work)
    for i in range(len(w)):
        value = scales.c[i] * given.y[i] - given.s[i] / scales.c[i]
        w[i] = value if np.isfinite(value) else 0.0
    points.x[k] = given.x
    project(layout.blocks, w, points.projection[k], points.saved[k])
    return complete_point(layout, values, points, k)


@njit(nogil=True, error_model="numpy")
def complete_point(layout: SystemLayout, values: Values, points: Points, k: int) -> float:
    """Compute y, s and the residuals of point k from x, w, its projection and scales; returns the backward error."""
    scales = scales_of(points.scales, k)
    return complementary_of_element(
        layout.patterns, values, layout.sizes.zero, points.w[k], points.projection[k][layout.sizes.flat :],
        Denominators(scales.c, scales.dual, scales.primal), point_of(points, k), points.dual[k], points.primal[k],
    )  # fmt: skip


@njit(nogil=True)
def copy_point(points: Points, k: int, out: Points, e: int) -> None:
    """Point e of ``out`` <- point k, without the projection and what the cones saved."""
    out.x[e], out.y[e], out.s[e], out.w[e] = points.x[k], points.y[k], points.s[k], points.w[k]
    out.dual[e], out.primal[e] = points.dual[k], points.primal[k]
    mine, theirs = scales_of(points.scales, k), scales_of(out.scales, e)
    theirs.variable[:], theirs.dual[:], theirs.primal[:] = mine.variable, mine.dual, mine.primal
    theirs.c[:], theirs.size[:] = mine.c, mine.size
    theirs.dual_rounding[:], theirs.primal_rounding[:] = mine.dual_rounding, mine.primal_rounding


@njit(nogil=True, error_model="numpy")
def change_of(x: Array, variable: Array, size: Array, dx: Array, dw: Array) -> float:
    """``ComplementaryPoint.relative_change`` of one element."""
    largest = 0.0
    for j in range(len(x)):
        if dx[j] != 0.0:
            known = abs(x[j]) > ROUNDING * variable[j]
            largest = nan_max(largest, abs(dx[j]) / (abs(x[j]) if known else ZERO_REFERENCE * variable[j]))
    for i in range(len(dw)):
        largest = nan_max(largest, abs(dw[i]) / size[i])
    return largest
