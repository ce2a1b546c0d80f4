"""The symmetric system that every derivative solves.

With D the derivative of Pi_{K*} at w = y - s and L L' = D,

    K = [ P      A'L         ]        K [l; u] = [top; L'bottom],  v = L u
        [ L'A   -(I - L'L)   ]

is symmetric, quasi-definite up to regularisation, and of one pattern for all active sets. (l, v) is the solution with
v in the range of D of   P l + A'v = top,   D (A l - bottom) = (I - D) v.

In the curved cones all that is of rows divided by c, so that D is taken at w = c y - s / c (see ``certificate``): there
A / c, bottom / c and c v take the places of A, bottom and v. In flat cones D does not depend on c.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.certificate import ComplementaryPoint
from convexlayer.cones import KroneckerBasis, ProductDerivative, product_cone
from convexlayer.diff.matrix_free import MatrixFreeSystem
from convexlayer.diff.report import ACCURATE
from convexlayer.diff.rows import FlatRows, Section, rows_of
from convexlayer.linalg import (
    ACCEPTED,
    SINGULAR,
    AbstractBackend,
    AbstractFactoriser,
    RefinedFactor,
    choose_factoriser,
)
from convexlayer.program import Array, ConeProgram, IndexArray, Pattern, Structure
from convexlayer.solution import BoolArray
from convexlayer.sparse import EntriesOfSystem, entries_of_system

__all__ = ["ReducedFactor", "ReducedSystem"]

NOISE = 1e-12
"""What is smaller than this, relative to what would matter in its rows, is the rounding of zero."""

LEFTOVER = 1e-8
"""Entries of a null direction up to this share of the largest are rounding."""


@final
class ReducedSystem:
    """The symbolic part: pattern of K and where each value comes from. Once a layer."""

    def __init__(self, structure: Structure, backend: AbstractBackend | None = None, *, device: str = "cpu") -> None:
        """Analyse a structure; who factorises is chosen by what is there, device, size and density, unless given.

        Large semidefinite blocks are not stored, and no backend is asked (see ``matrix_free``).
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

    def refined(self, program: ConeProgram, derivative: ProductDerivative, c: Array) -> RefinedFactor:
        """The factors of K (B, N, N), of rows divided by c (B, m) in the curved cones."""
        K = entries_of_system(self._sparse, program.P, program.A, derivative.flat, self.pattern.nnz)
        balanced = program.A / c[:, self.structure.A.rows] if self.rows else program.A
        for rows, places, piece in zip(self.rows, self._places, derivative.curved, strict=True):
            rows.write(balanced, piece, K, places)
        if isinstance(self._linear, AbstractFactoriser):
            return self._linear.factor(K)
        bases = [basis for basis in derivative.curved if isinstance(basis, KroneckerBasis)]
        return self._linear.factor(K, balanced, bases)

    def factor(self, program: ConeProgram, point: ComplementaryPoint) -> ReducedFactor:
        """Assemble K for every element and factorise it."""
        return ReducedFactor(self, program, point.derivative, point.scales.c)


@final
class ReducedFactor:
    """K of a batch, factorised: it serves every vjp, every jvp, and the Newton steps of ``polish``."""

    def __init__(self, system: ReducedSystem, program: ConeProgram, derivative: ProductDerivative, c: Array) -> None:
        """Assemble and factorise, at solutions of these programs where D at w = c y - s / c is this derivative."""
        self._system = system
        self._program = program
        self._derivative = derivative
        self._c = c[:, system.cone.flat :]
        self._refined = system.refined(program, derivative, c)

    @property
    def condition(self) -> Array:
        """Estimate (B,) of the condition of the equilibrated K."""
        return self._refined.condition

    @cached_property
    def singular(self) -> BoolArray:
        """Where there is more than one solution, (B,)."""
        singular: BoolArray = self.condition >= SINGULAR
        return singular

    @cached_property
    def regular(self) -> bool:
        """Whether it is known that there is one solution everywhere."""
        return float(self.condition.max(initial=0.0)) < SINGULAR

    def null_space(self, index: IndexArray) -> tuple[Array, Array]:
        """Members of the null spaces of K of the elements at these positions, found at the first call.

        They are an orthonormal basis where there are few dimensions, else a few random directions.

        Args:
            index: elements whose ``condition`` is finite; a basis has no members where K is regular, which it may be
                though the condition exceeds SINGULAR.

        Returns:
            l (len(index), r, n) and v (len(index), r, m), r the largest dimension: (l[i, j], v[i, j]) is the j-th
            member of the basis of element index[i], and zero from the dimension of its own null space on. The members
            are orthonormal as (l, u) and as (l, v): norm(v) = norm(u) in the null space. Entries that are rounding in
            the units of the equilibrated system are 0.
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
        """Sizes (B, n) and (B, m) up to which entries of an answer (l, v) of ``solve`` are rounding.

        An entry is held against the terms of the rows that it stands in, and of those that share an unknown with them:
        rows of zeros have no size of their own. Nothing is said of v in curved cones.
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
        """The singular elements whose ``condition`` is finite, and members of their null spaces."""
        index = np.flatnonzero(self.singular & np.isfinite(self.condition))
        return index, self._bases(index)

    def _bases(self, index: IndexArray) -> Array:
        """The members of ``null_space`` in the unknowns of K, (len(index), r, N)."""
        spaces = self._refined.null_directions(index)
        r = max((len(space.basis) for space in spaces), default=0)
        bases = np.zeros((len(index), r, self._system.pattern.shape[0]))
        for row, space in enumerate(spaces):
            bases[row, : len(space.basis)] = space.basis
        size = np.abs(bases / self._refined.scale[index, None])
        bases[size <= LEFTOVER * np.max(size, axis=2, keepdims=True, initial=0.0)] = 0.0
        return bases

    def certain(self, index: IndexArray) -> BoolArray:
        """Whether ``null_space`` shows of each of these elements what there is to see, (len(index),)."""
        return np.array([space.certain for space in self._refined.null_directions(index)], dtype=bool)

    def serves(self, program: ConeProgram, derivative: ProductDerivative) -> bool:
        """Whether this is known to be the factor of these programs at that derivative too.

        So it is where all cones are polyhedral and the active set is the same; elsewhere D moves with w.
        """
        same = program is self._program and not derivative.curved
        return same and np.array_equal(derivative.flat, self._derivative.flat)

    def newton(self, top: Array, bottom: Array) -> tuple[Array, Array]:
        """(l, v) to the accuracy that a Newton step needs."""
        return self._split(self._refined.refine(self._rhs(top, bottom), steps=3)[0])

    def newton_row_by_row(self, top: Array, bottom: Array) -> tuple[Array, Array]:
        """(l, v) to the accuracy of the terms of each row; without a part in the null space of K."""
        z, _ = self._refined.refine_row_by_row(self._in_range(self._rhs(top, bottom)))
        return self._split(self._in_range(z))

    def _in_range(self, z: Array) -> Array:
        """Z (B, N) without its part in the null space of K, which is the part outside the range."""
        index, bases = self._singular_bases
        if len(index):
            z[index] -= (bases.swapaxes(1, 2) @ (bases @ z[index, :, None]))[..., 0]
        return z

    def solve(
        self, top: Array, bottom: Array, visible: Callable[[IndexArray], BoolArray]
    ) -> tuple[Array, Array, Array, BoolArray]:
        """(l, v), of minimum norm where it is not unique and the difference is visible.

        Args:
            top: (B, n).
            bottom: (B, m).
            visible: whether anything is seen of the null spaces of these elements, (len(index),).

        Returns:
            l (B, n); v (B, m); the relative residuals (B,); where the solution is not unique and that is seen, (B,).
        """
        z, residual, singular = self._solved(top, bottom, visible, everywhere=True)
        return *self._split(z), residual, singular

    def solve_unique(
        self, top: Array, bottom: Array, visible: Callable[[IndexArray], BoolArray]
    ) -> tuple[Array, Array, BoolArray]:
        """(l, v) of ``solve`` where it is unique, or the difference is not visible; and where it is not."""
        z, _, singular = self._solved(top, bottom, visible, everywhere=False)
        return *self._split(z), singular

    def _solved(
        self, top: Array, bottom: Array, visible: Callable[[IndexArray], BoolArray], *, everywhere: bool
    ) -> tuple[Array, Array, BoolArray]:
        """Solutions, the residuals of their rows, and where they are not unique and that is seen.

        They are of minimum norm there, if that is asked for ``everywhere``.
        """
        rhs = self._rhs(top, bottom)
        z, residual = self._refined.refine_row_by_row(rhs)
        singular = self.singular
        if np.any(singular):
            index = np.flatnonzero(singular & np.isfinite(self.condition))
            spaces = self._refined.null_directions(index)
            unsolved = np.array([len(space.basis) > 0 for space in spaces], dtype=bool) & (residual[index] > ACCEPTED)
            if np.any(unsolved):  # but for rounding of the right-hand side
                unsolved &= self._refined.residual(z, rhs)[index] > ACCEPTED
            singular = np.zeros_like(singular)
            singular[index] = visible(index) | unsolved
        rough = residual > ACCEPTED
        doubtful = singular | rough if everywhere else ~singular & rough
        if np.any(doubtful):
            self._least_squares(z, residual, rhs, singular, doubtful)
        return z, residual, singular

    def _least_squares(self, z: Array, residual: Array, rhs: Array, singular: BoolArray, doubtful: BoolArray) -> None:
        """Replace doubtful solutions by the least-squares ones of minimum norm, in the unknowns of K, if no worse."""
        finite = np.isfinite(residual) & np.isfinite(self.condition)
        again: IndexArray = np.flatnonzero(finite & doubtful)
        if len(again):
            least, least_residual = self._refined.minimum_norm(rhs, again)
            inconsistent = singular[again] & (residual[again] > ACCURATE)
            chosen = inconsistent | (least_residual <= np.maximum(residual[again], ACCEPTED))
            z[again[chosen]], residual[again[chosen]] = least[chosen], least_residual[chosen]

    def _rhs(self, top: Array, bottom: Array) -> Array:
        """[top; L'bottom], (B, N)."""
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
        """(l, L u) of the unknowns (B, N)."""
        v = self._derivative.flat * z[:, self._system.flat.own]
        if self._system.rows:
            curved = zip(self._system.rows, self._derivative.curved, strict=True)
            spread = np.concatenate([rows.spread(z, piece) for rows, piece in curved], axis=1)
            v = np.concatenate([v, spread / self._c], axis=1)
        return z[:, : self._system.structure.n], v


def _merge(sections: list[Section], size: int) -> tuple[Pattern, list[IndexArray]]:
    """The upper triangle (size, size) of all sections, which do not overlap, and where the entries of each stand."""
    keys = [cols * size + rows for rows, cols in sections]
    whole = np.concatenate([key.ravel() for key in keys])
    order = np.argsort(whole)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    ends = np.cumsum([key.size for key in keys])[:-1]
    places = [part.reshape(key.shape) for part, key in zip(np.split(position, ends), keys, strict=True)]
    return Pattern((size, size), whole[order] % max(size, 1), whole[order] // max(size, 1)), places
