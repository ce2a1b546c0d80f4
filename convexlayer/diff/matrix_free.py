"""Matrix-free K for structures with large semidefinite blocks: the blocks' products with L'A are applied, not stored.

With the eigenvectors V of a block's w, L'A x takes one product with A and two with V: O(k^3) operations, although L'A
has k^4 / 4 entries. The solver is chosen for each element by its cost: the elimination of ``block_elimination`` if its
Schur complement is small; otherwise MINRES, followed by the elimination if MINRES does not converge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, final

import numpy as np
import scipy.sparse as sp

from convexlayer.cones import Group, KroneckerBasis
from convexlayer.diff.block_elimination import BlockElimination, CoupledBlocks, EntryVariables
from convexlayer.diff.rows import entries_of
from convexlayer.linalg import (
    AbstractInverse,
    AbstractMatrix,
    FactoredInverse,
    KrylovInverse,
    MatrixFree,
    MatrixFreeFactor,
    RefinedFactor,
    equilibration,
)
from convexlayer.program import Array, IndexArray, Pattern, Structure
from convexlayer.rays import BoolArray
from convexlayer.runtime.threads import map_ranges

__all__ = ["MatrixFreeSystem"]

ELIMINATE_FIRST_COST = 400
"""Cost, in products with K, up to which the elimination is tried before MINRES. Above it, MINRES is tried first, with
as many iterations as the elimination costs, so that both together take at most twice the time of the better one."""

MAX_MINRES_ITERATIONS = 5000
"""Maximum number of MINRES iterations."""

MAX_SCHUR_ORDER, LARGEST_STORED = 3000, 3 * 10**7
"""Maximum order of an elimination's Schur complement, and of the numbers that it stores (240 MB)."""

EFFICIENCY = 0.4
"""Time of a multiply-add in the dense matrices of an elimination relative to one in a product with K; measured."""

EQUAL_TOL = 1e-9
"""Relative difference up to which coefficients of P count as equal."""


class _Cost(NamedTuple):
    """Cost of an elimination: order of the Schur complement, numbers stored, and time in products with K."""

    rest: int
    stored: int
    products: float

    @property
    def bearable(self) -> bool:
        return self.rest <= MAX_SCHUR_ORDER and self.stored <= LARGEST_STORED


@final
class MatrixFreeSystem:
    """Symbolic analysis of the matrix-free K, computed once per layer."""

    def __init__(self, structure: Structure, groups: Sequence[Group], pattern: Pattern, signs: Array) -> None:
        """Analyse a structure.

        Args:
            structure: structure of the programs.
            groups: the large blocks.
            pattern: upper triangle of the stored part of K, with a full diagonal: all but the products with the large
                blocks.
            signs: signs of K's diagonal, (N,).
        """
        self._pattern, self._signs, self._n = pattern, signs, structure.n
        self._groups = [_Symbolic(group, structure) for group in groups]
        taken = _in_several_rows(structure, self._groups)
        self._variables = [group.entry_variables(taken) for group in self._groups]
        self._stored = _Symmetric(pattern)
        self._diagonal = np.flatnonzero(pattern.rows == pattern.cols)
        self._beyond = self._rows_of_other_cones()
        # all unknowns of a large block share one scale, so that scaling commutes with the change of basis
        index = np.arange(pattern.shape[0])
        for group in self._groups:
            index[group.own] = group.own.start + np.repeat(np.arange(group.shape[0]), group.shape[1]) * group.shape[1]
        used, self._class = np.unique(index, return_inverse=True)
        rows = [self._class[pattern.rows], *(self._class[group.cols] for group in self._groups)]
        cols = [self._class[pattern.cols], *(self._class[group.unknown] for group in self._groups)]
        self._classes = Pattern((len(used), len(used)), np.concatenate(rows), np.concatenate(cols))

    def factor(self, K: Array, A: Array, bases: Sequence[KroneckerBasis]) -> RefinedFactor:
        """Equilibrate K; factorisations are deferred to the first solve that needs them.

        Args:
            K: values of the stored part of K, (B, nnz).
            A: values of A, (B, nnz).
            bases: the derivatives of the large blocks, with axes (B, blocks, ...).
        """
        entries = np.concatenate([K, *(A[:, group.source] for group in self._groups)], axis=1)
        finite = np.all(np.isfinite(entries), axis=1)
        scale = equilibration(self._classes, np.where(finite[:, None], entries, 0.0))[:, self._class]

        def element(i: int) -> MatrixFree | None:
            own = [replace(b, vectors=b.vectors[i], d=b.d[i], complement=b.complement[i]) for b in bases]
            return self._element(scale[i], K[i], A[i], own) if finite[i] else None

        elements = map_ranges(lambda part: [element(i) for i in part], len(K))
        return MatrixFreeFactor(elements, self._pattern.shape[0])

    def _element(self, scale: Array, K: Array, A: Array, bases: Sequence[KroneckerBasis]) -> MatrixFree:
        """Set up one element, with the scaling of the elimination if the elimination is tried first."""
        idle = self._idle(K)
        variables, cost = self._cheapest(K, A, len(idle))
        of_entries = self._scale_of_entries(scale, A, variables)
        first = cost.bearable and cost.products <= ELIMINATE_FIRST_COST
        scale = of_entries if first else scale
        system = self._scaled(scale, K, A, bases)

        def eliminate() -> AbstractInverse:
            made = system if first else self._scaled(of_entries, K, A, bases)
            elimination = BlockElimination(made.stored, made.blocks, variables, idle, self._signs)
            ratio = of_entries / scale
            return FactoredInverse(system.multiply, lambda rhs: ratio * elimination.apply(ratio * rhs), len(scale))

        limit = int(min(MAX_MINRES_ITERATIONS, cost.products)) if cost.bearable else MAX_MINRES_ITERATIONS

        def iterate() -> AbstractInverse:
            return KrylovInverse(system.multiply, len(scale), limit)

        after = [iterate, eliminate] if cost.bearable else [iterate]
        return MatrixFree(scale, system, [eliminate] if first else after)

    def _scaled(self, scale: Array, K: Array, A: Array, bases: Sequence[KroneckerBasis]) -> _Equilibrated:
        """The equilibrated matrix E = S K S of one element."""
        pattern = self._pattern
        stored = self._stored.matrix(K * scale[pattern.rows] * scale[pattern.cols])
        blocks = [
            CoupledBlocks(group.own, basis, group.matrix(A[group.source] * scale[group.unknown] * scale[group.cols]))
            for group, basis in zip(self._groups, bases, strict=True)
        ]
        return _Equilibrated(stored, blocks)

    def _idle(self, K: Array) -> IndexArray:
        """Unknowns of inactive rows of other cones, whose rows of K are diagonal."""
        pattern, size = self._pattern, len(self._signs)
        weight = np.where(pattern.rows == pattern.cols, 0.0, np.abs(K))
        met = np.bincount(pattern.rows, weight, size) + np.bincount(pattern.cols, weight, size)
        return np.flatnonzero(self._beyond & (met == 0.0))

    def _cheapest(self, K: Array, A: Array, idle: int) -> tuple[list[EntryVariables | None], _Cost]:
        """The cheapest choice of variables to eliminate with each group, and its cost."""
        diagonal = K[self._diagonal]
        fitting = [
            variable if variable is not None and group.has_constant_curvature(variable, diagonal, A) else None
            for group, variable in zip(self._groups, self._variables, strict=True)
        ]
        without: list[EntryVariables | None] = [None] * len(fitting)
        costs = [(choice, self._cost(choice, idle)) for choice in (fitting, without)]
        return min(costs, key=lambda pair: pair[1].products)

    def _cost(self, variables: Sequence[EntryVariables | None], idle: int) -> _Cost:
        """Cost of the elimination with these variables."""
        chosen = [variable for variable in variables if variable is not None]
        active = int(np.count_nonzero(self._beyond)) - idle
        rest = self._n + active + sum(len(v.others) - len(v.column) for v in chosen)
        stored, flops = 0, rest**3 / 3.0
        for group, variable in zip(self._groups, variables, strict=True):
            with_u = group.met - (0 if variable is None else len(variable.column))
            with_z = 0 if variable is None else len(variable.others) + active
            stored += (with_u + with_z) * group.entries
            flops += (with_u + with_z) * group.product_flops / 2.0 + (with_u + with_z) ** 2 * group.entries
        return _Cost(rest, stored, EFFICIENCY * flops / sum(group.product_flops for group in self._groups))

    def _scale_of_entries(self, scale: Array, A: Array, variables: Sequence[EntryVariables | None]) -> Array:
        """Replace the scales of variables that are entries such that their coefficients become +-1."""
        scale = scale.copy()
        for group, variable in zip(self._groups, variables, strict=True):
            if variable is not None:
                coefficient = np.abs(A[group.source[variable.source]])
                scale[variable.column] = 1.0 / (coefficient * scale[group.unknown[variable.source]])
        return scale

    def _rows_of_other_cones(self) -> BoolArray:
        beyond = np.arange(len(self._signs)) >= self._n
        for group in self._groups:
            beyond[group.own] = False
        return beyond


@final
class _Equilibrated(AbstractMatrix):
    """The equilibrated matrix E: its stored part, and the large blocks."""

    def __init__(self, stored: sp.csr_matrix, blocks: Sequence[CoupledBlocks]) -> None:
        self.stored, self.blocks = stored, blocks

    def multiply(self, x: Array) -> Array:
        out: Array = self.stored @ x
        for group in self.blocks:
            group.add_product(x, out)
        return out

    def terms(self, x: Array) -> Array:
        """Sums of term magnitudes; a rotation rounds all entries of a block alike, so they get the block's largest."""
        out: Array = abs(self.stored) @ np.abs(x)
        for group in self.blocks:
            group.add_terms(x, out)
        return out


@final
class _Symbolic:
    """Symbolic data of a group of large blocks.

    Attributes:
        order: order k of the semidefinite matrices.
        shape: (number of blocks, entries per block).
        own: positions of the group's unknowns in K.
        source: positions of the group's entries among those of A, in row order.
        cols: their columns.
        unknown: their rows, as positions of unknowns of K.
        met: number of columns of A with an entry in the group.
    """

    def __init__(self, group: Group, structure: Structure) -> None:
        A, n = structure.A, structure.n
        self.shape = (group.blocks, group.size)
        self.own = slice(n + group.rows.start, n + group.rows.stop)
        self.order = (math.isqrt(8 * group.size + 1) - 1) // 2
        mine = entries_of(structure, group.rows)
        self.source = mine[np.argsort(A.rows[mine], kind="stable")]
        self.cols, self.unknown = A.cols[self.source], n + A.rows[self.source]
        self.met = len(np.unique(self.cols))
        self._entry = A.rows[self.source] - group.rows.start
        self._indptr = np.searchsorted(self._entry, np.arange(self.entries + 1))
        self._width = n

    @property
    def entries(self) -> int:
        """Number of rows of all blocks."""
        return self.shape[0] * self.shape[1]

    @property
    def product_flops(self) -> float:
        """Multiply-adds of one product with A'L and L'A: four k x k matrix products per block."""
        return 4.0 * self.shape[0] * self.order**3

    def matrix(self, values: Array) -> sp.csr_matrix:
        """Build the group's rows of A with the given values of the entries."""
        return sp.csr_matrix((values, self.cols, self._indptr), shape=(self.entries, self._width))

    def entry_variables(self, taken: BoolArray) -> EntryVariables | None:
        """Find variables, not ``taken``, that are entries of the matrices; None unless they are the majority."""
        free = np.flatnonzero(~taken[self.cols])
        entry, first = np.unique(self._entry[free], return_index=True)
        source = free[first]
        others = np.setdiff1d(np.arange(self.entries), entry)
        return EntryVariables(entry, self.cols[source], source, others) if len(others) < len(entry) else None

    def has_constant_curvature(self, variable: EntryVariables, diagonal: Array, A: Array) -> bool:
        """Whether the coefficients can be scaled to +-1 such that P's diagonal is constant on each block."""
        coefficient = A[self.source[variable.source]]
        if not np.all(coefficient):
            return False
        curvature = diagonal[variable.column] / coefficient**2
        block = variable.entry // self.shape[1]
        starts = np.flatnonzero(np.diff(block, prepend=-1))
        most, least = (ufunc.reduceat(curvature, starts) for ufunc in (np.maximum, np.minimum))
        return bool(np.all(most - least <= EQUAL_TOL * most))


@final
class _Symmetric:
    """Assembly of symmetric matrices of one pattern from their upper triangles."""

    def __init__(self, pattern: Pattern) -> None:
        off = np.flatnonzero(pattern.rows != pattern.cols)
        rows, cols = (
            np.concatenate([pattern.rows, pattern.cols[off]]),
            np.concatenate([pattern.cols, pattern.rows[off]]),
        )
        order = np.lexsort((cols, rows))
        self._source = np.concatenate([np.arange(pattern.nnz), off])[order]
        self._cols = cols[order]
        self._indptr = np.searchsorted(rows[order], np.arange(pattern.shape[0] + 1))
        self._shape = pattern.shape

    def matrix(self, values: Array) -> sp.csr_matrix:
        """Assemble the matrix from the values (nnz,) of its upper triangle."""
        return sp.csr_matrix((values[self._source], self._cols, self._indptr), shape=self._shape)


def _in_several_rows(structure: Structure, groups: Sequence[_Symbolic]) -> BoolArray:
    """Mask (n,) of the variables with more than one entry in the large blocks, or off-diagonal entries in P."""
    count = np.bincount(np.concatenate([group.cols for group in groups]), minlength=structure.n)
    several: BoolArray = count > 1
    P = structure.P
    several[P.rows[P.rows != P.cols]] = True
    return several
