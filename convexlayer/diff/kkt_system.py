"""The symmetric KKT system that all derivatives and Newton steps solve.

With D the derivative of Pi_{K*} at w = y - s and L L' = D,

    K = [ P      A'L         ]        K [l; u] = [top; L'bottom],  v = L u
        [ L'A   -(I - L'L)   ]

is symmetric, quasi-definite after regularisation, and has the same pattern for all active sets. (l, v) solves

    P l + A'v = top,   D (A l - bottom) = (I - D) v,   v in the range of D.

Rows of curved cones are divided by c, and D is evaluated at w = c y - s / c (see ``certificate``): A / c, bottom / c
and c v take the places of A, bottom and v. In polyhedral cones D does not depend on c.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from convexlayer.certificate import ComplementaryPoint
from convexlayer.cones import KroneckerBasis, ProductDerivative, product_cone
from convexlayer.diff.matrix_free import MatrixFreeSystem
from convexlayer.diff.report import ACCURATE
from convexlayer.diff.rows import FlatRows, Section, SystemColumns, rows_of
from convexlayer.linalg import (
    RESIDUAL_TOL,
    SINGULAR,
    AbstractBackend,
    AbstractFactoriser,
    RefinedFactor,
    choose_factoriser,
)
from convexlayer.program import Array, ConeProgram, IndexArray, Pattern, Structure
from convexlayer.solution import BoolArray
from convexlayer.sparse import EntriesOfSystem, entries_of_system

if TYPE_CHECKING:
    from convexlayer.diff.lanes.calls import LaneSystem

__all__ = ["KKTFactor", "KKTSystem"]

NOISE = 1e-12
"""Entries of a solution below this factor times the magnitude of the terms in their rows are rounding errors."""

NEWTON_REFINEMENTS = 3
"""Solves with the factor in a Newton step: a step need not be more accurate than its length."""

LEFTOVER = 1e-8
"""Entries of a null vector up to this fraction of the largest entry are rounding errors."""


@final
class KKTSystem:
    """Symbolic analysis of K, computed once per layer: its pattern, and the source of each value."""

    def __init__(self, structure: Structure, backend: AbstractBackend | None = None, *, device: str = "cpu") -> None:
        """Analyse a structure and choose the factorisation.

        Args:
            structure: structure of the programs.
            backend: linear algebra backend; by default chosen by the installed packages, device, size and density. Not
                used with large semidefinite blocks, which are not stored (see ``matrix_free``).
            device: torch device of dense factorisations.
        """
        self.structure = structure
        self.cone = product_cone(structure.cones)
        n, P = structure.n, structure.P
        self.flat = FlatRows(self.cone.flat, structure)
        self.rows = rows_of(self.cone.groups[self.cone.flat_groups :], structure)
        self._signs = np.concatenate([np.ones(n), -np.ones(structure.m), *(rows.extra_signs for rows in self.rows)])
        upper = np.flatnonzero(P.rows <= P.cols)
        missing = np.setdiff1d(np.arange(n), P.rows[P.rows == P.cols])
        sections = [(P.rows[upper], P.cols[upper]), *self.flat.sections, (missing, missing)]
        curved = [section for rows in self.rows for section in rows.sections]
        self.pattern, places = _merge(sections + curved, len(self._signs))
        self._sparse = EntriesOfSystem(upper, places[0], self.flat.source, self.flat.row, places[1], places[2])
        later = iter(places[4:])
        self._places = [[next(later) for _ in rows.sections] for rows in self.rows]
        large = [group for group in self.cone.groups if group.kronecker]
        self._linear: MatrixFreeSystem | AbstractFactoriser = (
            MatrixFreeSystem(structure, large, self.pattern, self._signs)
            if large
            else choose_factoriser(self.pattern, self._signs, backend, device)
        )

    @cached_property
    def lanes(self) -> LaneSystem | None:
        """Polish and derivative by kernels; None where the systems are not factorised by kernels."""
        symbolic = self._linear.symbolic if isinstance(self._linear, AbstractFactoriser) else None
        if symbolic is None or self.cone.table is None:
            return None
        from convexlayer.diff.lanes.calls import LaneSystem

        columns = SystemColumns.joined(
            [rows.columns(places) for rows, places in zip(self.rows, self._places, strict=True)]
        )
        return LaneSystem(self.structure, self.cone, self.cone.table, self._sparse, columns, symbolic)

    def refined(self, program: ConeProgram, derivative: ProductDerivative, c: Array) -> RefinedFactor:
        """Assemble and factorise K (B, N, N), with rows of curved cones divided by c (B, m)."""
        K = entries_of_system(self._sparse, program.P, program.A, derivative.flat, self.pattern.nnz)
        balanced = program.A / c[:, self.structure.A.rows] if self.rows else program.A
        for rows, places, piece in zip(self.rows, self._places, derivative.curved, strict=True):
            rows.write(balanced, piece, K, places)
        if isinstance(self._linear, AbstractFactoriser):
            return self._linear.factor(K)
        bases = [basis for basis in derivative.curved if isinstance(basis, KroneckerBasis)]
        return self._linear.factor(K, balanced, bases)

    def factor(self, program: ConeProgram, point: ComplementaryPoint) -> KKTFactor:
        """Assemble K for every element and factorise it."""
        return KKTFactor(self, program, point.derivative, point.scales.c)


@final
class KKTFactor:
    """The factorised K of a batch, for all vjps, jvps, and the Newton steps of ``polish``."""

    def __init__(self, system: KKTSystem, program: ConeProgram, derivative: ProductDerivative, c: Array) -> None:
        """Assemble and factorise K of these programs; ``derivative`` is D at w = c y - s / c."""
        self._system = system
        self._program = program
        self._derivative = derivative
        self._c = c[:, system.cone.flat :]
        self._refined = system.refined(program, derivative, c)

    @property
    def condition(self) -> Array:
        """Estimates (B,) of the condition number of the equilibrated K."""
        return self._refined.condition

    @cached_property
    def singular(self) -> BoolArray:
        """Mask (B,) of the elements with a numerically singular K."""
        singular: BoolArray = self.condition >= SINGULAR
        return singular

    @cached_property
    def regular(self) -> bool:
        """Whether K is numerically nonsingular for all elements."""
        return float(self.condition.max(initial=0.0)) < SINGULAR

    def null_space(self, index: IndexArray) -> tuple[Array, Array]:
        """Null vectors of K of the elements at these positions: bases, or random samples of large null spaces.

        Args:
            index: elements with a finite ``condition``. The null space may be trivial although the condition estimate
                exceeds SINGULAR.

        Returns:
            l (len(index), r, n) and v (len(index), r, m), with the largest dimension r: (l[i, j], v[i, j]) is vector j
            of element index[i], zero for j beyond its dimension. The vectors of a basis are orthonormal as (l, u) and
            as (l, v), because norm(v) = norm(u) in the null space. Entries that are rounding errors in the units of the
            equilibrated system are set to 0.
        """
        found, bases = self._singular_bases
        if not np.array_equal(index, found):
            bases = self._bases(index)
        r, structure = bases.shape[1], self._system.structure
        l, v = (np.zeros((len(index), r, size)) for size in (structure.n, structure.m))  # noqa: E741 (the design's name)
        whole = np.zeros((len(self.condition), bases.shape[2]))
        for j in range(r):
            whole[index] = bases[:, j]
            l[:, j], v[:, j] = (part[index] for part in self._split(whole))
        return l, v

    def rounding(self, answer: tuple[Array, Array], top: Array, bottom: Array) -> tuple[Array, Array]:
        """Sizes (B, n) and (B, m) up to which entries of a solution (l, v) of ``solve`` are rounding errors.

        An entry is compared with the terms of its rows and of all rows that share an unknown with these, because a row
        of zeros has no scale of its own. The sizes of v in curved cones are 0.
        """
        (l, v), refined = answer, self._refined  # noqa: E741 (the design's name)
        scale, n, flat = refined.scale, l.shape[1], self._system.flat.own
        z = np.zeros_like(scale)
        z[:, :n], z[:, flat] = l, v[:, : flat.stop - n]
        terms = refined.terms(z / scale) + np.abs(scale * self._rhs(top, bottom))
        size = NOISE * scale * refined.terms(terms + refined.terms(terms))
        of_v = np.zeros_like(v)
        of_v[:, : flat.stop - n] = size[:, flat]
        return size[:, :n], of_v

    @cached_property
    def _singular_bases(self) -> tuple[IndexArray, Array]:
        """The singular elements with a finite ``condition``, and vectors of their null spaces."""
        index = np.flatnonzero(self.singular & np.isfinite(self.condition))
        return index, self._bases(index)

    def _bases(self, index: IndexArray) -> Array:
        """The vectors of ``null_space`` in the unknowns of K, (len(index), r, N)."""
        spaces = self._refined.null_directions(index)
        r = max((len(space.basis) for space in spaces), default=0)
        bases = np.zeros((len(index), r, self._system.pattern.shape[0]))
        for row, space in enumerate(spaces):
            bases[row, : len(space.basis)] = space.basis
        size = np.abs(bases / self._refined.scale[index, None])
        bases[size <= LEFTOVER * np.max(size, axis=2, keepdims=True, initial=0.0)] = 0.0
        return bases

    def null_space_is_reliable(self, index: IndexArray) -> BoolArray:
        """Whether ``null_space`` represents the null space of each of these elements reliably, (len(index),)."""
        return np.array([space.certain for space in self._refined.null_directions(index)], dtype=bool)

    def is_factor_of(self, program: ConeProgram, derivative: ProductDerivative) -> bool:
        """Whether this is also the factor of these programs at ``derivative``.

        True if all cones are polyhedral and the active set is the same; in curved cones D changes with w.
        """
        same = program is self._program and not derivative.curved
        return same and np.array_equal(derivative.flat, self._derivative.flat)

    def newton(self, top: Array, bottom: Array) -> tuple[Array, Array]:
        """Solve for (l, v) to the accuracy that a Newton step needs."""
        return self._split(self._refined.refine(self._rhs(top, bottom), steps=NEWTON_REFINEMENTS)[0])

    def newton_row_by_row(self, top: Array, bottom: Array) -> tuple[Array, Array]:
        """Solve for (l, v) with residuals small relative to each row, orthogonal to the null space of K."""
        z, _ = self._refined.refine_row_by_row(self._in_range(self._rhs(top, bottom)))
        return self._split(self._in_range(z))

    def _in_range(self, z: Array) -> Array:
        """Project z (B, N), in place, to the range of K, the orthogonal complement of its null space."""
        index, bases = self._singular_bases
        if len(index):
            z[index] -= (bases.swapaxes(1, 2) @ (bases @ z[index, :, None]))[..., 0]
        return z

    def solve(
        self, top: Array, bottom: Array, visible: Callable[[IndexArray], BoolArray]
    ) -> tuple[Array, Array, Array, BoolArray]:
        """Solve for (l, v), with minimum norm where the solution is visibly not unique.

        Args:
            top: right-hand side of the rows of P, (B, n).
            bottom: right-hand side of the rows of A, (B, m).
            visible: whether the null spaces of the given elements affect the requested derivative, (len(index),).

        Returns:
            l (B, n); v (B, m); relative residuals (B,); mask (B,) of the visibly singular elements.
        """
        z, residual, singular = self._solved(top, bottom, visible, everywhere=True)
        return *self._split(z), residual, singular

    def solve_unique(
        self, top: Array, bottom: Array, visible: Callable[[IndexArray], BoolArray]
    ) -> tuple[Array, Array, BoolArray]:
        """Solve for (l, v) without minimum-norm solutions; also returns the mask (B,) of visibly singular elements."""
        z, _, singular = self._solved(top, bottom, visible, everywhere=False)
        return *self._split(z), singular

    def _solved(
        self, top: Array, bottom: Array, visible: Callable[[IndexArray], BoolArray], *, everywhere: bool
    ) -> tuple[Array, Array, BoolArray]:
        """Solutions (B, N), relative residuals of their rows (B,), and mask (B,) of visibly singular elements.

        With ``everywhere``, solutions of visibly singular elements have minimum norm.
        """
        rhs = self._rhs(top, bottom)
        z, residual = self._refined.refine_row_by_row(rhs)
        singular = self.singular
        if np.any(singular):
            index = np.flatnonzero(singular & np.isfinite(self.condition))
            spaces = self._refined.null_directions(index)
            unsolved = np.array([len(space.basis) > 0 for space in spaces], dtype=bool) & (
                residual[index] > RESIDUAL_TOL
            )
            if np.any(unsolved):  # unless the residual is rounding errors of the right-hand side
                unsolved &= self._refined.residual(z, rhs)[index] > RESIDUAL_TOL
            singular = np.zeros_like(singular)
            singular[index] = visible(index) | unsolved
        rough = residual > RESIDUAL_TOL
        doubtful = singular | rough if everywhere else ~singular & rough
        if np.any(doubtful):
            self._least_squares(z, residual, rhs, singular, doubtful)
        return z, residual, singular

    def _least_squares(self, z: Array, residual: Array, rhs: Array, singular: BoolArray, doubtful: BoolArray) -> None:
        """Replace doubtful solutions by minimum-norm least-squares solutions, in place, unless their residual is worse.

        The norm is that of the unknowns of K. Inconsistent systems always take the least-squares solution.
        """
        finite = np.isfinite(residual) & np.isfinite(self.condition)
        again: IndexArray = np.flatnonzero(finite & doubtful)
        if len(again):
            least, least_residual = self._refined.minimum_norm(rhs, again)
            inconsistent = singular[again] & (residual[again] > ACCURATE)
            chosen = inconsistent | (least_residual <= np.maximum(residual[again], RESIDUAL_TOL))
            z[again[chosen]], residual[again[chosen]] = least[chosen], least_residual[chosen]

    def _rhs(self, top: Array, bottom: Array) -> Array:
        """The right-hand side [top; L'bottom], (B, N)."""
        n, flat = top.shape[1], self._system.flat.own
        rhs = np.empty((len(top), self._system.pattern.shape[0]))
        rhs[:, :n] = top
        np.multiply(self._derivative.flat, bottom[:, : flat.stop - n], out=rhs[:, flat])
        if self._system.rows:
            balanced = bottom.copy()
            balanced[:, flat.stop - n :] /= self._c
            for rows, piece in zip(self._system.rows, self._derivative.curved, strict=True):
                rows.gather(balanced, piece, rhs)
        return rhs

    def _split(self, z: Array) -> tuple[Array, Array]:
        """Split the unknowns (B, N) into l and v = L u."""
        v = self._derivative.flat * z[:, self._system.flat.own]
        if self._system.rows:
            curved = zip(self._system.rows, self._derivative.curved, strict=True)
            spread = np.concatenate([rows.spread(z, piece) for rows, piece in curved], axis=1)
            v = np.concatenate([v, spread / self._c], axis=1)
        return z[:, : self._system.structure.n], v


def _merge(sections: list[Section], size: int) -> tuple[Pattern, list[IndexArray]]:
    """Merge disjoint sections to an upper triangle (size, size); also the position of each section's entries in it."""
    keys = [cols * size + rows for rows, cols in sections]
    whole = np.concatenate([key.ravel() for key in keys])
    order = np.argsort(whole)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    ends = np.cumsum([key.size for key in keys])[:-1]
    places = [part.reshape(key.shape) for part, key in zip(np.split(position, ends), keys, strict=True)]
    return Pattern((size, size), whole[order] % max(size, 1), whole[order] // max(size, 1)), places
