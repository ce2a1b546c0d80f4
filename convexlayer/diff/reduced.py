"""The symmetric system that every derivative solves.

With D the derivative of Pi_{K*} at w = y - s and L L' = D,

    K = [ P      A'L         ]        K [l; u] = [top; L'bottom],  v = L u
        [ L'A   -(I - L'L)   ]

is symmetric, quasi-definite up to regularisation, and of one pattern for all active sets. (l, v) is the solution with
v in the range of D of   P l + A'v = top,   D (A l - bottom) = (I - D) v.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.cones import KroneckerBasis, ProductDerivative
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
from convexlayer.solution import BoolArray, product_cone
from convexlayer.sparse import EntriesOfSystem, entries_of_system

__all__ = ["VISIBLE", "ReducedFactor", "ReducedSystem"]

VISIBLE = 1e-5
"""Effect of a unit null direction, from which the choice among several solutions matters."""


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

    def values(self, program: ConeProgram, derivative: ProductDerivative) -> Array:
        """What is stored of K, for every element, (B, nnz): all but the products with large semidefinite blocks."""
        K = entries_of_system(self._sparse, program.P, program.A, derivative.flat, self.pattern.nnz)
        for rows, places, piece in zip(self.rows, self._places, derivative.curved, strict=True):
            rows.write(program.A, piece, K, places)
        return K

    def factor(self, program: ConeProgram, derivative: ProductDerivative) -> ReducedFactor:
        """Assemble K for every element and factorise it."""
        return ReducedFactor(self, program, derivative)

    def refined(self, program: ConeProgram, derivative: ProductDerivative) -> RefinedFactor:
        """The factors of K alone, (B, N, N)."""
        values = self.values(program, derivative)
        if isinstance(self._linear, AbstractFactoriser):
            return self._linear.factor(values)
        bases = [basis for basis in derivative.curved if isinstance(basis, KroneckerBasis)]
        return self._linear.factor(values, program.A, bases)


@final
class ReducedFactor:
    """K of a batch, factorised: it serves every vjp, every jvp, and the Newton steps of ``polish``."""

    def __init__(self, system: ReducedSystem, program: ConeProgram, derivative: ProductDerivative) -> None:
        """Assemble and factorise, at the solutions of these programs that have this derivative."""
        self._system = system
        self._program = program
        self._derivative = derivative
        self._refined = system.refined(program, derivative)

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

    @cached_property
    def null_direction(self) -> tuple[Array, Array]:
        """A random (l, v) of K's null space; of use where ``singular``."""
        return self._split(self._refined.null_direction)

    def serves(self, program: ConeProgram, derivative: ProductDerivative) -> bool:
        """Whether this is known to be the factor of these programs at that derivative too.

        So it is where all cones are polyhedral and the active set is the same; elsewhere D moves with w.
        """
        same = program is self._program and not derivative.curved
        return same and np.array_equal(derivative.flat, self._derivative.flat)

    def newton(self, top: Array, bottom: Array) -> tuple[Array, Array]:
        """(l, v) to the accuracy that a Newton step needs."""
        return self._split(self._refined.refine(self._rhs(top, bottom), steps=3)[0])

    def solve(
        self, top: Array, bottom: Array, visible: Callable[[Array, Array], Array]
    ) -> tuple[Array, Array, Array, BoolArray]:
        """(l, v), of minimum norm where it is not unique and the difference is visible.

        Args:
            top: (B, n).
            bottom: (B, m).
            visible: what is seen of a direction (l, v), (B,).

        Returns:
            l (B, n); v (B, m); the relative residuals (B,); where the solution is not unique and that is seen, (B,).
        """
        refined, rhs = self._refined, self._rhs(top, bottom)
        z, residual = refined.refine(rhs)
        singular = self.singular
        if self.regular and float(residual.max(initial=0.0)) <= ACCEPTED:
            return *self._split(z), residual, singular
        if np.any(singular):
            singular = singular & ((visible(*self.null_direction) > VISIBLE) | (residual > ACCEPTED))
        doubtful = singular | (residual > ACCEPTED)
        if np.any(doubtful):
            self._least_squares(z, residual, rhs, singular, doubtful)
        return *self._split(z), residual, singular

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
            for rows, piece in zip(self._system.rows, self._derivative.curved, strict=True):
                rows.gather(bottom, piece, rhs)
        return rhs

    def _split(self, z: Array) -> tuple[Array, Array]:
        """(l, L u) of the unknowns (B, N)."""
        v = self._derivative.flat * z[:, self._system.flat.own]
        if self._system.rows:
            curved = zip(self._system.rows, self._derivative.curved, strict=True)
            v = np.concatenate([v, *(rows.spread(z, piece) for rows, piece in curved)], axis=1)
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
