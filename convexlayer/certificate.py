"""Componentwise backward errors at complementary points, the certificate of a solution.

Norms of residuals over a whole problem hide a row that is entirely wrong if another row is much larger. Therefore each
row residual is divided by the sum of the magnitudes of its own terms (Oettli and Prager 1964; Arioli, Demmel and Duff
1989):

    |Px + q + A'y|_j / (|P||x| + |q| + |A|'|y|)_j        |Ax + s - b|_i / (|A||x| + |s| + |b|)_i

at a point at which y in K*, s in K and s'y = 0 hold exactly. Then the point solves a program whose coefficients differ
from the given ones by at most this relative error. Such a point is computed block by block: for any c > 0,

    y in K*, s in K, s'y = 0   if and only if   c y = Pi_{K*}(w),  s / c = c y - w   for   w = c y - s / c.

The scale c^2 = S / Y, the ratio of the sizes at which s and y matter in their rows, distributes the change by the
projection evenly between s and y, and keeps the digits of both in w.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.cones import ProductCone, ProductDerivative, ProductPoint, product_cone
from convexlayer.program import Array, ConeProgram, IndexArray, max_norm
from convexlayer.rays import BoolArray
from convexlayer.sparse import Denominators, Point, complementary_residuals, row_scales
from convexlayer.sparse.row_scales import ROUNDING, ZERO_REFERENCE

__all__ = ["ComplementaryPoint", "Scales", "held_at_zero", "scales_at"]


@final
@dataclass(frozen=True, eq=False)
class Scales:
    """Row-wise scales of a batch of points.

    Attributes:
        variable: (B, n), the size at which x_j would dominate one of its rows.
        dual: (B, n), sums of the magnitudes of the terms of Px + q + A'y.
        primal: (B, m), sums of the magnitudes of the terms of Ax + s - b.
        c: (B, m), sqrt(S / Y) of each block, rounded to a power of two; 1 for rows of the zero cone.
        size: (B, m), sqrt(S Y), the reference size of w in each block.
        dual_rounding: (B, n), bound on the rounding error of Px + q + A'y.
        primal_rounding: (B, m), bound on the rounding error of Ax + s - b.
    """

    variable: Array
    dual: Array
    primal: Array
    c: Array
    size: Array
    dual_rounding: Array
    primal_rounding: Array

    def w(self, y: Array, s: Array) -> Array:
        """Compute w = c y - s / c, (B, m)."""
        return self.c * y - s / self.c


def scales_at(program: ConeProgram, cone: ProductCone, x: Array, y: Array, s: Array) -> Scales:
    """Compute the scales at points x (B, n), y (B, m) and s (B, m)."""
    structure = program.structure
    return Scales(*row_scales((structure.P, structure.A), cone.blocks, cone.zero, program.values, Point(x, y, s)))


@final
@dataclass(frozen=True, eq=False)
class ComplementaryPoint:
    """A batch of points that satisfy y in K*, s in K and s'y = 0 exactly.

    Attributes:
        x: primal variables, (B, n).
        y: dual variables, (B, m).
        s: slacks, (B, m).
        scales: row-wise scales, which define w and the backward errors.
        cones: projection and derivative at w = c y - s / c.
        dual: dual residual Px + q + A'y, (B, n).
        primal: primal residual Ax + s - b, (B, m).
        backward: largest componentwise backward error, (B,); infinite if a residual is NaN.
        packed: the same numbers in the kernels' order (``diff.lanes.points``), if kernels computed them.
    """

    x: Array
    y: Array
    s: Array
    scales: Scales
    cones: ProductPoint
    dual: Array
    primal: Array
    backward: Array
    packed: Array | None = None

    @staticmethod
    def near(program: ConeProgram, x: Array, y: Array, s: Array, *, trust: Array | None = None) -> ComplementaryPoint:
        """Project (y, s) to the nearest complementary point in the row-wise scales.

        Args:
            program: the programs.
            x: primal variables, (B, n).
            y: dual variables, (B, m).
            s: slacks, (B, m). Entries of w that are not finite are replaced by 0.
            trust: powers of two, (B, m), by which c is multiplied: large ones keep y, small ones keep s.
        """
        cone = product_cone(program.structure.cones)
        scales = scales_at(program, cone, x, y, s)
        if trust is not None:
            scales.c[:, cone.zero :] *= trust[:, cone.zero :]
        w = scales.w(y, s)
        return ComplementaryPoint.at(program, x, scales, cone.at(np.where(np.isfinite(w), w, 0.0)))

    @staticmethod
    def at(program: ConeProgram, x: Array, scales: Scales, cones: ProductPoint) -> ComplementaryPoint:
        """Compute the complementary point at x and at the w of ``cones``, with backward errors by ``scales``."""
        structure, cone = program.structure, cones.cone
        y, s, *residuals = complementary_residuals(
            (structure.P, structure.A), cone.zero, program.values, x, cones.w, cones.curved_projection,
            Denominators(scales.c, scales.dual, scales.primal),
        )  # fmt: skip
        return ComplementaryPoint(x, y, s, scales, cones, *residuals)

    @cached_property
    def margin(self) -> Array:
        """Strict complementarity margin: the smallest margin of a block relative to its size, (B,)."""
        return self.cones.derivative.relative_margin(self.scales.size)

    def margin_without(self, rows: BoolArray) -> Array:
        """The margin over all blocks except those in the mask ``rows`` (B, m), which covers whole blocks."""
        size = np.where(rows, 0.0, self.scales.size)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.cones.derivative.relative_margin(size)

    def one_sided_derivative(self, weak: BoolArray, side: Array, share: Array) -> ProductDerivative:
        """The one-sided derivative D near its jumps in the weak rows.

        Args:
            weak: mask (B, m) of the rows in which w is moved to one side.
            side: (m,), 1 for the side of K*, -1 for the side of -K.
            share: (B,), distance of the move relative to the block's size.
        """
        cone, w = self.cones.cone, self.cones.w
        size = np.where(np.isfinite(self.scales.size), self.scales.size, 1.0)
        step = side * cone.centre * (share[:, None] * size)
        flat = slice(0, cone.flat)
        moved = w + step
        moved[:, flat] = side[flat]  # only the sign matters there, and the size of a row may be 0
        return cone.derivative(np.where(weak & np.isfinite(moved), moved, w))

    def select(self, index: IndexArray) -> ComplementaryPoint:
        """Select the elements at these ascending positions."""
        if len(index) == len(self.backward):
            return self
        scales = Scales(*(getattr(self.scales, entry.name)[index] for entry in fields(Scales)))
        return ComplementaryPoint(
            self.x[index],
            self.y[index],
            self.s[index],
            scales,
            self.cones.cone.at(self.cones.w[index]),
            self.dual[index],
            self.primal[index],
            self.backward[index],
        )

    def with_elements(self, index: IndexArray, other: ComplementaryPoint) -> ComplementaryPoint:
        """Replace the elements at these ascending positions by those of ``other``."""
        if not len(index):
            return self
        if len(index) == len(self.backward):
            return other

        def merged(mine: Array, theirs: Array) -> Array:
            whole = mine.copy()
            whole[index] = theirs
            return whole

        pairs = ((getattr(self.scales, entry.name), getattr(other.scales, entry.name)) for entry in fields(Scales))
        return ComplementaryPoint(
            merged(self.x, other.x),
            merged(self.y, other.y),
            merged(self.s, other.s),
            Scales(*(merged(*pair) for pair in pairs)),
            self.cones.cone.at(merged(self.cones.w, other.cones.w)),
            merged(self.dual, other.dual),
            merged(self.primal, other.primal),
            merged(self.backward, other.backward),
        )

    def inaccurate(self, program: ConeProgram, bound: float) -> tuple[BoolArray, BoolArray]:
        """Masks of the variables (B, n) and blocks (B, m) coupled to a row whose backward error exceeds ``bound``."""
        A, cone = program.structure.A, self.cones.cone
        stored = program.A != 0.0
        dual, primal = (
            ~(np.abs(self.dual) <= bound * self.scales.dual),
            ~(np.abs(self.primal) <= bound * self.scales.primal),
        )
        rows = primal | (A.by_row(np.maximum, (stored & dual[:, A.cols]).astype(float), 0.0) > 0)
        rows = cone.largest_of_blocks(rows.astype(float)) > 0
        return dual | (A.by_col(np.maximum, (stored & rows[:, A.rows]).astype(float), 0.0) > 0), rows

    def relative_change(self, dx: Array, dw: Array) -> Array:
        """Largest relative change (B,) of an entry of x, or of an entry of w relative to its block.

        Entries of x that are rounding errors count as 0; their changes are divided by ZERO_REFERENCE times
        ``scales.variable``.
        """
        x, variable = np.abs(self.x), self.scales.variable
        with np.errstate(divide="ignore", invalid="ignore"):
            of_x = np.abs(dx) / np.where(x > ROUNDING * variable, x, ZERO_REFERENCE * variable)
        return np.maximum(max_norm(np.where(dx == 0.0, 0.0, of_x)), max_norm(dw / self.scales.size))

    def derivative_change(self, dw: Array) -> Array:
        """Largest relative change (B,) of an eigenvalue d or 1 - d of D if w changes by dw."""
        w = self.cones.w + dw
        return self.derivative.relative_change(self.cones.cone.derivative(np.where(np.isfinite(w), w, 0.0)))

    @property
    def derivative(self) -> ProductDerivative:
        """The derivative of the projection onto K* at w."""
        return self.cones.derivative


def held_at_zero(program: ConeProgram, s: Array) -> BoolArray:
    """Mask (B, n) of the variables held at 0 by an active row a x_j + s_i = b_i with s_i = b_i = 0."""
    rows, columns, starts = program.structure.singleton_rows
    held = np.zeros_like(program.q, dtype=bool)
    if len(rows):
        active = (s[:, rows] == 0.0) & (program.b[:, rows] == 0.0)
        held[:, columns] = np.logical_or.reduceat(active, starts, axis=1)
    return held
