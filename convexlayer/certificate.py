"""How good a point is, row by row: componentwise backward errors at a complementary point.

Norms over a whole problem cannot see a row that is wrong altogether where another is much larger. So every row is held
against the sum of the magnitudes of its own terms (Oettli and Prager 1964; Arioli, Demmel and Duff 1989):

    |Px + q + A'y|_j / (|P||x| + |q| + |A|'|y|)_j        |Ax + s - b|_i / (|A||x| + |s| + |b|)_i

at a point where y in K*, s in K and s'y = 0 hold exactly: (y, s) is the solution of a program each of whose numbers
differs by no more than that share. Such a point is found block by block. For any c > 0

    y in K*, s in K, s'y = 0    is    c y = Pi_{K*}(w),  s / c = c y - w    for    w = c y - s / c,

and c^2 = S / Y, the ratio of the sizes at which s and y matter in their rows, spreads what the projection changes
evenly among both, and keeps the digits of both in w.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.cones import ProductCone, ProductDerivative, ProductPoint, product_cone
from convexlayer.program import Array, ConeProgram, IndexArray, max_norm
from convexlayer.rays import BoolArray
from convexlayer.runtime import kernel_cache
from convexlayer.sparse import complementary, scales

__all__ = ["ComplementaryPoint", "Scales", "held_at_zero", "scales_at"]

FLOOR = 1e-6
"""A variable is taken to be of at least this size, relative to the one at which it would dominate a row. It tells
rounding, where the solution is 0, from numbers."""

EPS = 2.0 * float(np.finfo(float).eps)
"""Rounding of a sum, relative to its terms, and of a projection, relative to its block."""

OF_ZERO = 1e-7
"""Size that changes of an entry of x that is 0 are held against, relative to the one that would dominate a row."""

ROUNDING = 1e-14
"""What is smaller than this, relative to what would dominate a row, is taken for 0."""

WITHIN = 1e-5
"""A row of a curved cone is taken to be of at least this size, relative to the largest of its block: projections are
exact to rounding of the whole block."""

LOST = 1e-12
"""A number of b that is smaller than this, relative to its block, is lost in it: then the row has its own size."""

BOUND = 8.0
"""How much larger than the terms of its row s must be, for a row to count as large: where x_j >= 0 is active and x_j is
still a small number, that number is its row's only size."""

NOTICED = 1e-2
"""Where both s and y of a curved block are more than this, relative to what matters, they balance each other."""

EXPONENT = 200.0
"""c lies between 2 to the minus and to the plus this."""


@final
@dataclass(frozen=True, eq=False)
class Scales:
    """The sizes of a batch of points, row by row.

    Attributes:
        variable: (B, n), the size of x_j at which it would dominate one of its rows.
        dual: (B, n), sums of the magnitudes of the terms of Px + q + A'y.
        primal: (B, m), those of Ax + s - b.
        c: (B, m), a power of two for each block, sqrt(S / Y); 1 for rows of the zero cone.
        size: (B, m), sqrt(S Y): the w of a block that is of the size of its row's terms.
        dual_rounding: (B, n), what rounding may do to a row of Px + q + A'y.
        primal_rounding: (B, m), what it may do to one of Ax + s - b.
    """

    variable: Array
    dual: Array
    primal: Array
    c: Array
    size: Array
    dual_rounding: Array
    primal_rounding: Array

    def w(self, y: Array, s: Array) -> Array:
        """C y - s / c, (B, m)."""
        return self.c * y - s / self.c


def scales_at(program: ConeProgram, cone: ProductCone, x: Array, y: Array, s: Array) -> Scales:
    """The scales at points x (B, n), y (B, m) and s (B, m)."""
    if kernel_cache.ready():
        constants = (WITHIN, FLOOR, LOST, BOUND, NOTICED, EXPONENT, EPS, ROUNDING)
        data = (program.P, program.q, program.A, program.b, x, y, s)
        return Scales(*scales(program.structure.by_columns, cone.blocks, cone.free, constants, data))
    P, A = program.structure.P, program.structure.A
    abs_P, abs_A, abs_q, abs_b = map(np.abs, (program.P, program.A, program.q, program.b))
    abs_x, abs_y, abs_s = map(np.abs, (x, y, s))
    curved = slice(cone.flat, None)
    abs_y[:, curved] = np.maximum(abs_y, WITHIN * cone.largest_of_blocks(abs_y))[:, curved]

    def sums(x: Array, y: Array) -> tuple[Array, Array]:
        dual = P.matvec(abs_P, x) + abs_q + A.rmatvec(abs_A, y)
        return dual, A.matvec(abs_A, x) + abs_b + abs_s

    dual, primal = sums(abs_x, abs_y)
    primal = cone.largest_of_blocks(primal)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        of_rows = np.where(abs_A > 0, primal[:, A.rows] / abs_A, 0.0)
        of_cols = np.where(abs_A > 0, dual[:, A.cols] / abs_A, 0.0)
        diagonal = P.rows == P.cols
        curvature = np.zeros_like(x)
        curvature[:, P.rows[diagonal]] = abs_P[:, diagonal]
        of_curvature = np.where(curvature > 0, dual / curvature, 0.0)
        variable = np.maximum(of_curvature, A.by_col(np.maximum, of_rows, 0.0))
        multiplier = cone.largest_of_blocks(A.by_row(np.maximum, of_cols, 0.0))
        dual, primal = sums(np.maximum(abs_x, FLOOR * variable), np.maximum(abs_y, FLOOR * multiplier))
        columns = np.maximum(dual, ROUNDING * max_norm(dual)[:, None])
        matters = np.where((abs_A > 0) & (columns[:, A.cols] > 0), columns[:, A.cols] / abs_A, np.inf)
        Y = A.by_row(np.minimum, matters, np.inf)
    S = cone.largest_of_blocks(primal)
    hidden = (abs_b > 0) & (abs_b < LOST * S)
    primal[:, curved] = np.where(hidden, primal, np.maximum(primal, WITHIN * S))[:, curved]
    Y = cone.largest_of_blocks(np.where(np.isfinite(Y), Y, 0.0))
    S = S * BOUND
    s_norm, y_norm = cone.largest_of_blocks(np.abs(s)), cone.largest_of_blocks(np.abs(y))
    both = (s_norm > NOTICED * S) & (y_norm > NOTICED * Y)
    both[:, : cone.flat] = False
    S, Y = np.where(both, s_norm, S), np.where(both, y_norm, Y)
    known = (S > 0) & (Y > 0)
    exponent = 0.5 * np.log2(np.where(known, S, 1.0) / np.where(known, Y, 1.0))
    c = np.exp2(np.clip(np.rint(exponent), -EXPONENT, EXPONENT))
    c[:, : cone.free] = 1.0
    size = np.where(known, np.sqrt(S) * np.sqrt(Y), np.maximum(S, Y))
    size[size == 0.0] = np.inf
    w_norm = cone.largest_of_blocks(np.abs(c * y) + np.abs(s) / c)
    w_norm[:, : cone.flat] = 0.0
    noise = (
        EPS * (P.matvec(abs_P, np.abs(x)) + abs_q + A.rmatvec(abs_A, np.abs(y) + w_norm / c)),
        EPS * (A.matvec(abs_A, np.abs(x)) + abs_b + np.abs(s) + w_norm * c),
    )
    return Scales(variable, dual, primal, c, size, *noise)


@final
@dataclass(frozen=True, eq=False)
class ComplementaryPoint:
    """Points of a batch where y in K*, s in K and s'y = 0 hold exactly.

    Attributes:
        x: (B, n).
        y: (B, m).
        s: (B, m).
        scales: the sizes of terms, by which w is balanced and residuals are judged.
        cones: the cones at w = c y - s / c.
        dual: Px + q + A'y, (B, n).
        primal: Ax + s - b, (B, m).
        backward: the largest componentwise backward error, (B,); infinite where one is not a number.
    """

    x: Array
    y: Array
    s: Array
    scales: Scales
    cones: ProductPoint
    dual: Array
    primal: Array
    backward: Array

    @staticmethod
    def near(program: ConeProgram, x: Array, y: Array, s: Array, *, trust: Array | None = None) -> ComplementaryPoint:
        """The complementary point nearest to a point, in the sizes of its rows; that at 0 where it is not finite.

        Args:
            program: the programs.
            x: (B, n).
            y: (B, m).
            s: (B, m).
            trust: powers of two, (B, m), by which c is multiplied: y is kept where they are large, s where they are
                small.
        """
        cone = product_cone(program.structure.cones)
        scales = scales_at(program, cone, x, y, s)
        if trust is not None:
            scales.c[:, cone.free :] *= trust[:, cone.free :]
        w = scales.w(y, s)
        return ComplementaryPoint.at(program, x, scales, cone.at(np.where(np.isfinite(w), w, 0.0)))

    @staticmethod
    def at(program: ConeProgram, x: Array, scales: Scales, cones: ProductPoint) -> ComplementaryPoint:
        """The point at x, and at the w of the cones, which these scales balanced and by which it is judged."""
        if kernel_cache.ready():
            data = (program.P, program.q, program.A, program.b, x, cones.w, cones.curved_projection, scales.c)
            found = complementary(program.structure.by_columns, cones.cone.free, (*data, scales.dual, scales.primal))
            y, s, *rest = found
            return ComplementaryPoint(x, y, s, scales, cones, *rest)
        P, A = program.structure.P, program.structure.A
        projection = cones.projection
        y, s = projection / scales.c, (projection - cones.w) * scales.c
        dual = P.matvec(program.P, x) + program.q + A.rmatvec(program.A, y)
        primal = A.matvec(program.A, x) + s - program.b
        backward = np.maximum(_largest_ratio(dual, scales.dual), _largest_ratio(primal, scales.primal))
        return ComplementaryPoint(x, y, s, scales, cones, dual, primal, backward)

    @cached_property
    def margin(self) -> Array:
        """The least margin of a block relative to its size, (B,)."""
        return self.cones.derivative.relative_margin(self.scales.size)

    def margin_without(self, rows: BoolArray) -> Array:
        """The margin without some rows (B, m), of whole blocks."""
        size = np.where(rows, 0.0, self.scales.size)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.cones.derivative.relative_margin(size)

    def beside(self, weak: BoolArray, side: Array, share: Array) -> ProductDerivative:
        """D on the sides of its jumps that ``side`` (m,) tells, 1 for that of K*, -1 for that of -K.

        Where weak (B, m), w is moved there by ``share`` (B,) of its size.
        """
        cone, w = self.cones.cone, self.cones.w
        size = np.where(np.isfinite(self.scales.size), self.scales.size, 1.0)
        step = side * cone.centre * (share[:, None] * size)
        flat = slice(0, cone.flat)
        moved = w + step
        moved[:, flat] = side[flat]  # there the sign is all, and a row may have no size
        return cone.derivative(np.where(weak & np.isfinite(moved), moved, w))

    def select(self, index: IndexArray) -> ComplementaryPoint:
        """The points of the elements at these positions, which ascend."""
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
        """The points, those at these ascending positions taken from others, which are of these elements alone."""
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

    def wrong(self, program: ConeProgram, bound: float) -> tuple[BoolArray, BoolArray]:
        """Which variables (B, n), and blocks (B, m), have to do with a row whose backward error exceeds a bound."""
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
        """The largest change (B,) of an entry of x relative to it, or of one of w relative to its block.

        An entry of x that is rounding of what would matter is 0, and may change by so much.
        """
        x, variable = np.abs(self.x), self.scales.variable
        with np.errstate(divide="ignore", invalid="ignore"):
            of_x = np.abs(dx) / np.where(x > ROUNDING * variable, x, OF_ZERO * variable)
        return np.maximum(max_norm(np.where(dx == 0.0, 0.0, of_x)), max_norm(dw / self.scales.size))

    def derivative_change(self, dw: Array) -> Array:
        """The largest change (B,) of an eigenvalue d or 1 - d of D, relative to it, where w changes by dw."""
        w = self.cones.w + dw
        return self.derivative.relative_change(self.cones.cone.derivative(np.where(np.isfinite(w), w, 0.0)))

    @property
    def derivative(self) -> ProductDerivative:
        """That of the projection on K* at w."""
        return self.cones.derivative


def held_at_zero(program: ConeProgram, s: Array) -> BoolArray:
    """Which variables (B, n) are 0 because of a row a x_j + s_i = b_i where s_i and b_i are 0."""
    rows, columns, starts = program.structure.rows_of_one
    held = np.zeros_like(program.q, dtype=bool)
    if len(rows):
        active = (s[:, rows] == 0.0) & (program.b[:, rows] == 0.0)
        held[:, columns] = np.logical_or.reduceat(active, starts, axis=1)
    return held


def _largest_ratio(residual: Array, size: Array) -> Array:
    """The largest |residual| / size of each element, 0 / 0 being 0; infinite where one is not a number."""
    magnitude = np.abs(residual)
    ratio = np.where(magnitude > 0, magnitude / np.where(size > 0, size, 1e-300), 0.0)
    largest: Array = np.max(np.where(np.isnan(magnitude), np.inf, ratio), axis=1, initial=0.0)
    return largest
